"""Validation: a version is served only if it reproduces the trainer's passes on its probe on this machine.

Used by the poller and by `server check`.
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


@dataclass(frozen=True, slots=True)
class Admitted:
    """The warm engine of a valid version, and the result of its validation."""

    engine: Engine
    validation: Validation


def admit(repository: Repository, name: str, load: LoadEngine) -> Admitted:
    """Verify the digests of a version's files, load it, warm it, and validate it on its probe.

    Raises:
        RepositoryError: if there is no such version, or a file differs from the published one.
        InvalidVersion: if the graph cannot be loaded, or its outputs differ from the trainer's.
        ConfigError: if CUDA is required and not available.
        InferenceError: if onnxruntime fails on the probe.
        OSError, MemoryError: if loading fails for a reason that may be temporary.
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
        except Exception as err:  # any failure in reduced precision; the version may be valid in float32
            _log.warning("served in fp32", extra={"model_version": version.name, "reason": str(err)})
        engine = engine.in_fp32()
    return _validate(engine, probe)


def _load(version: Version, load: LoadEngine) -> Engine:
    try:
        return load(version)
    except (LabelnextError, MemoryError, OSError):  # the last two may be temporary
        raise
    except Exception as err:  # onnxruntime's messages are for the log
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
    """Describe a graph with the wrong digest by its number of Dropout nodes; return "" if it cannot be read."""
    if repository.keys.verifying is not None:
        return ""  # the file may be an attacker's and must not be parsed
    folder = repository.folder / name
    try:
        manifest = Manifest.from_json((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        dropouts = len(
            dropout_nodes(load_graph(folder / MODEL_FILE, weights_bytes=dict.fromkeys(WEIGHTS_FILES, sys.maxsize)))
        )
    except Exception:  # a damaged file may raise anything; its digest is reported already
        return ""
    expected = len(manifest.dropout_sites)
    if dropouts == expected:
        return ""
    return f"; {MODEL_FILE} has {dropouts} active Dropout nodes, {MANIFEST_FILE} says {expected}"
