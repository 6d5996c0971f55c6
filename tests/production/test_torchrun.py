"""Training in several processes, started by torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from contract.versions.repository import Repository
from demo.pool import write_digits
from demo.processes import free_port, running
from tests.versions import publish

pytestmark = pytest.mark.rare

# Narrow hidden layers: what passes between the processes is then small beside what they compute.
NETWORK = ("--weights", "none", "--arch", "vgg11_bn", "--image-size", "32", "--units", "64")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
ON_ONE_MACHINE = (*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m")
ALONE = (sys.executable, "-m")
AGREEMENT = 0.1
"""Dropout differs, so two runs are two draws. Of the difference of two accuracies near 0.95 on 100 images the standard
deviation is at most 0.031, and this is three of them."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Forty images of each digit."""
    root = tmp_path_factory.mktemp("digits")
    write_digits(root, (40,) * 10)
    return root


def command(digits, *more, start=ON_ONE_MACHINE):
    return [*start, "trainer", "run", "--images", str(digits), *NETWORK, "--validation", "0.25", *more]


def environment(models):
    """One thread each, as torchrun has it: several that wait for each other crawl on a busy machine."""
    return {
        "LABELNEXT_MODELS": str(models),
        "LABELNEXT_CACHE": str(models.parent / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def train(models, digits, *more, start=ON_ONE_MACHINE):
    """Return the last line of a run, as JSON."""
    done = subprocess.run(
        command(digits, *more, start=start),
        env=os.environ | environment(models),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    (line,) = done.stdout.splitlines()
    return json.loads(line)


@pytest.mark.parametrize("part", ["all", "head"])
def test_two_processes_publish_one_version_as_good_as_that_of_one(tmp_path, digits, part):
    """Which passes the trainer's own check; only the first process speaks."""
    models = tmp_path / "models"
    epochs = {"all": "8", "head": "60"}[part]
    summary = train(models, digits, "--train", part, "--epochs", epochs)
    repository = Repository(models)
    assert repository.versions() == [repository.current()] == [summary["version"]]
    assert repository.open(summary["version"]).manifest.training["processes"] == 2
    subprocess.run([*ALONE, "trainer", "check"], env=os.environ | environment(models), check=True)
    alone = train(tmp_path / "alone", digits, "--train", part, "--epochs", epochs, start=ALONE)
    assert abs(summary["accuracy"] - alone["accuracy"]) <= AGREEMENT
    assert min(summary["accuracy"], alone["accuracy"]) > {"all": 0.8, "head": 0.5}[part]


def test_two_machines_train_together(tmp_path, digits):
    """Each with a torchrun of its own, which meet at an address; here both are this machine. The first publishes."""
    models, meeting = tmp_path / "models", ("--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    with ExitStack() as stack:
        nodes = []
        for node in ("0", "1"):
            start = (*TORCHRUN, "--nnodes", "2", "--node-rank", node, "--nproc-per-node", "1", *meeting, "-m")
            nodes.append(
                stack.enter_context(
                    running(
                        f"node {node}",
                        command(digits, "--epochs", "1", start=start),
                        log=tmp_path / f"{node}.log",
                        environment=environment(models if node == "0" else tmp_path / "none"),
                    )
                )
            )
        assert [node.popen.wait(600) for node in nodes] == [0, 0]
    assert len(Repository(models).versions()) == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run(tmp_path, digits, rank):
    """Within a minute; nothing is published, what is current stays current, and no process is left."""
    models, log = tmp_path / "models", tmp_path / "run.log"
    before = publish(Repository(models), b"earlier").name
    with running("run", command(digits, "--epochs", "9999"), log=log, environment=environment(models)) as run:
        wait_until(lambda: "loss=" in log.read_text())
        (victim,) = [pid for pid, variables in processes(models).items() if f"RANK={rank}" in variables]
        os.kill(victim, signal.SIGKILL)
        assert run.popen.wait(60) != 0
        wait_until(lambda: not processes(models), within_s=5)
    assert (Repository(models).current(), Repository(models).versions()) == (before, [before])
    assert [path.name for path in models.rglob("*") if path.name.startswith(".") and path.suffix != ".lock"] == []


def processes(models):
    """Return the variables of each process that was given this repository."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile, or is another user's
            continue
        if f"LABELNEXT_MODELS={models}" in variables:
            found[int(path.parent.name)] = variables
    return found


def wait_until(holds, *, within_s=300):
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)
