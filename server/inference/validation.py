"""Validation: no version is served whose passes on its probe are not the trainer's, on this machine too.

Knows the order of the checks and nothing of when versions appear. `server check` and the poller both go through it.
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

from contract.errors import DigestError, InvalidVersion, LabelnextError
from contract.graph.dropouts import dropout_nodes
from contract.graph.lowering import load_graph
from contract.graph.probe import Probe, Validation, validate
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.version import MANIFEST_FILE, MODEL_FILE, WEIGHTS_FILES, Version
from server.inference.engine import Engine
from server.settings import Precision

_log = logging.getLogger(__name__)

LoadEngine = Callable[[Version], Engine]
"""Opens a version."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A version that may be served: warm, and validated on this machine."""

    engine: Engine
    validation: Validation


def admit(repository: Repository, name: str, load: LoadEngine) -> Admitted:
    """Verify the version's files, load it, warm it, and have it reproduce the trainer's probe.

    Raises:
        RepositoryError: if a file is not the one that was published.
        InvalidVersion: if the graph or its numbers are not the trainer's.
    """
    try:
        with repository.open_verified(name) as version:
            return _admit(version, load)
    except DigestError as err:
        raise DigestError(f"{err}{_diagnose(repository, name)}") from err


def _admit(version: Version, load: LoadEngine) -> Admitted:
    probe = Probe.load(version.probe_path)
    engine = _load(version, load)
    if engine.precision is not Precision.FP32:
        try:
            return _validate(engine, probe)
        except Exception as err:  # whatever reduced precision does, in full precision the version may be sound
            _log.warning("served in fp32", extra={"model_version": version.name, "reason": str(err)})
        engine = engine.in_fp32()
    return _validate(engine, probe)


def _load(version: Version, load: LoadEngine) -> Engine:
    try:
        return load(version)
    except (LabelnextError, MemoryError, OSError):  # the last two may pass, and say nothing of the version
        raise
    except Exception as err:  # an engine refuses a graph in its own words, which are not for everybody
        _log.warning("version cannot be loaded", exc_info=err, extra={"model_version": version.name})
        raise InvalidVersion(
            f"version {version.name} cannot be loaded ({type(err).__name__}, see the log); publish again or roll back"
        ) from err


def _validate(engine: Engine, probe: Probe) -> Admitted:
    engine.warm()
    backbone, reduced = engine.backbone.compute_probe, engine.precision is not Precision.FP32
    return Admitted(
        engine, validate(probe, engine.manifest, backbone=backbone, head=engine.run_passes, reduced=reduced)
    )


def _diagnose(repository: Repository, name: str) -> str:
    """Say what is wrong with a graph that is not the published one, as far as it can be read; else nothing."""
    if repository.keys.verifying is not None:
        return ""  # it may be an attacker's, and is not to be parsed
    folder = repository.folder / name
    try:
        manifest = Manifest.from_json((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        found = len(
            dropout_nodes(load_graph(folder / MODEL_FILE, weights_bytes=dict.fromkeys(WEIGHTS_FILES, sys.maxsize)))
        )
    except Exception:  # a damaged file may raise anything; its digest has been reported already
        return ""
    expected = len(manifest.dropout_sites)
    return f"; {MODEL_FILE} has {found} active Dropout nodes, {MANIFEST_FILE} says {expected}" * (found != expected)
