"""A publisher that is killed at any step leaves a repository that readers can use."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from contract.versions.repository import Repository
from tests.versions import publish

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PUBLISH = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from contract.versions.repository import Repository
from tests.versions import manifest, write_files

root, step = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def kill_at_step(event, arguments):
    global calls
    if not event.startswith(("open", "os.", "shutil.")) or str(root) not in str(arguments):
        return
    calls += 1
    if calls == step:
        os.kill(os.getpid(), signal.SIGKILL)

real_fsync = os.fsync
os.fsync = lambda descriptor: (kill_at_step("os.fsync", root), real_fsync(descriptor))
sys.addaudithook(kill_at_step)
with Repository(root).stage(datetime.now(UTC)) as staged:
    write_files(staged.path, b"second")
    (staged.path / "backbone.int8.onnx").write_bytes(b"shared")
    staged.publish(manifest(staged.version))
"""


def test_publisher_killed_at_each_step_never_leaves_a_torn_version(tmp_path):
    """Killed before any call that touches the repository, the publisher leaves readers a whole version.

    Among the calls is the one that links the file which both versions have.
    """
    killed, step, done = 0, 0, False
    while not done:
        step += 1
        root = tmp_path / str(step)
        first = publish(Repository(root), b"first", int8=b"shared").name
        process = subprocess.run([sys.executable, "-c", PUBLISH, str(root), str(step)], cwd=ROOT, check=False)
        done = process.returncode == 0
        killed += process.returncode == -signal.SIGKILL
        repository = Repository(root)
        current = repository.open(repository.current())
        current.verify()
        content = (current.path / "model.onnx").read_bytes()
        assert content == (b"first" if current.name == first else b"second")
        for name in repository.versions():
            repository.open(name).verify()
    assert content == b"second"
    assert current.int8_backbone_path.stat().st_nlink == 2
    assert killed == step - 1
    assert killed > 20  # the hook did see the steps


def test_next_publisher_clears_what_a_killed_one_left(tmp_path):
    """Staging folders of the dead are removed, and the new version is published."""
    repository = Repository(tmp_path)
    publish(repository, b"first")
    (repository.folder / ".staging-20260101T000000000Z-000000").mkdir()
    version = publish(repository, b"second")
    assert repository.current() == version.name
    assert not list(repository.folder.glob(".staging-*"))
