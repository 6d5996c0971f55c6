"""A study from its options to its report: which runs there are, who runs them, and where they go on.

<out>/settings.json                   what the figures hang on; a folder holds one study
<out>/chains/<strategy>-<seed>.jsonl  a line for each round that ended
<out>/report.html, *.csv, *.json      from all runs, when they are through

Of several backbones each has a folder of this kind in <out>, named after it, and <out> the report that compares them.
"""

import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from contract.errors import ConfigError, name_once
from contract.versions.documents import Documents
from trainer.features import open_store
from trainer.labels.dataset import Indices
from trainer.locks import alone
from trainer.model.backbones import Opened
from trainer.model.build import choose_device, open_backbone_of
from trainer.model.frozen import FrozenBackbone
from trainer.model.int8 import in_best_precision
from trainer.model.recipe import choose_recipe
from trainer.ordering.strategies import DEFAULT_STRATEGY
from trainer.settings import Environment, Training
from trainer.study import report
from trainer.study.dataset import Pool, long_tail, read_pool
from trainer.study.features import Decoded, compute, decode
from trainer.study.model import open_dataset
from trainer.study.options import PRODUCT, StudyOptions, check, queries, split_backbones
from trainer.study.records import PassAgreement, Reference, Round, Study, read_reference
from trainer.study.run import Protocol, Run
from trainer.study.workers import complete_all, count_processors
from trainer.subsampling import evenly_spaced

_log = logging.getLogger(__name__)

_SETTINGS: Final = "settings.json"
_NOT_IDENTITY: Final = ("command", "date", "machine", "name", "reference", "seeds", "strategies", "versions", "workers")
"""Settings in which a study may differ from what lies in its folder and still go on there."""
_NAMED: Final = 5
"""Unreadable images that are named."""
_CALIBRATED: Final = 256
"""Images that a backbone in 8-bit integers is made and judged on."""
_FILES: Final = ("images", "manifest", "out", "reference")
"""Options that are paths."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A study of one backbone that can be done."""

    pool: Pool
    backbone: FrozenBackbone | Opened
    decoded: Decoded
    protocol: Protocol
    settings: Mapping[str, Any]
    reference: Reference | None


def simulate(options: StudyOptions, training: Training, environment: Environment) -> dict[str, Any]:
    """Do all runs that are missing, write the report, and return the figures of each strategy as JSON.

    Of several backbones they are those of each strategy of each backbone.

    Raises:
        LabelnextError: if the images cannot be used, the folder holds another study, or a training diverges.
    """
    check(options.strategies)
    trainings, out = split_backbones(training), options.out
    if any(out.glob("chains/*" if len(trainings) > 1 else "*/chains/*")):  # files of the same names
        holds, has = ("one backbone", "several") if len(trainings) > 1 else ("several backbones", "one")
        raise ConfigError(f"--out {out} holds a study of {holds}, this one has {has}; name another folder")
    pool = read_pool(options.images, options.manifest, test_share=options.test_share)
    if options.long_tail is not None:
        pool = pool.take(pool.test | long_tail(pool.targets, ~pool.test, options.long_tail))
    title = options.name or pool.name
    plans = {name: _plan(pool, options, each, environment) for name, each in trainings.items()}
    if len(plans) == 1:
        (plan,) = plans.values()
        _, found = _complete(plan, options, environment, title=title)
    else:
        studies: dict[str, Study] = {}
        with _holding(out):
            for name, plan in plans.items():
                _log.info("%s, %d of %d backbones", name, len(studies) + 1, len(plans))
                own = replace(options, out=out / name)
                studies[name], _ = _complete(plan, own, environment, title=f"{title}, {name}")
            found = report.write_comparison(studies, out, title=title)
    _log.info("the report is %s", out / "report.html")
    return found


def _plan(pool: Pool, options: StudyOptions, training: Training, environment: Environment) -> _Plan:
    reference = read_reference(options.reference) if options.reference else None
    torch.manual_seed(0)
    backbone = open_backbone_of(training, cache=environment.cache_dir)
    size = backbone.spec.height
    decoded = decode(pool, image_size=size, cache=_cache(environment), max_megapixels=environment.max_megapixels)
    for image, reason in [*decoded.faults.items()][:_NAMED]:
        _log.warning("left out: %s", name_once(pool.references[image], reason))
    if len(decoded.faults) > _NAMED:
        _log.warning("and %d more", len(decoded.faults) - _NAMED)
    protocol = _make_protocol(pool, decoded, options, training)
    if isinstance(backbone, FrozenBackbone) and training.precision == "auto":
        some = protocol.pool[evenly_spaced(len(protocol.pool), most=_CALIBRATED)]
        backbone = in_best_precision(backbone, decoded.images[some])
    return _Plan(pool, backbone, decoded, protocol, _describe(options, decoded, protocol, backbone), reference)


def _complete(
    plan: _Plan, options: StudyOptions, environment: Environment, *, title: str
) -> tuple[Study, dict[str, Any]]:
    """Do what is missing of a study, write its report into its folder, and return what that says."""
    protocol = plan.protocol
    with _holding(options.out):
        runs = _plan_runs(options, plan.settings)
        study = Study(
            name=title,
            classes=plan.pool.classes,
            minority=protocol.minority,
            pool_by_class=plan.pool.count(protocol.pool),
            test_by_class=plan.pool.count(protocol.test),
            settings=plan.settings,
            runs={},
            reference=plan.reference,
        )
        _log_plan(study, protocol, options)
        if any(len(run.lines()) <= protocol.rounds for run in runs):
            _run_all(runs, plan, environment, workers=options.workers)
        study = _collect(runs, study)
        return study, report.write(study, options.out)


def _run_all(runs: Sequence[Run], plan: _Plan, environment: Environment, *, workers: int | None) -> None:
    pool, cache, features = plan.pool, _cache(environment), None
    if isinstance(plan.backbone, FrozenBackbone):
        with open_store(environment) as store:
            features = compute(pool, plan.decoded, backbone=plan.backbone, store=store, cache=cache)
    dataset = partial(
        open_dataset,
        pool.classes,
        pool.targets,
        images=plan.decoded.path,
        features=features,
        cache=environment.cache_dir,
    )
    at_once = count_processors() if plan.protocol.device.type == "cpu" else 1  # a GPU is not shared
    complete_all(runs, dataset, plan.protocol, workers=workers or at_once)


def _cache(environment: Environment) -> Path:
    return environment.cache.parent / "study"


@contextmanager
def _holding(out: Path) -> Iterator[None]:
    """Keep other studies out of a folder, and say what is wrong where it cannot be written."""
    busy = f"another study is at work in {out}; wait for it to end, or name another folder with --out"
    try:
        with alone(out / ".lock", refusal=busy):
            yield
    except OSError as err:
        raise ConfigError(f"--out {out} cannot be used ({err.strerror or err}); name a folder with room") from err


def _make_protocol(pool: Pool, decoded: Decoded, options: StudyOptions, training: Training) -> Protocol:
    eligible, asked = decoded.readable & ~pool.test, queries(options)
    if (needed := options.initial + sum(asked)) > np.count_nonzero(eligible):
        raise ConfigError(
            f"expected at least {needed} images for {options.initial} labels and {options.rounds} rounds of "
            f"{_join(asked)}, there are {np.count_nonzero(eligible)}; lower --initial, --query or --rounds"
        )
    return Protocol(
        pool=np.flatnonzero(eligible),
        test=np.flatnonzero(decoded.readable & pool.test),
        minority=find_minority(np.bincount(pool.targets[eligible], minlength=len(pool.classes))),
        initial=options.initial,
        queries=asked,
        training=training,
        device=choose_device(training.device),
    )


def _join(asked: Sequence[int]) -> str:
    """What rounds ask for, as the option has it: the number that all further rounds have once."""
    most = next((place for place in range(len(asked)) if len(set(asked[place:])) == 1), 0)
    return ",".join(map(str, asked[: most + 1]))


def find_minority(counts: Indices) -> tuple[int, ...]:
    """Return the rarest third of the classes, at least one: their indices, the rarest first; counts are (C,)."""
    return tuple(np.argsort(counts, kind="stable")[: max(1, round(len(counts) / 3))].tolist())


def _describe(
    options: StudyOptions, decoded: Decoded, protocol: Protocol, backbone: FrozenBackbone | Opened
) -> dict[str, Any]:
    """Return the study's settings as JSON; files go by their names, since where they lie changes no figure."""
    training = protocol.training
    recipe = choose_recipe(training, training.trained_part, options.initial, pretrained=training.weights != "none")
    settings = {
        "command": _command(),
        "default": PRODUCT,
        "default_strategy": DEFAULT_STRATEGY,
        "images": options.images.name,
        "pixels": decoded.key[:16],
        **{name: value for name, value in asdict(options).items() if name not in _FILES},
        "reference": options.reference and options.reference.name,
        **{name: value for name, value in asdict(training).items() if name not in ("seed", "validation")},
        "backbone": Path(training.backbone).name,
        "precision": backbone.precision if isinstance(backbone, FrozenBackbone) else "fp32",
        "image_size": backbone.spec.height,
        "part": training.trained_part,
        "weights": training.weights if training.weights in ("imagenet", "none") else Path(training.weights).name,
        "device": protocol.device.type,
        "recipe_at_start": asdict(recipe),
        "unreadable": len(decoded.faults),
        "machine": f"{count_processors()} processors, {platform.machine()}",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    return dict(json.loads(json.dumps(settings)))


def _command() -> str:
    """The command as it was given, with the names of files in place of their paths."""
    words = []
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        names = (Path(each).name if os.sep in each else each for each in value.split(","))
        words.append(option + equals + ",".join(names))
    return shlex.join(["python", "-m", "trainer", *words])


def _plan_runs(options: StudyOptions, settings: Mapping[str, Any]) -> list[Run]:
    """Make sure that the folder is this study's, and return its runs, all of the first seed first."""
    out, begun, found = options.out, options.out / "chains", settings
    begun.mkdir(parents=True, exist_ok=True)
    if any(begun.iterdir()):
        try:
            found = dict(json.loads((out / _SETTINGS).read_text(encoding="utf-8")))
        except (OSError, ValueError) as err:
            raise ConfigError(
                f"--out {out} holds rounds of a study, but its {_SETTINGS} cannot be read; remove the folder, or name "
                "another one"
            ) from err
    for name in settings:
        if name not in _NOT_IDENTITY and found.get(name) != settings[name]:
            raise ConfigError(
                f"--out {out} holds a study with {name} {found.get(name)}, this one has {settings[name]}; "
                "name another folder, or remove that one"
            )
    Documents(out).write(_SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
    return [
        Run(strategy, seed, begun / f"{strategy}-{seed}.jsonl")
        for seed in range(options.seeds)
        for strategy in options.strategies
    ]


def _collect(runs: Sequence[Run], study: Study) -> Study:
    """Return a study with all rounds."""
    lines = [(run.strategy, run.lines()) for run in runs]
    return replace(
        study,
        runs={
            strategy: tuple(tuple(Round(**line["round"]) for line in own) for name, own in lines if name == strategy)
            for strategy, _ in lines
        },
        agreement=tuple(PassAgreement(**line["agreement"]) for _, own in lines for line in own if line["agreement"]),
    )


def _log_plan(study: Study, protocol: Protocol, options: StudyOptions) -> None:
    counts = study.pool_by_class
    rounds = (options.rounds, _join(protocol.queries), options.initial)
    images = (len(protocol.pool), len(counts), max(counts), min(counts), len(protocol.test))
    _log.info(
        "%d strategies, %d seeds, %d rounds of %s labels after %d, of %d images of %d classes (%d to %d each); "
        "tested on %d; %s",
        *(len(options.strategies), options.seeds, *rounds, *images, protocol.device),
    )
