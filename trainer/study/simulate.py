"""A study from its options to its report: plans the runs, completes them in worker processes, writes the results.

<out>/settings.json                   everything that the results depend on; a folder is for one study
<out>/chains/<strategy>-<seed>.jsonl  a line for each finished round
<out>/report.html, *.csv, *.json      written when all runs are complete

With several backbones, each has such a subfolder of <out>, named after it, and <out> has a report comparing them.
"""

import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from contract.errors import ConfigError, with_subject
from contract.versions.documents import Documents
from trainer.features import open_store
from trainer.labels.dataset import Indices
from trainer.locks import lock_file
from trainer.model.build import choose_device, open_backbone_for
from trainer.model.frozen import FrozenBackbone
from trainer.model.graphs.int8 import choose_precision
from trainer.model.recipe import choose_recipe
from trainer.ordering.strategies import DEFAULT_STRATEGY
from trainer.settings import Environment, Training
from trainer.study import report
from trainer.study.dataset import Flags, Pool, long_tail, read_pool
from trainer.study.features import compute_features, decode
from trainer.study.model import Dataset, open_dataset
from trainer.study.options import PRODUCT, StudyOptions, check_strategies, queries, split_backbones
from trainer.study.records import Round, Study, read_reference
from trainer.study.run import Protocol, Run
from trainer.study.workers import complete_all, count_processors
from trainer.subsampling import evenly_spaced

_log = logging.getLogger(__name__)

_SETTINGS: Final = "settings.json"
_MAY_DIFFER: Final = ("command", "date", "machine", "name", "reference", "seeds", "strategies", "versions", "workers")
"""Settings that may change when a study is continued in its folder."""
_MAX_LOGGED: Final = 5
"""Maximum number of unreadable images in the log."""
_CALIBRATION_IMAGES: Final = 256
"""Images to calibrate and validate an int8 backbone with."""
_PATH_OPTIONS: Final = ("images", "manifest", "out", "reference")


def simulate(options: StudyOptions, training: Training, environment: Environment) -> dict[str, Any]:
    """Complete all runs, write the report, and return its summary as JSON, by strategy.

    With several backbones the summary is by backbone and strategy.

    Raises:
        LabelnextError: if the images are unusable, the folder contains another study, or training diverges.
    """
    check_strategies(options.strategies)
    trainings, out = split_backbones(training), options.out
    if any(out.glob("chains/*" if len(trainings) > 1 else "*/chains/*")):  # the files have equal names
        existing, planned = ("one backbone", "several") if len(trainings) > 1 else ("several backbones", "one")
        raise ConfigError(f"--out {out} contains a study of {existing}, this study has {planned}; use another folder")
    pool = read_pool(options.images, options.manifest, test_share=options.test_share)
    if options.long_tail is not None:
        pool = pool.take(pool.test | long_tail(pool.targets, ~pool.test, options.long_tail))
    title = options.name or pool.name
    plans = {name: _Plan(pool, options, each, environment) for name, each in trainings.items()}
    if len(plans) == 1:
        (plan,) = plans.values()
        _, summary = plan.complete(out, title=title)
    else:
        studies: dict[str, Study] = {}
        with _locked(out):
            for name, plan in plans.items():
                _log.info("backbone %d of %d: %s", len(studies) + 1, len(plans), name)
                studies[name], _ = plan.complete(out / name, title=f"{title}, {name}")
            summary = report.write_comparison(studies, out, title=title)
    _log.info("the report is %s", out / "report.html")
    return summary


class _Plan:
    """A study of one backbone; raises ConfigError before it computes anything but pixels."""

    def __init__(self, pool: Pool, options: StudyOptions, training: Training, environment: Environment) -> None:
        self.pool, self.options, self.environment = pool, options, environment
        self.cache = environment.cache.parent / "study"
        self.reference = read_reference(options.reference) if options.reference else None
        torch.manual_seed(0)
        self.backbone = open_backbone_for(training, cache=environment.cache_dir)
        size, max_megapixels = self.backbone.spec.height, environment.max_megapixels
        self.decoded = decode(pool, image_size=size, cache=self.cache, max_megapixels=max_megapixels)
        faults = [with_subject(pool.references[image], reason) for image, reason in self.decoded.faults.items()]
        for fault in faults[:_MAX_LOGGED]:
            _log.warning("skipped: %s", fault)
        if len(faults) > _MAX_LOGGED:
            _log.warning("and %d more", len(faults) - _MAX_LOGGED)
        self.protocol = _make_protocol(pool, self.decoded.readable, options, training)
        if isinstance(self.backbone, FrozenBackbone) and training.precision == "auto":
            sample = self.protocol.pool[evenly_spaced(len(self.protocol.pool), max_count=_CALIBRATION_IMAGES)]
            self.backbone = choose_precision(self.backbone, self.decoded.images[sample])
        self.settings = self._describe()

    def complete(self, out: Path, *, title: str) -> tuple[Study, dict[str, Any]]:
        """Complete the runs in a folder, write the report, and return the study and its summary."""
        with _locked(out):
            runs = self._plan_runs(out)
            self._log_summary()
            if any(len(run.read_rounds()) <= self.protocol.rounds for run in runs):
                default = count_processors() if self.protocol.device.type == "cpu" else 1  # a GPU is not shared
                complete_all(runs, self._compute_dataset(), self.protocol, workers=self.options.workers or default)
            study = self._collect(runs, title)
            return study, report.write(study, out)

    def _describe(self) -> dict[str, Any]:
        """Return the settings as JSON; files by name, since their folder does not affect the results."""
        options, training, backbone = self.options, self.protocol.training, self.backbone
        recipe = choose_recipe(training, training.trained_part, options.initial, pretrained=training.weights != "none")
        settings = {
            "command": _command(),
            "default": PRODUCT,
            "default_strategy": DEFAULT_STRATEGY,
            "images": options.images.name,
            "pixels": self.decoded.key[:16],
            **{name: value for name, value in asdict(options).items() if name not in _PATH_OPTIONS},
            "reference": options.reference and options.reference.name,
            **{name: value for name, value in asdict(training).items() if name not in ("seed", "validation")},
            "backbone": Path(training.backbone).name,
            "precision": backbone.precision if isinstance(backbone, FrozenBackbone) else "fp32",
            "image_size": backbone.spec.height,
            "part": training.trained_part,
            "weights": training.weights if training.weights in ("imagenet", "none") else Path(training.weights).name,
            "device": self.protocol.device.type,
            "recipe_at_start": asdict(recipe),
            "unreadable": len(self.decoded.faults),
            "machine": f"{count_processors()} processors, {platform.machine()}",
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }
        return dict(json.loads(json.dumps(settings)))

    def _plan_runs(self, out: Path) -> list[Run]:
        """Check that the folder is empty or contains this study, and return its runs, ordered by seed."""
        chains, earlier = out / "chains", self.settings
        chains.mkdir(parents=True, exist_ok=True)
        if any(chains.iterdir()):
            try:
                earlier = dict(json.loads((out / _SETTINGS).read_text(encoding="utf-8")))
            except (OSError, ValueError) as err:
                raise ConfigError(
                    f"--out {out} contains rounds of a study, but its {_SETTINGS} cannot be read; remove the folder, "
                    "or use another"
                ) from err
        for name, value in self.settings.items():
            if name not in _MAY_DIFFER and earlier.get(name) != value:
                raise ConfigError(
                    f"--out {out} contains a study with {name} {earlier.get(name)}, this study has {value}; "
                    "use another folder, or remove this one"
                )
        Documents(out).write(_SETTINGS, (json.dumps(self.settings, indent=2) + "\n").encode())
        return [
            Run(strategy, seed, chains / f"{strategy}-{seed}.jsonl")
            for seed in range(self.options.seeds)
            for strategy in self.options.strategies
        ]

    def _log_summary(self) -> None:
        options, protocol, counts = self.options, self.protocol, self.pool.count(self.protocol.pool)
        rounds = (options.initial, options.rounds, _format_query(options))
        images = (len(protocol.pool), len(counts), min(counts), max(counts), len(protocol.test))
        _log.info(
            "%d strategies, %d seeds; %d initial labels, then %d rounds of %s; %d images of %d classes (%d to %d each) "
            "in the pool, %d in the test set; on %s",
            *(len(options.strategies), options.seeds, *rounds, *images, protocol.device),
        )

    def _compute_dataset(self) -> Callable[[], Dataset]:
        """Compute the features of a frozen backbone, and return a function that opens the dataset in a worker."""
        features = None
        if isinstance(self.backbone, FrozenBackbone):
            with open_store(self.environment) as store:
                features = compute_features(
                    self.pool, self.decoded, backbone=self.backbone, store=store, cache=self.cache
                )
        images, cache = self.decoded.path, self.environment.cache_dir
        return partial(
            open_dataset, self.pool.classes, self.pool.targets, images=images, features=features, cache=cache
        )

    def _collect(self, runs: Sequence[Run], title: str) -> Study:
        rounds = {(run.strategy, run.seed): tuple(Round(**line["round"]) for line in run.read_rounds()) for run in runs}
        return Study(
            name=title,
            classes=self.pool.classes,
            minority=self.protocol.minority,
            pool_by_class=self.pool.count(self.protocol.pool),
            test_by_class=self.pool.count(self.protocol.test),
            settings=self.settings,
            runs={
                strategy: tuple(rounds[strategy, seed] for seed in range(self.options.seeds))
                for strategy in self.options.strategies
            },
            reference=self.reference,
        )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Context manager for the lock of a study's folder; raises ConfigError if it is locked or cannot be written."""
    busy = f"another study is running in {out}; wait until it ends, or use another folder with --out"
    try:
        with lock_file(out / ".lock", refusal=busy):
            yield
    except OSError as err:
        raise ConfigError(
            f"cannot write to --out {out} ({err.strerror or err}); use a writable folder with free space"
        ) from err


def _make_protocol(pool: Pool, readable: Flags, options: StudyOptions, training: Training) -> Protocol:
    eligible, queried = readable & ~pool.test, queries(options)
    if (needed := options.initial + sum(queried)) > np.count_nonzero(eligible):
        raise ConfigError(
            f"expected at least {needed} images for {options.initial} labels and {options.rounds} rounds of "
            f"{_format_query(options)}, got {np.count_nonzero(eligible)}; lower --initial, --query or --rounds"
        )
    return Protocol(
        pool=np.flatnonzero(eligible),
        test=np.flatnonzero(readable & pool.test),
        minority=find_minority(np.bincount(pool.targets[eligible], minlength=len(pool.classes))),
        initial=options.initial,
        queries=queried,
        training=training,
        device=choose_device(training.device),
    )


def _format_query(options: StudyOptions) -> str:
    return ",".join(map(str, options.query[: options.rounds]))


def find_minority(counts: Indices) -> tuple[int, ...]:
    """Return the indices of the rarest third of the classes, at least one, the rarest first; counts are (C,)."""
    return tuple(np.argsort(counts, kind="stable")[: max(1, round(len(counts) / 3))].tolist())


def _command() -> str:
    """Return the command line, with paths reduced to file names."""
    words = []
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        names = (Path(each).name if os.sep in each else each for each in value.split(","))
        words.append(option + equals + ",".join(names))
    return shlex.join(["python", "-m", "trainer", *words])
