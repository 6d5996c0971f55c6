import json
from types import SimpleNamespace

import pytest
from filelock import FileLock

from contract.errors import ConfigError, NothingPublished
from contract.versions.repository import Repository
from tests.versions import publish
from trainer import pruning
from trainer.__main__ import main
from trainer.pruning import prune


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models")


@pytest.fixture
def names(repository):
    return [publish(repository, bytes([number]) * 2**20).name for number in range(6)]


def test_keeps_the_newest_versions(repository, names):
    summary = prune(repository, newest=2)
    assert repository.versions() == names[4:]
    assert repository.history() == names
    assert summary.removed == tuple(names[:4])
    assert summary.kept == {names[5]: "current", names[4]: "newest"}
    assert summary.freed_mb == 4 * 3
    assert prune(repository, newest=2).describe() == "no version removed; kept: 1 current, 1 newest"


def test_shared_files_are_freed_with_their_last_version(repository):
    for backbone in [b"one" * 2**20] * 3 + [b"two" * 2**20]:
        publish(repository, b"1" * 2**20, int8=backbone)
    assert prune(repository, newest=2).freed_mb == 2 * 3
    assert prune(repository, newest=1).freed_mb == 3 + 3


def test_keeps_old_versions_in_use_even_if_damaged(repository, names, monkeypatch):
    """Damaged versions that are not in use are removed."""
    ranked_by = [SimpleNamespace(version=version) for version in (names[1], names[1], None)]
    monkeypatch.setattr(pruning, "load_rankings", lambda _: ranked_by)
    repository.rollback(names[0])
    (repository.folder / names[3] / "manifest.json").write_text("{")
    (repository.folder / names[4] / "model.onnx").unlink()
    with repository.shared_lock(names[2]):
        summary = prune(repository, newest=1)
    assert repository.versions() == [*names[:3], names[5]]
    assert summary.kept == {names[5]: "newest", names[2]: "open", names[1]: "ranked by", names[0]: "current"}
    repository.rollback(names[1])
    assert prune(repository, newest=1).removed == (names[0], names[2])


def test_rejects_concurrent_pruning(repository, names):
    with (
        FileLock(repository.root / ".default.prune.lock"),
        pytest.raises(ConfigError, match="another process is pruning"),
    ):
        prune(repository, newest=1)
    assert repository.versions() == names


def test_removes_nothing_without_a_current_version(repository, names):
    (repository.folder / "CURRENT").unlink()
    with pytest.raises(NothingPublished):
        prune(repository, newest=1)
    assert repository.versions() == names


def test_command_prints_a_summary_and_versions_lists_removed_versions(repository, names, monkeypatch, capsys):
    monkeypatch.setenv("LABELNEXT_MODELS", str(repository.root))
    assert main(["prune", "--keep", "5"]) == 0
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert (summary["removed"], summary["freed_mb"], list(summary["kept"])) == ([names[0]], 3.0, names[:0:-1])
    assert output.err == "1 version removed, 3 MiB; kept: 1 current, 4 newest\n"
    main(["versions"])
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [(row[0], row.split()[-5]) for row in rows] == list(zip("-    *", names, strict=True))
    assert main(["rollback", names[0]]) == 1
    assert f"error: version {names[0]} was removed from " in capsys.readouterr().err
