"""The demo as a command, on a small pool."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from demo.pool import write_digits
from demo.product import CHECKOUT

TRAINING = ("--weights", "none", "--epochs", "2", "--limit", "60", "--labelled", "30", "--round", "10")


@pytest.fixture
def demo(new_label_studio_data: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The running demo, on class folders (--images), with the data folder of an earlier run."""
    data, images = tmp_path / "demo", tmp_path / "images"
    shutil.copytree(new_label_studio_data, data / "label-studio")
    write_digits(images, counts=(40, 16, 8))
    command = [sys.executable, "-u", "-m", "demo", *TRAINING, "--data", str(data), "--images", str(images)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_the_demo_ranks_reports_serves_and_stops(demo: subprocess.Popen[str], tmp_path: Path):
    """It prints a report, keeps serving, and leaves no processes after SIGINT."""
    assert demo.stdout
    lines = []
    for line in demo.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    report = "".join(lines)
    assert "VGG-11 with random weights" in report
    assert len(re.findall(r"trained on (?:30|40) labels; \d+ of the first 10 are rare, at random \d", report)) == 2
    assert re.search(r"rare images labelled +\d+ of \d+ +\d+ of \d+", report)
    assert re.search(r"Label next +http://127\.0\.0\.1:\d+/projects/\d+/data\?tab=\d+\n", report)
    [page] = re.findall(r"Comparison +file://(\S+)", report)
    assert Path(page).read_text(encoding="utf-8").count("<img") == 24 + 20 + 24
    [label_studio] = set(re.findall(r"http://127\.0\.0\.1:\d+(?=/projects/)", report))
    assert urllib3.request("GET", f"{label_studio}/health", retries=False).status == 200

    demo.send_signal(signal.SIGINT)
    assert demo.wait(timeout=60) == 0
    with pytest.raises(urllib3.exceptions.HTTPError):
        urllib3.request("GET", f"{label_studio}/health", retries=False)
    assert _processes_that_mention(tmp_path / "demo") == []


def test_the_demo_reports_a_folder_without_classes(tmp_path: Path):
    command = [sys.executable, "-m", "demo", "--once", "--weights", "none", "--images", str(tmp_path)]
    done = subprocess.run(
        [*command, "--data", str(tmp_path / "data")], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"expected two or more class folders with images in {tmp_path}, found 0" in done.stderr


def _processes_that_mention(data: Path) -> list[str]:
    """Return the command lines of processes whose environment contains the demo's folder."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(data).encode() in (process / "environ").read_bytes() and process.name != str(os.getpid()):
                commands.append((process / "cmdline").read_text())
        except OSError:
            continue  # the process has ended
    return commands
