"""Checks before a roll-out that a server with these settings would work on this machine.

Uses the same code as the server. Checks that depend on a failed one are left out. Nothing is changed, except that a
temporary file is written to the cache's folder.
"""

import json
import logging
import shutil
import statistics
import tempfile
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from contract.errors import ConfigError, LabelnextError
from contract.label_studio import WHOAMI, LabelStudioClient, RetryPolicy, TokenRejected
from contract.versions.repository import Repository
from server.inference.engine import Engine
from server.inference.resources import memory_limit_bytes, resident_bytes
from server.inference.validation import admit
from server.opening import engine_loader, open_models
from server.settings import Precision, Settings

_LABEL_STUDIO_TIMEOUT_S: Final = 10.0
_TIMED_RUNS: Final = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check; `detail` describes what was found, or what is wrong and what to do."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all checks."""

    checks: Sequence[Check]
    figures: Mapping[str, object]
    """Figures of the current version and this machine; those of several models are in `models`, by name."""

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(check.ok for check in self.checks)

    @property
    def faults(self) -> list[str]:
        """Details of the failed checks."""
        return [check.detail for check in self.checks if not check.ok]

    def to_json(self) -> str:
        """Return the report as one line of JSON."""
        return json.dumps({"ok": self.ok, **self.figures, "checks": [asdict(check) for check in self.checks]})


def check(settings: Settings) -> Report:
    """Run all checks."""
    return _Checker(settings).run()


class _Checker:
    """Runs the checks one after the other; each is a function that returns a detail, or raises."""

    def __init__(self, settings: Settings) -> None:
        self.checks: list[Check] = []
        self.figures: dict[str, Any] = {}
        self._settings = settings
        self._before = resident_bytes()
        self._repositories: tuple[Repository, ...] = ()
        self._load = engine_loader(settings)
        self._engines: list[Engine] = []
        """Engines of all valid versions, in memory together as in the server."""

    def run(self) -> Report:
        self.checks.append(Check("settings", True, "all are valid"))
        self._check("repository", self._read_repository)
        for repository in self._repositories:
            self._check_model(repository)
        if self._engines:
            self._check("memory", self._measure_memory)  # after the largest batch has been run
        self._check("cache", partial(_check_cache, self._settings))
        self._check("label_studio", partial(_check_label_studio, self._settings))
        return Report(self.checks, self.figures)

    def _check_model(self, repository: Repository) -> None:
        """Check a model's version; if there are several models, checks and figures name theirs."""
        suffix, figures, before = "", self.figures, len(self._engines)
        if len(self._repositories) > 1:
            suffix, figures = f" of {repository.model}", {}
            self.figures.setdefault("models", {})[repository.model] = figures
        self._check(f"version{suffix}", partial(self._validate, repository, figures))
        for engine in self._engines[before:]:
            runs_on = f"runs on {engine.provider}, LABELNEXT_PROVIDER is {self._settings.provider}"
            self.checks.append(Check(f"provider{suffix}", True, runs_on))
            self._check(f"precision{suffix}", partial(self._check_precision, engine))
            self._check(f"speed{suffix}", partial(self._measure_speed, engine, figures))

    def _check(self, name: str, run: Callable[[], str]) -> None:
        try:
            check = Check(name, True, run())
        except (LabelnextError, OSError) as err:
            check = Check(name, False, str(err))
        except Exception as err:  # a bad version may raise anything; the other checks are still run
            _log.debug("%s failed unexpectedly", name, exc_info=True)
            check = Check(name, False, f"{type(err).__name__}: {err}")
        self.checks.append(check)

    def _read_repository(self) -> str:
        repository = open_models(self._settings)
        names = repository.models() if self._settings.model is None and repository.root.is_dir() else []
        if len(names) > 1:
            self._repositories = tuple(repository.for_model(name) for name in names)
            return f"{len(names)} models: {', '.join(names)}"
        [name] = names or [repository.model]
        repository = repository.for_model(name)
        current, versions = repository.current(), repository.versions()
        self._repositories = (repository,)
        return f"{current} is the current version of {repository.model}, of {len(versions)}"

    def _validate(self, repository: Repository, figures: dict[str, Any]) -> str:
        admitted = admit(repository, repository.current(), self._load)
        engine, validation = admitted.engine, admitted.validation
        self._engines.append(engine)
        figures |= {
            "version": engine.version,
            "passes": engine.passes,
            "dropout_sites": len(engine.sites),
            "provider": engine.provider,
            "precision": engine.precision,
            "mean_bald": validation.mean_bald,
            "largest_difference": validation.largest_difference,
            "labels": engine.manifest.labels,
            "image_size": [engine.manifest.input.height, engine.manifest.input.width],
        }
        return (
            f"{engine.version} reproduces the trainer's passes to {validation.largest_difference:.2g}; "
            f"mean BALD of the probe {validation.mean_bald:.3g} nats"
        )

    def _check_precision(self, engine: Engine) -> str:
        requested = self._settings.precision
        if requested not in (Precision.AUTO, engine.precision):
            raise ConfigError(
                f"LABELNEXT_PRECISION={requested}, but the version would be served in {engine.precision}: int8 needs a "
                "version with an int8 backbone, fp16 needs a GPU, and both must rank the probe as fp32 does; publish "
                "such a version, or set LABELNEXT_PRECISION=auto"
            )
        return f"the backbone computes in {engine.precision}, LABELNEXT_PRECISION is {requested}"

    def _measure_speed(self, engine: Engine, figures: dict[str, Any]) -> str:
        images, deadline_s = self._settings.max_batch_images, self._settings.deadline_s
        one_s, batch_s = _median_s(engine, 1), _median_s(engine, images)
        figures |= {"image_ms": round(one_s * 1000, 3), "batch_ms": round(batch_s * 1000, 3)}
        if batch_s > deadline_s:
            raise ConfigError(
                f"a batch of {images} images takes {batch_s:.0f} s, longer than LABELNEXT_DEADLINE_S={deadline_s:g}; "
                "lower LABELNEXT_MAX_BATCH_IMAGES, or serve on a faster machine"
            )
        return (
            f"one image takes {one_s * 1000:.3g} ms, a batch of {images} {batch_s * 1000:.3g} ms: "
            f"{images / batch_s:.3g} images/s"
        )

    def _measure_memory(self) -> str:
        """Estimate the memory during a swap: the resident memory, plus the memory that loading a version needs."""
        after, limit = resident_bytes(), memory_limit_bytes()
        if self._before is None or after is None:
            return "this system does not report memory"
        (before, _), (now, peak) = self._before, after
        now_mb, swap_mb = _mebibytes(now), _mebibytes(now + peak - before)
        self.figures |= {"memory_mb": now_mb, "swap_memory_mb": swap_mb}
        if limit is not None and swap_mb > _mebibytes(limit):
            raise ConfigError(
                f"swapping versions needs about {swap_mb} MiB, the container's limit is {_mebibytes(limit)}; raise it, "
                "or lower LABELNEXT_MAX_BATCH_IMAGES"
            )
        limited = "there is no limit" if limit is None else f"the container's limit is {_mebibytes(limit)}"
        return f"{now_mb} MiB are resident, swapping versions needs about {swap_mb}; {limited}"


def _median_s(engine: Engine, images: int) -> float:
    """Return the median time of scoring a batch of `images` random images, in seconds."""
    spec = engine.manifest.input
    batch = np.random.default_rng(0).integers(0, 256, (images, spec.height, spec.width, 3), np.uint8)
    return statistics.median(timeit.repeat(lambda: engine.run(batch), number=1, repeat=_TIMED_RUNS))


def _mebibytes(size: int) -> int:
    return round(size / 2**20)


def _check_cache(settings: Settings) -> str:
    folder, limit = settings.cache_dir, settings.cache_bytes
    if not limit:
        return "the feature cache is disabled"
    if folder is None:
        return f"features are kept in memory, {_mebibytes(limit)} MiB at most"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        room = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if room < limit:
        raise ConfigError(
            f"{folder} has room for {_mebibytes(room)} MiB of features, the limit is {_mebibytes(limit)}; lower "
            "LABELNEXT_CACHE_MB, or set LABELNEXT_CACHE_DIR to a folder on another disk"
        )
    return f"{folder} is writable and has room for {_mebibytes(limit)} MiB"


def _check_label_studio(settings: Settings) -> str:
    unset = "{} is not set: uploads and cloud storage cannot be read"
    if settings.label_studio_url is None:
        return unset.format("LABELNEXT_LABEL_STUDIO_URL")
    token, retries = settings.label_studio_token, RetryPolicy(total_s=0.0)
    timeout_s = _LABEL_STUDIO_TIMEOUT_S
    studio = LabelStudioClient(settings.label_studio_url, token or "", timeout_s=timeout_s, retries=retries)
    try:
        studio.get(WHOAMI)
    except TokenRejected:
        if token is not None:
            raise
        return f"{studio.url} answers; {unset.format('LABELNEXT_LABEL_STUDIO_TOKEN')}"
    return f"{studio.url} answers and accepts the token"
