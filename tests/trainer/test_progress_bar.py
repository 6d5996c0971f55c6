import os
import pty
import re
import subprocess
import sys
import termios
import time
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import pytest

from trainer import progress_bar, stages
from trainer.progress_bar import Bar
from trainer.stages import collect_stages, stage
from trainer.study import workers

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"images: (\d+)/200 \((\d+)%\), +[\d.]+image/s, \d\d:\d\d left, loss=0\.1")


@pytest.fixture
def _short_interval(monkeypatch):
    for module in (progress_bar, stages):
        monkeypatch.setattr(module, "LINE_INTERVAL_S", 0.02)


def count_to_200():
    with Bar(total=200, desc="images", unit="image") as bar:
        for _ in range(200):
            bar.set_postfix(loss=0.1, refresh=False)
            time.sleep(0.001)
            bar.update()


@pytest.mark.usefixtures("_short_interval")
def test_writes_lines_without_a_terminal(capsys):
    count_to_200()
    output = capsys.readouterr().err
    assert "\r" not in output
    assert output.endswith("\n")
    matches = [LINE.fullmatch(line) for line in output.splitlines()]
    assert all(matches), output
    counts = [int(match[1]) for match in matches]
    assert counts == sorted(set(counts))
    assert counts[-1] == 200
    assert 2 <= len(counts) < 100


@pytest.mark.slow
def test_workers_of_a_study_show_no_bars():
    program = "from trainer.progress_bar import Bar; list(Bar(range(3)))"
    with workers._without_bars_in_workers():
        worker = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    assert worker.stderr == b""


def test_draws_a_bar_on_a_terminal(monkeypatch):
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with monkeypatch.context() as patch, os.fdopen(terminal, "w") as stderr:
        patch.setattr(sys, "stderr", stderr)
        count_to_200()
    output = b""
    with suppress(OSError):  # raised at the end of the output
        while chunk := os.read(controller, 1 << 16):
            output += chunk
    os.close(controller)
    assert b"\r" in output
    assert b"100%|" in output


def test_nested_bars_show_nothing(capsys):
    with Bar(total=2, desc="outer") as outer:
        for _ in range(2):
            with Bar(total=1, desc="inner") as inner:
                inner.update()
            outer.update()
    with Bar(total=1, desc="next") as following:
        following.update()
    assert re.findall(r"outer|inner|next", capsys.readouterr().err) == ["outer", "next"]


def test_bar_without_total_shows_no_percentage(capsys):
    assert list(Bar(iter(range(3)), "rows")) == [0, 1, 2]
    assert re.fullmatch(r"rows: 3it \[00:00, .*it/s\]\n", capsys.readouterr().err)


@pytest.mark.usefixtures("_short_interval")
def test_stages_without_a_bar_write_lines(capsys):
    with collect_stages(), stage("backbone"):
        time.sleep(0.1)
        with stage("export"):
            time.sleep(0.1)
        with Bar(total=20, desc="weights", unit="B") as bar:
            for _ in range(20):
                time.sleep(0.005)
                bar.update()
    with collect_stages(), stage("short"):
        pass
    output = capsys.readouterr().err
    titles = [line.partition(":")[0] for line in output.splitlines()]
    assert list(dict.fromkeys(titles)) == ["backbone", "export", "weights"]
    assert [title for title, _ in groupby(titles)].count("export") == 1  # the outer stage is silent meanwhile
    assert re.search(r"^export: \d+ s$", output, re.MULTILINE)
