"""A publisher killed at any step leaves a valid repository."""

import subprocess
import sys
from pathlib import Path

from contract.versions.repository import Repository
from tests.versions import publish

ROOT = Path(__file__).parents[2]
PUBLISH = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from contract.versions.repository import Repository
from tests.versions import manifest, publish, write_files

def publish_and_die(root, step):
    calls = 0

    def kill_at_step(event, arguments):
        nonlocal calls
        if event.startswith(("open", "os.", "shutil.")) and str(root) in str(arguments):
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = lambda descriptor: kill_at_step("os.fsync", root)
    sys.addaudithook(kill_at_step)
    with Repository(root).stage(datetime.now(UTC)) as staged:
        write_files(staged.path, b"second")
        (staged.path / "backbone.int8.onnx").write_bytes(b"shared")
        staged.publish(manifest(staged.version))

os.fsync = lambda descriptor: None
step, status = 0, -signal.SIGKILL
while status == -signal.SIGKILL:
    step += 1
    root = Path(sys.argv[1], str(step))
    publish(Repository(root), b"first", int8=b"shared")
    if (child := os.fork()) == 0:
        publish_and_die(root, step)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(status)
"""
"""In each of the folders 1, 2, 3 and so on, publishes a version, then a second one in a process that is killed at the
step with the number of the folder, until there are no more steps."""


def test_a_publisher_killed_at_any_step_leaves_a_valid_version(tmp_path):
    """A step is a file-system call, such as a hard link. The next publisher removes staging folders."""
    subprocess.run([sys.executable, "-c", PUBLISH, tmp_path], cwd=ROOT, check=True)
    roots = sorted(tmp_path.iterdir(), key=lambda root: int(root.name))
    assert len(roots) > 20  # the audit hook saw the steps
    for root in roots:
        repository = Repository(root)
        first, *_ = repository.versions()
        current = repository.open(repository.current())
        content = (current.path / "model.onnx").read_bytes()
        assert content == (b"first" if current.name == first else b"second")
        for name in repository.versions():
            repository.open(name).verify()
    assert content == b"second"
    assert current.int8_backbone_path.stat().st_nlink == 2
    assert list(tmp_path.glob("*/default/.staging-*"))
    for root in roots:
        publish(Repository(root), b"third")
    assert not list(tmp_path.glob("*/default/.staging-*"))
