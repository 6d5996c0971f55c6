import os
import pty
import re
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest

from trainer import progress_bar, stages
from trainer.progress_bar import Bar
from trainer.stages import collect_stages, stage
from trainer.study import workers

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"images: (\d+)/200 \((\d+)%\), +[\d.]+image/s, \d\d:\d\d left, loss=0\.1")


@pytest.fixture
def _often(monkeypatch):
    for module in (progress_bar, stages):
        monkeypatch.setattr(module, "LINE_INTERVAL_S", 0.02)


def count():
    with Bar(total=200, desc="images", unit="image") as bar:
        for _ in range(200):
            bar.set_postfix(loss=0.1, refresh=False)
            time.sleep(0.001)
            bar.update()


@pytest.mark.usefixtures("_often")
def test_without_a_terminal_progress_is_written_as_lines(capsys):
    count()
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert "\r" not in said
    assert said.endswith("\n")
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches), lines
    done = [int(match[1]) for match in matches]
    assert done == sorted(set(done))
    assert done[-1] == 200
    assert 2 <= len(lines) < 100  # of 200 images


@pytest.mark.slow
def test_workers_of_a_study_show_no_progress():
    program = "from trainer.progress_bar import Bar; list(Bar(range(3)))"
    with workers._without_bars_in_workers():
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    assert done.stderr == b""


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (24, 100))
    with monkeypatch.context() as patch, os.fdopen(there, "w") as terminal:
        patch.setattr(sys, "stderr", terminal)
        count()
    drawn = b""
    with suppress(OSError):  # closed with its last program
        while part := os.read(here, 1 << 16):
            drawn += part
    os.close(here)
    assert b"\r" in drawn
    assert b"100%|" in drawn


def test_a_nested_bar_shows_nothing(capsys):
    """Otherwise each part of a task would write a line of 100 %."""
    with Bar(total=2, desc="whole") as whole:
        for _ in range(2):
            with Bar(total=1, desc="part") as part:
                part.update()
            whole.update()
    with Bar(total=1, desc="next") as after:
        after.update()
    assert re.findall(r"whole|part|next", capsys.readouterr().err) == ["whole", "next"]
    assert list(Bar(iter(range(3)), "rows")) == [0, 1, 2]
    assert re.fullmatch(r"rows: 3it \[00:00, .*it/s\]\n", capsys.readouterr().err)  # without total, no percentage


@pytest.mark.usefixtures("_often")
def test_a_stage_without_a_bar_writes_lines(capsys):
    with collect_stages(), stage("backbone"):
        time.sleep(0.1)
        with stage("export"):
            time.sleep(0.1)
        with Bar(total=20, desc="weights", unit="B") as bar:
            for _ in range(20):
                time.sleep(0.005)
                bar.update()
    with collect_stages(), stage("soon over"):
        pass
    text = capsys.readouterr().err
    said = [line.partition(":")[0] for line in text.splitlines()]
    assert list(dict.fromkeys(said)) == ["backbone", "export", "weights"]
    within = said[said.index("export") : len(said) - said[::-1].index("export")]
    assert set(within) == {"export"}
    assert re.search(r"^export: \d+ s$", text, re.MULTILINE)
