"""Does it save labels? `python -m bench.evidence [--quick] [--only NAMES] [--save]`.

Runs `python -m trainer simulate` on real images with an EfficientNet-Lite0 pretrained on ImageNet: CIFAR-10 with long
tails of 100:1, 200:1 and 30:1 and without, TrashNet with tails of 20:1 and 50:1, drawings of several dozen subjects,
letters of many fonts (bench/subjects/sets.py); and compares the default with random on a VGG-16. Without the
developers' shared folder it uses scikit-learn's handwritten digits and untrained convolutions. Prints for each strategy

    macro_f1, minority_f1, accuracy   area over labels minus random's, starred if its interval excludes zero
    of random: ...                    labels needed for random's final level, as a share of random's labels
    of reference: ...                 labels needed for the level of a pinned study of random labels (bench/references)

Results are cached in .cache/bench, where an interrupted bench continues. `--quick` uses smaller images and fewer sets,
strategies, seeds and rounds; `--save` copies the reports to bench/results.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from bench.harness.frame import RESULTS, describe, log, print_table, read_options
from bench.subjects import sets
from bench.subjects.model import CACHE, WEIGHTS, clean_environment
from bench.subjects.sets import Images
from contract.settings import split
from demo.product import CHECKOUT
from trainer.study.statistics import Difference

_SAVED: Final = ("report.html", "rounds.csv", "summary.json", "settings.json", "curves.png")
_LITE0: Final = "efficientnet_lite0"
_STRATEGIES: Final = "random,labelnext,margin,bald,badge,baal-bald,batch-bald,core-set,oracle"
_VGG16_STRATEGIES: Final = "random,labelnext,oracle"
_QUICK_STRATEGIES: Final = "random,labelnext,margin,bald,baal-bald"
_QUICK_SETS: Final = ("cifar10-lt", "trashnet")
_MEASURES: Final = ("macro_f1", "minority_f1", "accuracy")
_RATIO: Final = ("ratio", "low", "high")
_SEEDS: Final = 8

_OPTIONS: Final[Mapping[str, tuple[object, str]]] = {
    "quick": (False, "take a few minutes, for a first impression"),
    "only": ("", "comma-separated names of sets; all if empty"),
}

Options = Mapping[str, Any]
"""Options of `simulate` by name."""


@dataclass(frozen=True, slots=True)
class _Set:
    """A set of images, and its study."""

    images: Callable[[], Images]
    options: Options
    pixels: int
    """Image size for EfficientNet-Lite0."""
    pixels_vgg16: int


def _grow(*query: int, initial: int = 20, **options: Any) -> Options:
    """Return the options of a study with the given query of each round."""
    labels = {"initial": initial, "query": ",".join(map(str, query)), "rounds": len(query)}
    return {**labels, **{name.replace("_", "-"): value for name, value in options.items()}}


_CIFAR: Final = ("automobile", "airplane", "truck", "ship", "dog", "cat", "horse", "bird", "deer", "frog")
_ALL: Final = dict.fromkeys(_CIFAR, 5000)
"""All images of the pool, a tail of 100:1."""
_REORDERED_CIFAR: Final = ("automobile", "truck", "ship", "dog", "cat", "horse", "bird", "deer", "frog", "airplane")
"""For a tail in which a common class is the rarest."""
_THIRD_TAIL: Final = {
    "ship": 1077, "truck": 738, "dog": 506, "automobile": 347, "cat": 237, "airplane": 163, "horse": 111, "bird": 76,
    "deer": 52, "frog": 36,
}  # fmt: skip
"""A tail of 30:1, in a third order."""
_EVEN: Final = dict.fromkeys(_CIFAR[:7], 232)
_REORDERED_TRASHNET: Final = ("plastic", "metal", "trash", "cardboard", "glass", "paper")

_TO_900: Final = (20, 20, 40, 40, 80, 80, 200, 400)
_TO_500: Final = (20, 20, 40, 40, 80, 80, 200)
_TO_220: Final = (20, 20, 20, 40, 40, 60)
_MANY: Final = (75, 150, 200)
"""Queries after three initial labels per class."""

_SETS: Final[Mapping[str, _Set]] = {
    "cifar10-lt": _Set(partial(sets.cifar, "cifar10-lt", _ALL), _grow(*_TO_900), 224, 128),
    "trashnet": _Set(sets.trashnet, _grow(*_TO_220, long_tail=20), 224, 224),
    "clipart": _Set(sets.clipart, _grow(*_MANY, initial=225, seeds=24), 64, 64),
    "cifar10-even": _Set(partial(sets.cifar, "cifar10-even", _EVEN), _grow(*_TO_500), 224, 128),
    "letters": _Set(sets.letters, _grow(*_MANY, initial=141), 64, 64),
    "cifar10-200": _Set(
        partial(sets.cifar, "cifar10-200", sets.long_tail(_REORDERED_CIFAR, 2600, 200)), _grow(*_TO_500), 224, 128
    ),
    "cifar10-30": _Set(partial(sets.cifar, "cifar10-30", _THIRD_TAIL), _grow(*_TO_500), 224, 128),
    "trashnet-50": _Set(partial(sets.trashnet, "trashnet-50", _REORDERED_TRASHNET, 50), _grow(*_TO_220), 224, 224),
}
"""Sets that need the developers' shared folder."""


def plan_studies(*, quick: bool, only: Sequence[str] = ()) -> dict[str, Options]:
    """Return the options of the studies by name, given the data on this machine; `only` selects sets."""
    if sets.CIFAR.is_dir() and sets.TRASHNET.is_dir() and WEIGHTS.is_file():
        chosen = {name: each for name, each in _SETS.items() if name in (only or (_QUICK_SETS if quick else _SETS))}
        plans = {name: plan for name, each in chosen.items() for name, plan in _plan(name, each, quick=quick)}
    else:
        options = _grow(*_TO_220, long_tail=20, image_size=32, weights="none")
        plans = {"digits": {**sets.digits(), **options, "strategies": _STRATEGIES, "seeds": _SEEDS}}
    return {f"{name}-quick": _shorten(plan) for name, plan in plans.items()} if quick else plans


def _plan(name: str, each: _Set, *, quick: bool) -> Iterator[tuple[str, Options]]:
    reference = CHECKOUT / "bench" / "references" / f"{name}.json"
    pinned = {"reference": reference} if reference.exists() else {}
    common = {**each.images(), "seeds": _SEEDS, **each.options, **pinned}
    yield name, {**common, "backbone": _LITE0, "image-size": each.pixels, "strategies": _STRATEGIES}
    if not quick:
        vgg16 = {"weights": WEIGHTS, "image-size": each.pixels_vgg16, "strategies": _VGG16_STRATEGIES}
        yield f"{name}-vgg16", {**common, **vgg16}


def _shorten(plan: Options) -> dict[str, Any]:
    """Shorten a study to minutes: smaller images, fewer rounds, seeds and strategies."""
    quick = {"image-size": min(plan["image-size"], 64), "rounds": plan["rounds"] // 2, "seeds": 2}
    return {**plan, **quick, "strategies": _QUICK_STRATEGIES}


def run_study(name: str, plan: Options) -> dict[str, Any]:
    """Run or continue a study, and return its summary."""
    out = CACHE / "evidence" / name
    options = [f"--{option}={value}" for option, value in {"name": name, **plan, "out": out}.items()]
    log(f"{name}: kept in {out.relative_to(CHECKOUT)}")
    environment = clean_environment(LABELNEXT_CACHE=str(CACHE / "images"))
    command = [sys.executable, "-m", "trainer", "simulate", "--train=classifier", *options]
    ended = subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(ended.stdout))


def save_reports(name: str) -> None:
    """Copy a study's reports to bench/results."""
    folder = RESULTS / f"{datetime.now(UTC).date().isoformat()}-evidence-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in _SAVED:
        shutil.copyfile(CACHE / "evidence" / name / file, folder / file)


def _table_row(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return a strategy's final metrics, areas minus random's, and label ratios."""
    return {
        **{f"{measure} end": figures[f"{measure}_final"] for measure in _MEASURES},
        **{f"{measure} area": _format_difference(figures[f"aulc_{measure}_vs_random"]) for measure in _MEASURES},
        **{
            f"{measure} of {other}": _format_ratio(figures[f"label_ratio_{measure}_vs_{other}"])
            for other in ("random", "reference")
            for measure in _MEASURES[:2]
        },
    }


def _format_difference(difference: Mapping[str, Any] | None) -> str:
    """Format a difference, starred if its interval excludes zero."""
    return f"{difference['mean']:+.3f}{'*' if Difference(**difference).sign else ''}" if difference else ""


def _format_ratio(ratio: Mapping[str, Any] | None) -> str:
    if not ratio:
        return ""
    shares = [f">{ratio['most']:.2f}" if each is None else f"{each:.2f}" for each in map(ratio.get, _RATIO)]
    return "{} ({} to {})".format(*shares) if ratio["low"] is not None else shares[0]


def main() -> None:
    """Run the studies, and print tables and a line of JSON."""
    options = read_options("evidence", __doc__, _OPTIONS)
    plans = plan_studies(quick=options.quick, only=split(options.only))
    summaries: dict[str, Any] = {}
    for name, plan in plans.items():
        summaries[name] = run_study(name, plan)
        if options.save:
            save_reports(name)
        print(name)
        print_table([{"strategy": strategy, **_table_row(figures)} for strategy, figures in summaries[name].items()])
    print(json.dumps({"bench": "evidence", "quick": options.quick, "sets": summaries, "machine": describe()}))


if __name__ == "__main__":
    main()
