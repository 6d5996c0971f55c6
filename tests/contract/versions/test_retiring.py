"""Removing versions; tests for buckets alone are in test_local_cache."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from contract.errors import VersionInUse, VersionNotFound
from contract.versions.repository import Repository
from tests.contract.versions.conftest import files_of
from tests.versions import publish

pytestmark = pytest.mark.slow  # processes are started, and killed at every step

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def versions(repository):
    return [publish(repository, content, int8=b"int8").name for content in (b"first", b"second", b"third")]


def test_manifest_and_report_of_a_removed_version_stay(open_as):
    """For the learning curve and the page of reports; opening the version raises an error that says why."""
    repository = open_as("trainer")
    first, second, third = (publish(repository, content).name for content in (b"first", b"second", b"third"))
    manifest = repository.read_manifest(first)
    repository.retire(first)
    for reader in (repository, open_as("late")):
        assert reader.versions() == [second, third]
        assert reader.history() == [first, second, third]
        assert reader.read_manifest(first) == manifest
        assert reader.read_file(first, "report/index.html", max_bytes=99) == b"first"
        for use in (reader.open, reader.rollback, reader.retire):
            with pytest.raises(
                VersionNotFound, match=f"removed .* by `python -m trainer prune`.*the latest versions: {second}"
            ):
                use(first)
        assert reader.current() == third
        reader.open(second).verify()


def test_current_version_is_never_removed(open_as, monkeypatch):
    """Whether it is the newest, or a rollback on another machine selected it; not even for a moment."""
    repository = open_as("trainer")
    versions = [publish(repository, content).name for content in (b"first", b"second")]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: pytest.fail("it was away"))
        with pytest.raises(VersionInUse, match=f"{versions[1]} is current"):
            repository.retire(versions[1])
    open_as("desk").rollback(versions[0])
    with pytest.raises(VersionInUse):
        repository.retire(versions[0])
    assert repository.versions() == versions
    open_as("late").open(versions[0]).verify()


def test_open_version_is_not_removed_until_its_process_ends(repository, versions):
    """The system releases the lock of a killed process. Locking a missing version is no error."""
    with repository.shared_lock("20260102T030405678Z-0a1b2c"):
        pass
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(repository.root), versions[0]], cwd=CHECKOUT, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"holding\n"
    with pytest.raises(VersionInUse, match=f"has version {versions[0]} open"):
        repository.retire(versions[0])
    repository.open(versions[0]).verify()
    holder.kill()
    holder.communicate()
    repository.retire(versions[0])
    assert repository.versions() == versions[1:]


HOLD = """
import sys, time
from pathlib import Path
from contract.versions.repository import Repository
with Repository(Path(sys.argv[1])).shared_lock(sys.argv[2]):
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("locks", [True, False], ids=["with locks", "without"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_concurrent_rollback_and_removal(repository, versions, monkeypatch, when, locks):
    """Either the version is current and complete, or it is removed and the rollback fails."""
    if not locks:
        monkeypatch.setattr("contract.versions.version.fcntl.flock", refuse_locks)
    rename, outcome = Path.rename, []

    def roll_back():
        try:
            Repository(repository.root).rollback(versions[0])
            outcome.append("rolled back")
        except VersionNotFound:
            outcome.append("refused")

    def rename_and_roll_back(path, target):
        if path.name != versions[0] or outcome:
            return rename(path, target)
        if when == "before":
            roll_back()
        found = rename(path, target)
        if when == "after":
            roll_back()
        return found

    monkeypatch.setattr(Path, "rename", rename_and_roll_back)
    try:
        repository.retire(versions[0])
        removed = True
    except VersionInUse:
        removed = False
    assert len(outcome) == 1
    repository.open(repository.current()).verify()
    assert removed == (versions[0] not in repository.versions()) == (repository.current() != versions[0])
    assert (repository.current() == versions[0]) == (outcome == ["rolled back"])


@pytest.mark.parametrize("step", ["_load_manifest", "open", "set_current"])
def test_rollback_without_locks_notices_a_removal(repository, versions, monkeypatch, step):
    """Before its manifest is read, its files are compared, or CURRENT is replaced, which is undone."""
    monkeypatch.setattr("contract.versions.version.fcntl.flock", refuse_locks)
    real = getattr(Repository, step)

    def remove_amid(self, *arguments):
        found = real(self, *arguments) if step == "open" else None
        monkeypatch.setattr(Repository, step, real)
        Repository(repository.root).retire(versions[0])
        return found or real(self, *arguments)

    monkeypatch.setattr(Repository, step, remove_amid)
    with pytest.raises(VersionNotFound, match="was removed"):
        repository.rollback(versions[0])
    assert repository.current() == versions[2]


def test_rejects_rollback_to_a_version_being_removed(repository, versions, monkeypatch):
    """CURRENT would name a missing version."""
    rename = Path.rename

    def rename_amid_a_rollback(path, target):
        with pytest.raises(VersionNotFound, match=f"{versions[0]} is being removed"):
            Repository(repository.root).rollback(versions[0])
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_amid_a_rollback)
    repository.retire(versions[0])
    assert repository.versions() == versions[1:]
    assert repository.current() == versions[2]


def refuse_locks(*_):
    raise OSError(95, "Operation not supported")


def test_removal_killed_at_any_step_can_be_finished(tmp_path):
    """The next removal finishes it, also if the version was made current meanwhile."""
    step, done, torn = 0, False, 0
    while not done:
        step += 1
        repository = Repository(tmp_path / str(step))
        names = [publish(repository, content, int8=b"int8").name for content in (b"first", b"second")]
        command = [sys.executable, "-c", RETIRE, str(repository.root), names[0], str(step)]
        done = subprocess.run(command, cwd=CHECKOUT, check=False).returncode == 0
        assert repository.history() == names
        for name in repository.versions():
            repository.open(name).verify()
        torn += names[0] not in repository.versions() and not done
        repository.finish_retiring()
        if names[0] in repository.versions():
            repository.rollback(names[0])
        else:
            kept = files_of(repository.folder / ".retired" / names[0])
            assert kept == {"manifest.json", "report/index.html"}
            assert json.loads(repository.read_manifest(names[0]).to_json())["version"] == names[0]
    assert torn >= 4  # a step for each file that goes


RETIRE = """
import os, signal, sys
from pathlib import Path
from contract.versions.repository import Repository

root, name, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls = 0

def kill_at_step(event, arguments):
    global calls
    if event.startswith(("open", "os.")) and str(root) in str(arguments):
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_at_step)
Repository(root).retire(name)
"""


@pytest.mark.parametrize("stripped", [False, True])
def test_current_version_among_the_removed_is_restored(repository, versions, stripped):
    """As after a removal that was killed earlier."""
    if stripped:
        repository.retire(versions[0])
    else:
        (repository.folder / ".retired").mkdir()
        (repository.folder / versions[0]).rename(repository.folder / ".retired" / versions[0])
    repository.set_current(versions[0])
    repository.finish_retiring()
    assert repository.versions() == (versions[1:] if stripped else versions)
    with pytest.raises(VersionNotFound, match="was removed") if stripped else nullcontext():
        repository.open(repository.current()).verify()
