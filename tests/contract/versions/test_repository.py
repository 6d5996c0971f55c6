"""Publishing, reading, rolling back, and what is refused."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ConfigError, DigestError, ManifestError, NothingPublished, VersionNotFound
from contract.versions.manifest import check_version
from contract.versions.repository import RANKINGS_FOLDER, Repository, new_version
from tests.versions import manifest, publish, write_files

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)


@pytest.fixture
def repository(tmp_path):
    """An empty repository."""
    return Repository(tmp_path / "models")


def test_what_one_machine_publishes_another_reads(anywhere):
    """The version is current, with its files and matching digests, and may be opened again."""
    trainer, server = anywhere("trainer"), anywhere("server")
    version = publish(trainer, b"content")
    assert (server.current(), server.versions()) == (version.name, [version.name])
    for opened in (server.open(version.name), trainer.open(version.name)):
        assert opened.manifest == version.manifest
        assert set(opened.manifest.files) == {"model.onnx", "head.onnx.data", "probe.npz", "report/index.html"}
        opened.verify()
    assert server.read_manifest(version.name) == version.manifest
    assert server.read_file(version.name, "report/index.html", most_bytes=100) == b"content"


def test_models_are_the_folders_that_hold_what_a_model_holds(anywhere):
    """A version or a ranking; requests, what volumes bring along and a folder that others use are none."""
    birds = anywhere("trainer")
    publish(birds, b"content")
    birds.beside("cars").documents(RANKINGS_FOLDER).write("3.json", b"{}")
    for folder, file in (
        ("requests", "birds.3-0a.json"),
        ("lost+found", "x"),
        ("empty of ours", "y"),
        (".hidden", "z"),
    ):
        birds.shared_documents(folder).write(file, b"{}")
    server = anywhere("server")
    assert server.models() == ["birds", "cars"]
    assert server.models(known=["birds", "gone"]) == ["birds", "cars"]
    assert server.beside("birds").current() == birds.current()


def test_what_may_not_be_looked_into_is_no_model_and_a_place_that_is_away_is_an_error(repository, monkeypatch):
    """One says nothing of the others; the other says nothing at all."""
    with pytest.raises(FileNotFoundError):
        repository.models()
    publish(repository, b"content")
    locked = repository.root / "locked"
    locked.mkdir()
    iterdir = Path.iterdir

    def refusing(path):
        if path == locked:
            raise PermissionError
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    assert repository.models() == ["default"]


def test_versions_sort_by_time_even_if_the_clock_goes_back(repository):
    """The newest version is the last one, whatever the clock says."""
    names = []
    for hour in (5, 3, 4):
        with repository.stage(NOW.replace(hour=hour)) as staged:
            write_files(staged.path, b"x")
            staged.describe(manifest(staged.version))
            published = staged.publish(manifest(staged.version))
        assert "manifest.json" not in published.manifest.files  # which was there already
        names.append(published.name)
    assert repository.versions() == names


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), st.timedeltas(timedelta(-999), timedelta(999)))
def test_new_version_sorts_after_the_one_before(first, step):
    """Names are well formed and ordered for any two moments."""
    before = new_version(first.replace(tzinfo=UTC))
    after = new_version((first + step).replace(tzinfo=UTC), after=before)
    assert check_version(before)
    assert check_version(after)
    assert before < after


def test_unpublished_version_leaves_nothing(anywhere):
    """Leaving the staging block without publishing removes what was written, on errors too."""
    repository = anywhere("trainer")
    assert repository.versions() == []

    def fail():
        with repository.stage(NOW) as staged:
            write_files(staged.path, b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(repository.folder.iterdir()) == []
    with pytest.raises(NothingPublished, match=f"no version has been published in {repository.location} yet.*run`"):
        anywhere("server").current()


def test_rollback_to_a_damaged_version_is_refused(repository):
    """The version in use stays in use when the one asked for was edited."""
    first, second = publish(repository, b"1"), publish(repository, b"2")
    (first.path / "model.onnx").write_bytes(b"9")
    with pytest.raises(DigestError, match=r"model\.onnx .* has sha256 \w+, manifest\.json says \w+.*publish again"):
        repository.rollback(first.name)
    assert repository.current() == second.name


def test_file_cut_short_is_named_with_both_sizes(repository):
    """A file that is too short is refused on opening, before anybody computes a digest."""
    version = publish(repository, b"weights")
    (version.path / "head.onnx.data").write_bytes(b"wei")
    with pytest.raises(DigestError, match=r"head\.onnx\.data .* has 3 bytes, manifest\.json says 7: it was cut short"):
        repository.open(version.name)


@pytest.mark.parametrize("name", ["", "../other", "20260102T030405678Z-ffffff", "latest", "birds/x", "x" * 500])
def test_what_names_no_version_is_refused(anywhere, name):
    """By CURRENT or by somebody: the error lists what there is, and no path or key is followed."""
    version = publish(anywhere("trainer"), b"1")
    server = anywhere("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_read_current", name.encode)
        with pytest.raises(VersionNotFound, match=f"the latest there: {version.name}"):
            server.current()
    for ask in (server.open, server.read_manifest, server.rollback, server.retire):
        with pytest.raises(VersionNotFound):
            ask(name)
    with pytest.raises(VersionNotFound):
        server.read_file(name, "model.onnx", most_bytes=9)


def test_copied_version_is_refused(repository):
    """A version under another name would draw other masks than its probe was computed with."""
    version = publish(repository, b"1")
    other = new_version(NOW)
    version.path.rename(repository.folder / other)
    with pytest.raises(ManifestError, match="copied or renamed"):
        repository.open(other)


@pytest.mark.parametrize("name", ["model.onnx", "probe.npz"])
def test_manifest_must_vouch_for_graph_and_probe(repository, name):
    """A manifest without the digest of a file that is served could vouch for anything."""
    version = publish(repository, b"1")
    path = version.path / "manifest.json"
    document = json.loads(path.read_text())
    del document["files"][name]
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match=f"no digest of .*{name}"):
        repository.open(version.name)


def test_folder_without_manifest_is_no_version(repository):
    """A folder that this program did not write is named as such."""
    (repository.folder / new_version(NOW)).mkdir(parents=True)
    with pytest.raises(ManifestError, match=r"has no manifest\.json"):
        repository.open(repository.versions()[0])


@pytest.mark.parametrize("model", ["", ".hidden", "a/b", "..", "a\\b"])
def test_model_name_cannot_leave_the_repository(tmp_path, model):
    """A model's name is a plain folder name."""
    with pytest.raises(ConfigError, match="plain folder name"):
        Repository(tmp_path, model)
