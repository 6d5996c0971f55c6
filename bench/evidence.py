"""Does it save labels? `python -m bench.evidence [--quick] [--save]`.

Runs `python -m trainer simulate` on real images: CIFAR-10 with a long tail of 100:1, and TrashNet with one of 20:1,
both on the convolutions of a VGG-16 that was trained on ImageNet. Where the developers' shared folder is not there, on
scikit-learn's handwritten digits and convolutions that nobody has trained. Prints for each strategy

    aulc_macro_f1           area under macro-F1 over labels, as a share of the range of labels
    minority_f1_final       mean F1 of the rarest third of the classes, at the end
    label_ratio_vs_random   labels that it needs for random's final minority F1, over all of random's

What has been computed stays below .cache/bench, where an interrupted bench goes on. `--quick` takes smaller images, and
fewer strategies, seeds and rounds; `--save` puts the reports below bench/results.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from bench.frame import describe, print_table
from bench.model import CACHE, SHARED, WEIGHTS, clean_environment
from demo.pool import write_digits
from demo.product import CHECKOUT

_RESULTS = CHECKOUT / "bench" / "results"
_SAVED: Final = ("report.html", "rounds.csv", "classes.csv", "summary.json", "settings.json", "curves.png")
_FIGURES: Final = ("aulc_macro_f1", "minority_f1_final", "label_ratio_vs_random", "label_ratio_macro_f1")
_QUICK_STRATEGIES: Final = ("labelnext", "random", "margin", "bald", "balanced-margin", "baal-bald")
_DIGITS_OF_EACH = 170


Options = Mapping[str, Any]
"""Of `simulate`, by name."""


def plan_studies(*, quick: bool) -> dict[str, Options]:
    """Return the studies to run, by name, on what there is on this machine."""
    cifar, trashnet = SHARED / "data" / "cifar10-lt", SHARED / "data" / "trashnet"
    rounds: Options = {"initial": 20, "query": 20, "rounds": 10, "seeds": 6, "long-tail": 20}
    plans: dict[str, Options]
    if not (cifar.is_dir() and trashnet.is_dir() and WEIGHTS.is_file()):
        digits = CACHE / "evidence-digits"
        write_digits(digits, (_DIGITS_OF_EACH,) * 10)
        plans = {"digits": {**rounds, "images": digits, "weights": "none", "image-size": 32, "rounds": 8, "seeds": 5}}
    else:
        plans = {
            "cifar10-lt": {
                "images": cifar / "pool.zip",
                "manifest": cifar / "manifest.csv",
                "weights": WEIGHTS,
                "image-size": 96,
                "initial": 100,
                "query": 100,
                "rounds": 8,
                "seeds": 5,
            },
            "trashnet": {
                **rounds,
                "images": trashnet,
                "manifest": trashnet / "manifest.csv",
                "weights": WEIGHTS,
                "image-size": 112,
            },
        }
    return {f"{name}-quick": _shorten(plan) for name, plan in plans.items()} if quick else plans


def _shorten(plan: Options) -> dict[str, Any]:
    """Make a study of minutes: images whose features are computed quickly, and half the rounds."""
    return {
        **plan,
        "image-size": min(plan["image-size"], 64 if "long-tail" in plan else 32),
        "rounds": plan["rounds"] // 2,
        "seeds": 2,
        "strategies": ",".join(_QUICK_STRATEGIES),
    }


def run_study(name: str, plan: Options) -> dict[str, Any]:
    """Run a study as far as it has not been run, and return what it says of each strategy."""
    out = CACHE / "evidence" / name
    options = [f"--{option}={value}" for option, value in {"name": name, **plan, "out": out}.items()]
    print(f"{name}: kept in {out.relative_to(CHECKOUT)}", file=sys.stderr)
    environment = clean_environment(LABELNEXT_CACHE=str(CACHE / "images"))
    command = [sys.executable, "-m", "trainer", "simulate", "--train=classifier", *options]
    ended = subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(ended.stdout))


def save(names: Iterable[str]) -> None:
    """Copy the reports to where results are kept."""
    for name in names:
        folder = _RESULTS / f"{datetime.now(UTC).date().isoformat()}-evidence-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        for file in _SAVED:
            shutil.copyfile(CACHE / "evidence" / name / file, folder / file)


def main() -> None:
    """Run the studies, print a table and one line of JSON."""
    options = _parse()
    found = {name: run_study(name, plan) for name, plan in plan_studies(quick=options.quick).items()}
    if options.save:
        save(found)
    sets = {
        name: {strategy: {figure: values[figure] for figure in _FIGURES} for strategy, values in strategies.items()}
        for name, strategies in found.items()
    }
    for name, strategies in sets.items():
        print(name)
        print_table([{"strategy": strategy, **figures} for strategy, figures in strategies.items()])
    print(json.dumps({"bench": "evidence", "quick": options.quick, "sets": sets, "machine": describe()}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.evidence", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few minutes, for a first impression")
    parser.add_argument("--save", action="store_true", help="put the reports below bench/results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
