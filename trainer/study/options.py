"""What a study is told, and the strategies that it can compare. Imports no torch: the command line reads it.

    labelnext     production's default as it is: near-duplicates behind the image that stands for them, a random holdout
    core-set      k-centre greedy: always the image farthest from all that is labelled (Sener & Savarese 2018,
                  arXiv 1708.00489)
    baal-bald     the highest BALD as baal computes it

The others are those of `trainer.ordering.strategies`, without near-duplicates pushed back and without a random holdout.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field
from pydantic.dataclasses import dataclass

from contract.commands import Option
from contract.errors import ConfigError
from contract.settings import DECLARED, Count, split, text
from trainer.ordering.strategies import STRATEGIES
from trainer.settings import Share

RANDOM: Final = "random"
"""What the others are held against."""
PRODUCT: Final = "labelnext"
CORE_SET: Final = "core-set"
BAAL_BALD: Final = "baal-bald"
STUDIED: Final = (PRODUCT, *STRATEGIES, CORE_SET, BAAL_BALD)


@dataclass(frozen=True, slots=True, config=DECLARED)
class StudyOptions:
    """What to simulate."""

    images: Annotated[Path, Option(metavar="DIR|ZIP")]
    """Class folders, or what `--manifest` describes."""
    out: Annotated[Path, Option(metavar="DIR")] = Path("study")
    """For the report, and for what a study that was interrupted goes on from."""
    strategies: Annotated[tuple[str, ...], text(split), Option(metavar="A,B,C")] = STUDIED
    """`labelnext` is the default strategy with near-duplicates and random holdout."""
    name: str | None = None
    """For the report's title (default: that of the images)."""
    manifest: Annotated[Path | None, Option(metavar="CSV")] = None
    """Columns path, label and perhaps split."""
    test_share: Annotated[Share, Option("--test", metavar="SHARE")] = 0.25
    """Of each class, to test on, if the manifest marks none."""
    long_tail: Annotated[float | None, Field(gt=1, lt=1e6, allow_inf_nan=False), Option(metavar="RATIO")] = None
    """Thin the pool out until the largest class has so many times the images of the smallest."""
    seeds: Count = 5
    """So many times, each with its own chance."""
    initial: Annotated[int, Field(ge=2)] = 100
    """Labels to begin with, at random."""
    query: Annotated[Count, Option(metavar="K")] = 100
    """Labels between two trainings."""
    rounds: Annotated[Count, Option(metavar="R")] = 8
    """Of labelling and training."""
    workers: Count | None = None
    """Processes (default: one for each processor)."""


def check(strategies: Sequence[str]) -> None:
    """Make sure that there are such strategies, each once.

    Raises:
        ConfigError: if not.
    """
    unknown = [name for name in strategies if name not in STUDIED]
    if unknown or not strategies or len(set(strategies)) < len(strategies):
        raise ConfigError(
            f"--strategies must name some of {', '.join(STUDIED)}, each once, got {', '.join(strategies) or 'none'}"
        )
