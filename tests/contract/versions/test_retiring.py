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
from tests.versions import VERSION, publish

pytestmark = pytest.mark.slow  # starts processes, and kills them at every step

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def versions(repository):
    return [publish(repository, content, int8=b"int8").name for content in (b"first", b"second", b"third")]


def test_manifest_and_report_of_a_removed_version_stay(open_as):
    """For learning curve and reports. Opening the version is an error that says why."""
    repository = open_as("trainer")
    first, second, third = (publish(repository, content).name for content in (b"first", b"second", b"third"))
    manifest = repository.read_manifest(first)
    repository.retire(first)
    for reader in (repository, open_as("late")):
        assert reader.versions() == [second, third]
        assert reader.history() == [first, second, third]
        assert reader.read_manifest(first) == manifest
        assert reader.read_file(first, "report/index.html", max_bytes=99) == b"first"
        for method in (reader.open, reader.rollback, reader.retire):
            with pytest.raises(
                VersionNotFound, match=f"removed .* by `python -m trainer prune`.*the latest versions: {second}"
            ):
                method(first)
        assert reader.current() == third
        reader.open(second).verify()


def test_current_version_is_never_removed(open_as, monkeypatch):
    """Not even for a moment; whether it is the newest, or was selected by a rollback on another machine."""
    repository = open_as("trainer")
    versions = [publish(repository, content).name for content in (b"first", b"second")]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: pytest.fail("it was renamed"))
        with pytest.raises(VersionInUse, match=f"{versions[1]} is current"):
            repository.retire(versions[1])
    open_as("desk").rollback(versions[0])
    with pytest.raises(VersionInUse):
        repository.retire(versions[0])
    assert repository.versions() == versions
    open_as("late").open(versions[0]).verify()


def test_open_version_is_not_removed_until_its_process_ends(repository, versions):
    """The system releases the lock of a killed process. Locking a missing version is not an error."""
    with repository.shared_lock(VERSION):
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


@pytest.mark.parametrize(
    ("when", "locks", "expected"),
    [
        ("before", True, "being removed"),
        ("before", False, "rolled back"),
        ("after", True, "removed"),
        ("after", False, "removed"),
    ],
)
def test_concurrent_rollback_and_removal(repository, versions, monkeypatch, when, locks, expected):
    """The version is either current and complete, or removed, and then the rollback fails."""
    if not locks:
        monkeypatch.setattr("contract.versions.version.fcntl.flock", refuse_locks)
    rename, outcome = Path.rename, []

    def roll_back():
        try:
            Repository(repository.root).rollback(versions[0])
            outcome.append("rolled back")
        except VersionNotFound as err:
            outcome.append("being removed" if "is being removed" in str(err) else "removed")

    def rename_and_roll_back(path, target):
        if path.name != versions[0] or outcome:
            return rename(path, target)
        if when == "before":
            roll_back()
        renamed = rename(path, target)
        if when == "after":
            roll_back()
        return renamed

    monkeypatch.setattr(Path, "rename", rename_and_roll_back)
    try:
        repository.retire(versions[0])
        removed = True
    except VersionInUse:
        removed = False
    assert outcome == [expected]
    repository.open(repository.current()).verify()
    assert removed == (versions[0] not in repository.versions()) == (repository.current() != versions[0])
    assert (repository.current() == versions[0]) == (expected == "rolled back")


@pytest.mark.parametrize("step", ["_load_manifest", "open", "set_current"])
def test_rollback_without_locks_notices_a_removal(repository, versions, monkeypatch, step):
    """Just before it reads the manifest, compares the files, or replaces CURRENT, which is undone."""
    monkeypatch.setattr("contract.versions.version.fcntl.flock", refuse_locks)
    method = getattr(Repository, step)

    def run_and_remove(self, *arguments):
        version = method(self, *arguments) if step == "open" else None
        monkeypatch.setattr(Repository, step, method)
        Repository(repository.root).retire(versions[0])
        return version or method(self, *arguments)

    monkeypatch.setattr(Repository, step, run_and_remove)
    with pytest.raises(VersionNotFound, match="was removed"):
        repository.rollback(versions[0])
    assert repository.current() == versions[2]


def refuse_locks(*_):
    raise OSError(95, "Operation not supported")


def test_removal_killed_at_any_step_can_be_finished(tmp_path):
    """No version is incomplete at any step, and the next removal finishes it or puts the version back."""
    step, done, interrupted = 0, False, 0
    while not done:
        step += 1
        repository = Repository(tmp_path / str(step))
        names = [publish(repository, content, int8=b"int8").name for content in (b"first", b"second")]
        command = [sys.executable, "-c", RETIRE, str(repository.root), names[0], str(step)]
        done = subprocess.run(command, cwd=CHECKOUT, check=False).returncode == 0
        assert repository.history() == names
        for name in repository.versions():
            repository.open(name).verify()
        interrupted += names[0] not in repository.versions() and not done
        repository.finish_retiring()
        if names[0] in repository.versions():
            repository.rollback(names[0])
        else:
            files = files_of(repository.folder / ".retired" / names[0])
            assert files == {"manifest.json", "report/index.html"}
            assert json.loads(repository.read_manifest(names[0]).to_json())["version"] == names[0]
    assert interrupted >= 4  # one step for each removed file


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


@pytest.mark.parametrize("is_removed", [False, True])
def test_current_version_among_the_removed_is_restored(repository, versions, is_removed):
    """As after a killed removal; not if its files are gone already."""
    if is_removed:
        repository.retire(versions[0])
    else:
        (repository.folder / ".retired").mkdir()
        (repository.folder / versions[0]).rename(repository.folder / ".retired" / versions[0])
    repository.set_current(versions[0])
    repository.finish_retiring()
    assert repository.versions() == (versions[1:] if is_removed else versions)
    with pytest.raises(VersionNotFound, match="was removed") if is_removed else nullcontext():
        repository.open(repository.current()).verify()
