"""The gate: no version is served that has not proved itself.

Knows the order of the checks and nothing of when versions appear. `server check` and the poller both go through it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.errors import DigestError, LoweringError
from contract.manifest import DropoutSite, Manifest
from contract.passes import dropout_nodes, load_graph
from contract.probe import Probe, Proof, prove
from contract.repository import MANIFEST_FILE, MODEL_FILE, Repository, Version
from server.engine import Engine

LoadEngine = Callable[[Version], Engine]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A version that may be served: warm, and proven on this machine."""

    engine: Engine
    proof: Proof


def admit(repository: Repository, name: str, load: LoadEngine) -> Admitted:
    """Verify the version's files, load it, warm it, and have it reproduce the trainer's probe.

    Raises:
        RepositoryError: if a file is not the one that was published.
        GateError: if the graph or its numbers are not the trainer's.
    """
    try:
        version = repository.open(name)
        version.verify()
    except DigestError as err:
        raise DigestError(f"{err}{_diagnose(repository.folder / name)}") from err
    engine = load(version)
    _compare_sites(engine)
    engine.warm()
    return Admitted(engine, prove(Probe.load(version.probe_path), version.manifest, engine.run))


def _compare_sites(engine: Engine) -> None:
    """The probe runs under the manifest's sites, requests under the graph's: what is proven must be what is served."""
    found, expected = engine.sites, engine.manifest.dropout_sites
    if found != expected:
        raise LoweringError(
            f"{MODEL_FILE} of {engine.version} has active Dropout nodes on {_show(found)}, {MANIFEST_FILE} says "
            f"{_show(expected)}: one of them was edited; publish again or roll back to an earlier version"
        )


def _show(sites: Sequence[DropoutSite]) -> str:
    return ", ".join(f"{list(site.features)} with probability {site.probability:g}" for site in sites)


def _diagnose(folder: Path) -> str:
    """Say what is wrong with a graph that is not the published one, as far as it can be read; else nothing."""
    try:
        manifest = Manifest.from_json((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        found = len(dropout_nodes(load_graph(folder / MODEL_FILE)))
    except Exception:  # a damaged file may raise anything; its digest has been reported already
        return ""
    expected = len(manifest.dropout_sites)
    return f"; {MODEL_FILE} has {found} active Dropout nodes, {MANIFEST_FILE} says {expected}" * (found != expected)
