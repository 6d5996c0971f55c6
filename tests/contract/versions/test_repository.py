import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from contract.errors import ConfigError, DigestError, ManifestError, NothingPublished, VersionNotFound
from contract.versions.repository import RANKINGS_FOLDER, Repository, new_version
from tests.versions import manifest, publish, write_files

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)


def test_versions_are_shared_between_machines(open_as):
    trainer, server = open_as("trainer"), open_as("server")
    version = publish(trainer, b"content")
    assert (server.current(), server.versions()) == (version.name, [version.name])
    for opened in (server.open(version.name), trainer.open(version.name)):
        assert opened.manifest == version.manifest
        assert set(opened.manifest.files) == {"model.onnx", "head.onnx.data", "probe.npz", "report/index.html"}
        opened.verify()
    assert server.read_manifest(version.name) == version.manifest
    assert server.read_file(version.name, "report/index.html", max_bytes=100) == b"content"


def test_models_are_folders_with_a_version_or_ranking(open_as):
    """Requests, system folders and other folders are not models."""
    birds = open_as("trainer")
    publish(birds, b"content")
    birds.for_model("cars").documents(RANKINGS_FOLDER).write("3.json", b"{}")
    for folder in ("requests", "lost+found", "other", ".hidden"):
        birds.shared_documents(folder).write("x.json", b"{}")
    server = open_as("server")
    assert server.models() == ["birds", "cars"]
    assert server.models(known=["birds", "gone"]) == ["birds", "cars"]
    assert server.for_model("birds").current() == birds.current()


def test_unreadable_folders_are_not_models(repository, monkeypatch):
    """They must not hide models. A missing root is an error."""
    with pytest.raises(FileNotFoundError):
        repository.models()
    publish(repository, b"content")
    locked = repository.root / "locked"
    locked.mkdir()
    iterdir = Path.iterdir

    def refuse(path):
        if path == locked:
            raise PermissionError
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert repository.models() == ["default"]


def test_versions_sort_by_time_even_if_the_clock_goes_back(repository):
    names = []
    for hour in (5, 3, 4):
        with repository.stage(NOW.replace(hour=hour)) as staged:
            write_files(staged.path, b"x")
            staged.describe(manifest(staged.version))
            published = staged.publish(manifest(staged.version))
        assert "manifest.json" not in published.manifest.files  # `describe` wrote it before
        names.append(published.name)
    assert repository.versions() == names


def test_rejects_the_manifest_of_another_version(repository):
    with repository.stage(NOW) as staged, pytest.raises(ManifestError, match="got the manifest of 20"):
        staged.describe(manifest("20200101T000000000Z-abcdef"))


def test_unpublished_version_leaves_no_files(open_as):
    repository = open_as("trainer")
    assert repository.versions() == []

    def fail():
        with repository.stage(NOW) as staged:
            write_files(staged.path, b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(repository.folder.iterdir()) == []
    with pytest.raises(NothingPublished, match=f"no version has been published in {repository.location} yet.*run`"):
        open_as("server").current()


def write(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def remove_digest(file):
    def change(folder):
        document = json.loads((folder / "manifest.json").read_text())
        del document["files"][file]
        (folder / "manifest.json").write_text(json.dumps(document))

    return change


def rename(folder):
    """Rename a version, which would then draw other masks than those of its probe."""
    folder.rename(folder.with_name(new_version(NOW)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (write("model.onnx", b"9"), DigestError, r"model\.onnx .* has sha256 \w+, manifest\.json says \w+.*publish"),
        (write("head.onnx.data", b""), DigestError, r"head\.onnx\.data .* has 0 bytes, manifest\.json says 1: it was"),
        (remove_digest("model.onnx"), ManifestError, r"no digest of .*model\.onnx"),
        (remove_digest("probe.npz"), ManifestError, r"no digest of .*probe\.npz"),
        (lambda folder: (folder / "manifest.json").unlink(), ManifestError, r"has no manifest\.json"),
        (rename, ManifestError, "copied or renamed"),
    ],
)
def test_rollback_rejects_a_changed_version(repository, change, error, message):
    """The version in use stays in use."""
    first, second = publish(repository, b"1"), publish(repository, b"2")
    change(first.path)
    [name] = {*repository.versions()} - {second.name}
    with pytest.raises(error, match=message):
        repository.rollback(name)
    assert repository.current() == second.name


@pytest.mark.parametrize("name", ["", "../other", "20260102T030405678Z-ffffff", "latest", "birds/x", "x" * 500])
def test_rejects_unknown_version_names(open_as, name):
    """In CURRENT or as an argument; the message lists the latest versions."""
    version = publish(open_as("trainer"), b"1")
    server = open_as("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_read_current", name.encode)
        with pytest.raises(VersionNotFound, match=f"the latest versions: {version.name}"):
            server.current()
    read = partial(server.read_file, file="model.onnx", max_bytes=9)
    for method in (server.open, server.read_manifest, server.rollback, server.retire, read):
        with pytest.raises(VersionNotFound):
            method(name)


@pytest.mark.parametrize("model", ["", ".hidden", "a/b", "..", "a\\b"])
def test_rejects_invalid_model_names(tmp_path, model):
    with pytest.raises(ConfigError, match="plain folder name"):
        Repository(tmp_path, model)
