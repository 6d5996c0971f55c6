"""Progress: a bar on a terminal, and lines where none is."""

import os
import pty
import re
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from trainer.progress_bar import Bar
from trainer.study import workers

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"images: (\d+)/200 \((\d+)%\), +[\d.]+image/s, \d\d:\d\d left, loss=0\.1")
PROGRAM = """
import time
from trainer import progress_bar
progress_bar._SECONDS_A_LINE = 0.2
with progress_bar.Bar(total=200, desc="images", unit="image") as bar:
    for _ in range(200):
        bar.set_postfix(loss=0.1, refresh=False)
        time.sleep(0.005)
        bar.update()
"""


def run(**options):
    return subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, check=True, timeout=60, **options)


@pytest.mark.slow
def test_without_a_terminal_progress_is_a_line_now_and_then():
    """With the rate and the time left; none is drawn over, and the last says that all is done."""
    said = run(stderr=subprocess.PIPE).stderr.decode()
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
def test_workers_of_a_study_show_none():
    """The study itself tells how far all of them are."""
    with workers._silent_workers():
        assert run(stderr=subprocess.PIPE).stderr == b""


@pytest.mark.slow
def test_on_a_terminal_it_is_a_bar():
    """That is drawn over."""
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (24, 100))
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stderr=there):
        os.close(there)
        drawn = b""
        with suppress(OSError):  # the terminal is gone when its last program ends
            while part := os.read(here, 1 << 16):
                drawn += part
    os.close(here)
    assert b"\r" in drawn
    assert b"100%|" in drawn


def test_a_bar_within_another_one_shows_nothing(capsys):
    """Or a line would come for each part of a task, and say that all is done."""
    with Bar(total=2, desc="whole") as whole:
        for _ in range(2):
            with Bar(total=1, desc="part") as part:
                part.update()
            whole.update()
    with Bar(total=1, desc="next") as after:
        after.update()
    assert re.findall(r"whole|part|next", capsys.readouterr().err) == ["whole", "next"]


AT_WORK = """
import time
from trainer import progress_bar
from trainer.stages import Stages
progress_bar._SECONDS_A_LINE = 0.2
stages = Stages()
with stages.measure("backbone"):
    time.sleep(0.5)
    with stages.measure("export"):
        time.sleep(0.5)
    with progress_bar.Bar(total=20, desc="weights", unit="B") as bar:
        for _ in range(20):
            time.sleep(0.05)
            bar.update()
with stages.measure("soon over"):
    pass
"""


@pytest.mark.slow
def test_a_stage_that_cannot_be_counted_says_that_it_is_at_work():
    """The innermost alone, with the seconds so far, and only while no bar tells more."""
    done = subprocess.run([sys.executable, "-c", AT_WORK], cwd=ROOT, check=True, timeout=60, stderr=subprocess.PIPE)
    text = done.stderr.decode()
    said = [line.partition(":")[0] for line in text.splitlines()]
    assert list(dict.fromkeys(said)) == ["backbone", "export", "weights"]
    within = said[said.index("export") : len(said) - said[::-1].index("export")]
    assert set(within) == {"export"}
    assert re.search(r"^export: \d+ s$", text, re.MULTILINE)


def test_without_an_end_there_is_no_share_of_it(capsys):
    """Only how much and how fast."""
    for _ in Bar(iter(range(3)), "rows"):
        pass
    said = capsys.readouterr().err
    assert re.fullmatch(r"rows: 3it \[00:00, .*it/s\]\n", said)


def test_no_module_draws_bars_of_its_own():
    """A log would be filled by one that does."""
    sources = [path for folder in ("trainer", "bench", "demo", "server") for path in (ROOT / folder).rglob("*.py")]
    named = {path.relative_to(ROOT).as_posix() for path in sources if "from tqdm" in path.read_text(encoding="utf-8")}
    assert named == {"trainer/progress_bar.py"}
