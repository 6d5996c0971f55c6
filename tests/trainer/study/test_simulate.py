import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.harness.serving import wait_until
from contract.errors import TrainingError
from tests.trainer.report.pages import Page
from tests.trainer.small import write_folders
from trainer.__main__ import main
from trainer.study import simulate as simulate_module
from trainer.study.run import Run
from trainer.study.simulate import find_minority
from trainer.watching.processes import LABELS_AT_FAULT

CHECKOUT = Path(__file__).parents[3]
SMALL = (
    "--train classifier --weights none --backbone vgg11 --image-size 32 --units 8 --epochs 2 --passes 4 --device cpu"
)
STUDY = "--strategies random,labelnext --seeds 2 --initial 12 --query 1 --rounds 24 --workers 2"
"""Many rounds, so that the study is still running when the test kills it, even on a busy machine."""
ALL_ROUNDS = 2 * 2 * 25
FILES = {f"{strategy}-{seed}.jsonl" for strategy in ("random", "labelnext") for seed in (0, 1)}
SECONDS = ("train_s", "score_s", "choose_s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty images, 45 of them in the pool."""
    return write_folders(tmp_path_factory.mktemp("images") / "colours.v2", each=20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "images"


@pytest.fixture(scope="module")
def start_study(folder, cache):
    """Start the command in a separate process; its output goes to files next to the study."""
    processes, environment = [], {**os.environ, "LABELNEXT_CACHE": str(cache)}

    def start(out):
        command = f"{sys.executable} -m trainer simulate --images={folder} --out {out} {STUDY} {SMALL}".split()
        with out.with_suffix(".out").open("w") as stdout, out.with_suffix(".err").open("w") as stderr:
            processes.append(subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=stdout, stderr=stderr))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def wait_for_exit(process, out):
    """Return the exit status of a process, and the lines of its stdout and stderr."""
    status = process.wait(300)
    return status, out.with_suffix(".out").read_text().splitlines(), out.with_suffix(".err").read_text().splitlines()


@pytest.fixture(scope="module")
def uninterrupted(start_study, tmp_path_factory):
    """An uninterrupted study, with its exit status and output."""
    out = tmp_path_factory.mktemp("uninterrupted") / "study"
    return out, wait_for_exit(start_study(out), out)


@pytest.fixture
def simulate(folder, cache, monkeypatch):
    """Run the command in this process."""
    monkeypatch.setenv("LABELNEXT_CACHE", str(cache))
    return lambda out, *more: main(
        ["simulate", f"--images={folder}", "--out", str(out), *f"{STUDY} {SMALL}".split(), *more]
    )


def rounds_without_seconds(out):
    with (out / "rounds.csv").open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name not in SECONDS} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestEndToEnd:
    def test_prints_json_and_writes_a_report(self, uninterrupted):
        out, (status, stdout, err) = uninterrupted
        assert status == 0, err
        (line,) = stdout
        assert json.loads(line) == json.loads((out / "summary.json").read_text())
        assert [*json.loads(line)] == ["random", "labelnext"]
        assert "2 strategies, 2 seeds; 12 initial labels, then 24 rounds of 1; 45 images of 3 classes" in "\n".join(err)
        assert "Traceback" not in "\n".join(err)
        assert len(rounds_without_seconds(out)) == ALL_ROUNDS
        assert {path.name for path in (out / "chains").iterdir()} == FILES
        page = Page(out / "report.html")
        assert "Which strategy saves labels? colours.v2" in page.words
        assert "a pool of 45 images of 3 classes (15 to 15 each)" in page.words

    def test_files_contain_no_local_paths(self, uninterrupted, folder):
        """The command in the settings has file names only."""
        out = uninterrupted[0]
        for path in [*out.glob("*.*"), *out.glob("chains/*")]:
            content = path.read_bytes()
            for place in (out.parent, folder.parent, CHECKOUT, sys.prefix, Path.home()):
                assert os.fsencode(place) + b"/" not in content, path
        command = json.loads((out / "settings.json").read_text())["command"]
        assert command.startswith("python -m trainer simulate --images=colours.v2 --out study --strategies random,")

    def test_killed_study_leaves_no_process_and_resumes(self, uninterrupted, start_study, tmp_path):
        """After SIGKILL and SIGTERM, the rounds equal those of an uninterrupted study, except for seconds."""
        out = tmp_path / "study"
        for number, expected in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)):
            process = start_study(out)
            status, stdout, stderr = wait_for_exit(kill_midway(process, out, number), out)
            assert (status, stdout) == (expected, [])
        assert not any("leaked" in line for line in stderr)
        assert 0 < count_rounds(out) < ALL_ROUNDS
        assert wait_for_exit(start_study(out), out)[0] == 0
        assert rounds_without_seconds(out) == rounds_without_seconds(uninterrupted[0])


def kill_midway(process, out, number):
    """Kill a study after one more round, check that its workers end, and return its process."""
    before = count_rounds(out)
    wait_until(lambda: count_rounds(out) > before or process.poll() is not None, "another round", timeout_s=300)
    assert process.poll() is None, out.with_suffix(".err").read_text()
    workers = descendants(process.pid)
    assert len(workers) > 2
    os.kill(process.pid, number)
    process.wait(60)
    wait_until(lambda: not any(map(is_running, workers)), "the workers to end", timeout_s=10)
    return process


def count_rounds(out):
    return sum(path.read_bytes().count(b"\n") for path in (out / "chains").glob("*.jsonl"))


def descendants(process):
    children = [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]


def is_running(process):
    """Whether a process is running, and not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--initial", "40"], "expected at least 64 images for 40 labels and 24 rounds of 1, got 45; lower"),
        (["--long-tail", "15", "--initial", "15"], "at least 39 images for 15 labels and 24 rounds of 1, got 20"),
        (["--strategies", "random,bold"], "each once, got random, bold"),
        (["--weights", "nowhere.pth"], "--weights nowhere.pth: no such file"),
        (["--images", "nowhere"], "nowhere"),
    ],
)
def test_rejects_impossible_studies_before_computing(simulate, tmp_path, capsys, arguments, message):
    assert simulate(tmp_path / "study", *arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "features" not in err
    assert not (tmp_path / "study").exists()


@pytest.fixture
def diverging(monkeypatch):
    """A study whose first training fails."""

    def diverge(*args, **kwargs):
        raise TrainingError("diverged at learning rate 1: set a lower --learning-rate")

    monkeypatch.setattr(simulate_module, "complete_all", diverge)


@pytest.mark.slow
def test_folder_without_rounds_accepts_other_settings(diverging, simulate, tmp_path, capsys):
    for more in ([], ["--learning-rate", "0.01"]):
        assert simulate(tmp_path / "study", *more) == LABELS_AT_FAULT
        assert "set a lower --learning-rate" in capsys.readouterr().err
    assert json.loads((tmp_path / "study" / "settings.json").read_text())["learning_rate"] == 0.01
    assert not Run("random", 0, tmp_path / "study" / "chains" / "random-0.jsonl").read_rounds()


@pytest.mark.slow
def test_features_have_the_served_precision(diverging, simulate, tmp_path, monkeypatch):
    shapes = []
    monkeypatch.setattr(simulate_module, "compute_features", lambda *args, **options: tmp_path)
    monkeypatch.setattr(
        simulate_module,
        "choose_precision",
        lambda backbone, images: shapes.append(images.shape) or replace(backbone, precision="int8"),
    )
    for precision, expected in (("auto", "int8"), ("fp32", "fp32")):
        simulate(tmp_path / precision, "--precision", precision)
        assert json.loads((tmp_path / precision / "settings.json").read_text())["precision"] == expected
    assert shapes == [(45, 32, 32, 3)]


@pytest.mark.slow
def test_skips_and_logs_unreadable_images(simulate, diverging, tmp_path, capsys, caplog):
    folder = write_folders(tmp_path / "some", each=20)
    for path in sorted((folder / "red").iterdir())[:7]:
        path.write_bytes(b"no image")
    simulate(tmp_path / "study", "--images", str(folder))
    messages = [record.getMessage() for record in caplog.records if record.name == simulate_module.__name__]
    assert sum(each.startswith("skipped: red/") for each in messages) == 5
    assert "and 2 more" in messages
    assert json.loads((tmp_path / "study" / "settings.json").read_text())["unreadable"] == 7


def test_minority_is_the_rarest_third():
    assert find_minority(np.array([5, 1, 3, 9, 2, 7, 4])) == (1, 4)
    assert find_minority(np.array([4, 2])) == (1,)
