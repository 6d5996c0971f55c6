"""What a person sees while the demo runs."""

from __future__ import annotations

import io
import re

from rich.console import Console

from demo.screen import Screen


def test_a_log_has_a_plain_line_for_each_step():
    """Where nobody watches there are neither colours nor bars, and long lines are not broken."""
    written = io.StringIO()
    screen = Screen(Console(file=written, highlight=False, soft_wrap=True, width=40))
    with screen.step("Images", "downloading") as step:
        step.say("unpacking")
        step.outcome = "656 drawings [of the package] with a name that is long enough to be broken elsewhere"
    screen.say("food 333")
    lines = written.getvalue().splitlines()
    assert re.fullmatch(r". Images +656 drawings \[of the package\] with a name that is .* elsewhere  0 s", lines[0])
    assert lines[1].strip() == "food 333"
    assert len(lines) == 2


def test_a_terminal_shows_what_is_at_work():
    """Where somebody watches, the step that is at work says what it does until it has ended."""
    written = io.StringIO()
    screen = Screen(Console(file=written, force_terminal=True, width=100, color_system=None))
    with screen.step("Round 1", "training on 80 labels"):
        pass
    assert "training on 80 labels" in written.getvalue()
    assert "Round 1" in written.getvalue().splitlines()[-1]


def test_figures_stand_under_their_columns():
    """A row for each figure, a column for each way of choosing."""
    written = io.StringIO()
    Screen(Console(file=written, width=100)).table("What it was worth", ["ours", "random"], {"right": ["95%", "90%"]})
    assert [line.split() for line in written.getvalue().split("\n") if line.strip()] == [
        ["What", "it", "was", "worth"],
        ["ours", "random"],
        ["right", "95%", "90%"],
    ]
