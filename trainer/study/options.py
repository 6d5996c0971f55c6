"""Options of a study, and the strategies it can compare. Imports no torch, since the command line reads them.

    labelnext     production's default, with near-duplicates moved back and a random holdout
    core-set      k-centre greedy: always the image farthest from all labelled ones (Sener & Savarese 2018,
                  arXiv 1708.00489)
    baal-bald     the highest BALD as baal computes it
    oracle        knows the labels and balances the classes, as far as the pool allows

The other strategies are those of `trainer.ordering.strategies`, without moving near-duplicates back and without a
random holdout. `labelnext` selects its initial labels as production does; the others begin with random labels, equal
for all strategies of a seed. With the suffix `+start`, as in `margin+start`, a strategy begins as `labelnext` does.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field
from pydantic.dataclasses import dataclass

from contract.commands import Option
from contract.errors import ConfigError
from contract.settings import DECLARED, Count, parsed, split
from trainer.ordering.strategies import STRATEGIES
from trainer.settings import Share, Training, check_weights

RANDOM: Final = "random"
"""The baseline."""
PRODUCT: Final = "labelnext"
CORE_SET: Final = "core-set"
BAAL_BALD: Final = "baal-bald"
ORACLE: Final = "oracle"
STUDIED: Final = (PRODUCT, *STRATEGIES, CORE_SET, BAAL_BALD, ORACLE)
START: Final = "+start"
"""Suffix of a strategy that selects its initial labels as production does."""


@dataclass(frozen=True, slots=True, config=DECLARED)
class StudyOptions:
    """Options of `simulate`."""

    images: Annotated[Path, Option(metavar="DIR|ZIP")]
    """A folder or archive of class folders, or what `--manifest` describes."""
    out: Annotated[Path, Option(metavar="DIR")] = Path("study")
    """Folder for the report, and for what an interrupted study continues from."""
    strategies: Annotated[tuple[str, ...], parsed(split), Option(metavar="A,B,C")] = STUDIED
    """`labelnext` is the default strategy of `rank` with near-duplicates, random holdout and cold start; the suffix
    `+start`, as in `margin+start`, adds the cold start to another strategy."""
    reference: Annotated[Path | None, Option(metavar="FILE")] = None
    """Curves of another study (a `reference.json`): also report the labels needed to reach their final level."""
    name: str | None = None
    """Name in the report's title (default: that of the images)."""
    manifest: Annotated[Path | None, Option(metavar="CSV")] = None
    """A CSV file with the columns path, label and optionally split."""
    test_share: Annotated[Share, Option("--test", metavar="SHARE")] = 0.25
    """Share of each class to test on, unless the manifest marks a test set."""
    long_tail: Annotated[float | None, Field(gt=1, lt=1e6, allow_inf_nan=False), Option(metavar="RATIO")] = None
    """Reduce the pool to a long tail, whose largest class has RATIO times the images of the smallest."""
    seeds: Count = 5
    """Repetitions with different random seeds."""
    initial: Annotated[int, Field(ge=2)] = 20
    """Labels to begin with."""
    query: Annotated[tuple[Count, ...], parsed(split), Field(min_length=1), Option(metavar="K[,K...]")] = (20, 20, 40)
    """Labels between two trainings; the last number applies to all further rounds."""
    rounds: Annotated[Count, Option(metavar="R")] = 8
    """Rounds of labelling and training."""
    workers: Count | None = None
    """Number of processes (default: one for each processor)."""


def queries(options: StudyOptions) -> tuple[int, ...]:
    """Return the number of labels queried in each round, (R,)."""
    query = options.query[: options.rounds]
    return (*query, *query[-1:] * (options.rounds - len(query)))


def selects_initial(strategy: str) -> bool:
    """Whether a strategy selects its initial labels instead of drawing them at random."""
    return strategy == PRODUCT or strategy.endswith(START)


def check_strategies(strategies: Sequence[str]) -> None:
    """Raise ConfigError unless all strategies are known and distinct."""
    unknown = [name for name in strategies if name not in STUDIED and name.removesuffix(START) not in STUDIED[1:]]
    if unknown or not strategies or len(set(strategies)) < len(strategies):
        raise ConfigError(
            f"--strategies must name some of {', '.join(STUDIED)}, each once, got {', '.join(strategies) or 'none'}; "
            f"append {START} to a strategy to begin as {PRODUCT} does"
        )


def split_backbones(training: Training) -> dict[str, Training]:
    """Return the training settings of each backbone in the comma-separated `--backbone`, by name.

    `NAME@PIXELS` sets the image size of a backbone. `--weights` has one value for all backbones, or one for each in
    the same order.

    Raises:
        ConfigError: if a weights file does not exist, the numbers of weights and backbones do not match, or no
            backbone is named, or one twice.
    """
    backbones, weights = _split_paths(training.backbone), _split_paths(training.weights)
    if len(weights) == 1 < len(backbones) and weights[0] not in ("imagenet", "none"):
        each = [weights[0], *["imagenet"] * (len(backbones) - 1)]
        raise ConfigError(
            f"--weights {weights[0]} is for one network, but --backbone names {len(backbones)}; give weights for each, "
            f"in the same order, such as --weights {','.join(each)}"
        )
    if len(weights) not in (1, len(backbones)):
        raise ConfigError(
            f"--weights must be one value, or one for each of the {len(backbones)} backbones in the same order, got "
            f"{len(weights)}: {', '.join(weights)}"
        )
    weights = weights if len(weights) > 1 else weights * len(backbones)
    trainings: dict[str, Training] = {}
    for backbone, its_weights in zip(backbones, weights, strict=True):
        check_weights(its_weights)
        source, at, pixels = backbone.rpartition("@")
        sized = bool(at) and pixels.isdecimal() and int(pixels) > 0
        source, size = (source, int(pixels)) if sized else (backbone, training.image_size)
        name = (Path(source).stem if source.endswith(".onnx") else source) + (f"@{size}" if sized else "")
        if name in trainings:
            raise ConfigError(f"--backbone must name each backbone once, got {name} twice; rename the file or drop one")
        trainings[name] = replace(training, backbone=source, weights=its_weights, image_size=size)
    if not trainings:
        raise ConfigError(f"--backbone must name a backbone, got {training.backbone!r}")
    return trainings


def _split_paths(value: str) -> tuple[str, ...]:
    """Split at commas, unless the value is the path of a file."""
    return (value,) if Path(value).is_file() else split(value)
