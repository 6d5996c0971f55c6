"""Malicious versions are rejected when they are opened, before an engine reads them."""

import os
import shutil

import pytest

from bench.subjects.tiny_model import TinyModel, publish
from contract.errors import LabelnextError, ManifestError, SignatureError, VersionNotFound
from contract.graph.lowering import load_graph, lower
from contract.graph.probe import Probe
from contract.versions.repository import Repository
from contract.versions.signatures import Keys, generate_keys
from contract.versions.version import MANIFEST_FILE
from tests.malicious import MALICIOUS, ONE_OF_EACH

EDITED = [case for case in MALICIOUS if case in ONE_OF_EACH or not case.updates_digests]
"""Edits that digests do not reveal, and one of each kind of the others."""

pytestmark = pytest.mark.timeout(30)  # an open pipe or device could block forever


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A version with all optional files, in its own repository."""
    repository = Repository(tmp_path_factory.mktemp("sound"))
    name = publish(repository, int8_of=TinyModel.draw(), report={"index.html": b"<p>"})
    assert len(open_completely(repository, name).sites) == 2  # otherwise the errors below would show nothing
    return repository.root, name


@pytest.fixture
def version(sound, tmp_path):
    """A copy of the sound version, to be modified."""
    root, name = sound
    shutil.copytree(root, tmp_path / "models")
    return Repository(tmp_path / "models"), name


def open_completely(repository, name):
    """Open all files of a version that trainer and server open, without running the graph."""
    with repository.open_verified(name) as version:
        Probe.load(version.probe_path)
        graph = load_graph(version.model_path, weights_bytes=version.weights_bytes)
        load_graph(version.int8_backbone_path, weights_bytes={})
        return lower(graph, cut=version.manifest.backbone.tensor, multiple=version.manifest.multiple)


@pytest.mark.parametrize(
    "case", [each for each in MALICIOUS if each.detected_by == "contract"], ids=lambda case: case.name
)
def test_malicious_versions_are_rejected(version, case):
    """With the error of the step that detects it."""
    repository, name = version
    case.apply(repository.folder / name)
    with pytest.raises(LabelnextError) as caught:
        open_completely(repository, name)
    assert caught.type is case.error, caught.value


@pytest.mark.parametrize("case", EDITED, ids=lambda case: case.name)
def test_edited_manifest_of_a_signed_version_is_not_parsed(tmp_path, case):
    """After any edit, either the signature is invalid or a digest differs."""
    secret, _ = generate_keys(tmp_path / "keys")
    repository = Repository(tmp_path / "models", keys=Keys.read(signing=secret))
    name = publish(repository, int8_of=TinyModel.draw(), report={"index.html": b"<p>"})
    signed = (repository.folder / name / MANIFEST_FILE).read_bytes()
    case.apply(repository.folder / name)
    manifest = repository.folder / name / MANIFEST_FILE
    changed = manifest.is_file() and manifest.read_bytes() != signed
    with pytest.raises(LabelnextError) as caught:
        open_completely(repository, name)
    assert not changed or caught.type is SignatureError or "cannot be read" in str(caught.value)


def replace_with_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change",
    [replace_with_pipe, lambda path: path.write_bytes(b"\xff" * 10_000), lambda path: path.write_bytes(b"../../etc\0")],
    ids=["pipe", "long", "path"],
)
def test_rejects_an_invalid_current_file(version, change):
    """It is read on every poll, and must not block the polling thread."""
    repository, _ = version
    change(repository.folder / "CURRENT")
    with pytest.raises((OSError, VersionNotFound, ManifestError)):
        repository.current()
