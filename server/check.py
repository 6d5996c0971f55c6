"""What is asked before a roll-out: would a server with these settings, on this machine, do its work?

Owns which questions there are and what their answers look like; each is answered by the parts that serve. A question
that another one's failure leaves without a subject is not asked. Nothing is changed but for a file in the cache's
folder, which is removed again.
"""

import json
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from contract.errors import ConfigError, LabelnextError
from contract.label_studio import WHOAMI, LabelStudioClient, Patience, TokenRefused
from contract.versions.repository import Repository
from server.inference.engine import Engine
from server.inference.resources import Memory, memory_limit, resident
from server.inference.validation import Admitted, admit
from server.service import engine_loader, open_models
from server.settings import Precision, Settings

_ASKING_S: Final = 10.0
"""The most that Label Studio may take for an answer; its own patience with a backend is shorter."""
_RUNS: Final = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer."""

    name: str
    ok: bool
    detail: str
    """What was found, or what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Report:
    """All answers."""

    checks: tuple[Check, ...]
    figures: Mapping[str, object]
    """What is known of the version in use and of this machine; empty without a version."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(check.ok for check in self.checks)

    @property
    def faults(self) -> list[str]:
        """What is wrong."""
        return [check.detail for check in self.checks if not check.ok]

    def to_json(self) -> str:
        """Return one line."""
        return json.dumps({"ok": self.ok, **self.figures, "checks": [asdict(check) for check in self.checks]})


def refuse_settings(err: ConfigError) -> Report:
    """Report settings that cannot be read, beside which nothing can be asked."""
    return Report((Check("settings", False, str(err)),), {})


def check(settings: Settings) -> Report:
    """Ask everything."""
    before = resident()
    checks = [Check("settings", True, "all are valid")]
    figures: dict[str, object] = {}
    opened: list[Repository] = []
    checks.append(_ask("repository", lambda: _read_repository(settings, opened)))
    if checks[-1].ok:
        admitted: list[Admitted] = []
        checks.append(_ask("version", lambda: _validate(opened[0], settings, admitted)))
        for each in admitted:
            figures |= _describe(each)
            checks += _measure(each.engine, settings, before, figures)
    checks.append(_ask("cache", lambda: _use_cache(settings)))
    checks.append(_ask("label_studio", lambda: _reach_label_studio(settings)))
    return Report(tuple(checks), figures)


def _ask(name: str, question: Callable[[], str]) -> Check:
    try:
        return Check(name, True, question())
    except (LabelnextError, OSError) as err:
        return Check(name, False, str(err))
    except Exception as err:  # whatever a bad version does, the other questions are asked
        _log.debug("%s failed in a way that was not foreseen", name, exc_info=True)
        return Check(name, False, f"{type(err).__name__}: {err}")


def _read_repository(settings: Settings, opened: list[Repository]) -> str:
    repository = open_models(settings)
    opened.append(repository)
    current = repository.current()
    return f"{current} is the current version of {repository.model}, of {len(repository.versions())}"


def _validate(repository: Repository, settings: Settings, admitted: list[Admitted]) -> str:
    found = admit(repository, repository.current(), engine_loader(settings))
    admitted.append(found)
    validation = found.validation
    return (
        f"{found.engine.version} reproduces the trainer's passes to {validation.largest_difference:.2g}; "
        f"mean BALD of the probe {validation.mean_bald:.3g} nats"
    )


def _describe(admitted: Admitted) -> dict[str, object]:
    engine, validation = admitted.engine, admitted.validation
    return {
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


def _measure(engine: Engine, settings: Settings, before: Memory | None, figures: dict[str, object]) -> list[Check]:
    """Ask what a warm engine is and takes. Memory comes last, when the largest batch has been run."""
    return [
        Check("provider", True, f"runs on {engine.provider}, LABELNEXT_PROVIDER is {settings.provider}"),
        _ask("precision", lambda: _compare_precision(engine, settings)),
        _ask("speed", lambda: _time(engine, settings, figures)),
        _ask("memory", lambda: _weigh(before, memory_limit(), figures)),
    ]


def _compare_precision(engine: Engine, settings: Settings) -> str:
    wanted = settings.precision
    if wanted not in (Precision.AUTO, engine.precision):
        raise ConfigError(
            f"LABELNEXT_PRECISION={wanted}, but the version would be served in {engine.precision}: int8 needs one that "
            "was published with --int8, fp16 a GPU, and either has to rank the probe alike; publish such a version, or "
            "set LABELNEXT_PRECISION=auto"
        )
    return f"the trunk computes in {engine.precision}, LABELNEXT_PRECISION is {wanted}"


def _time(engine: Engine, settings: Settings, figures: dict[str, object]) -> str:
    one_s, batch_s = _seconds(engine, 1), _seconds(engine, settings.max_batch_images)
    figures["image_ms"], figures["batch_ms"] = round(one_s * 1000, 3), round(batch_s * 1000, 3)
    images_per_s = settings.max_batch_images / batch_s
    if batch_s > settings.deadline_s:
        raise ConfigError(
            f"one batch of {settings.max_batch_images} takes {batch_s:.0f} s, a request may take "
            f"{settings.deadline_s:g}; set LABELNEXT_MAX_BATCH_IMAGES lower, or serve on a faster machine"
        )
    return (
        f"one image takes {one_s * 1000:.3g} ms, a batch of {settings.max_batch_images} {batch_s * 1000:.3g} ms: "
        f"{images_per_s:.3g} images/s"
    )


def _seconds(engine: Engine, images: int) -> float:
    """The median time of scoring so many at once."""
    spec = engine.manifest.input
    batch = np.random.default_rng(0).integers(0, 256, (images, spec.height, spec.width, 3), np.uint8)
    times = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        engine.run(batch)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _weigh(before: Memory | None, limit: int | None, figures: dict[str, object]) -> str:
    """While versions are swapped the one in use and all that loading the next one takes are there at once."""
    after = resident()
    if before is None or after is None:
        return "this system does not say"
    swap = after.now + after.most - before.now
    figures["memory_mb"], figures["swap_memory_mb"] = _mebibytes(after.now), _mebibytes(swap)
    if limit is not None and swap > limit:
        raise ConfigError(
            f"swapping versions takes about {_mebibytes(swap)} MiB, the container may take {_mebibytes(limit)}; give "
            "it more, or set LABELNEXT_MAX_BATCH_IMAGES lower"
        )
    allowed = "there is no limit" if limit is None else f"the container may take {_mebibytes(limit)}"
    return f"{_mebibytes(after.now)} MiB are resident, swapping versions takes about {_mebibytes(swap)}; {allowed}"


def _mebibytes(size: int) -> int:
    return round(size / 2**20)


def _use_cache(settings: Settings) -> str:
    folder, most = settings.cache_dir, settings.cache_bytes
    if not most:
        return "nothing is kept"
    if folder is None:
        return f"features are kept in memory, {_mebibytes(most)} MiB at most"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        room = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if room < most:
        raise ConfigError(
            f"{folder} has room for {_mebibytes(room)} MiB of features, {_mebibytes(most)} may be kept; set "
            "LABELNEXT_CACHE_MB lower, or LABELNEXT_CACHE_DIR to a folder on another disk"
        )
    return f"{folder} can be written, and has room for {_mebibytes(most)} MiB"


def _reach_label_studio(settings: Settings) -> str:
    if settings.label_studio_url is None:
        return "LABELNEXT_LABEL_STUDIO_URL is not set: uploads and cloud storage cannot be read"
    token = settings.label_studio_token
    studio = LabelStudioClient(
        settings.label_studio_url, token or "", timeout_s=_ASKING_S, patience=Patience(longest_s=0.0)
    )
    try:
        studio.get(WHOAMI)
    except TokenRefused:
        if token is not None:
            raise
        return (
            f"{studio.url} answers; LABELNEXT_LABEL_STUDIO_TOKEN is not set: uploads and cloud storage cannot be read"
        )
    return f"{studio.url} answers, and knows the token"
