import io
import re

from rich.console import Console

from demo.screen import Screen


def test_output_to_a_file_has_a_plain_line_for_each_step():
    """Without colours, progress bars and line breaks."""
    written = io.StringIO()
    screen = Screen(Console(file=written, highlight=False, soft_wrap=True, width=40))
    with screen.step("Images", "downloading") as step:
        step.update("unpacking")
        step.outcome = "656 drawings [of the package] with a name that is long enough to be broken elsewhere"
    screen.detail("food 333")
    lines = written.getvalue().splitlines()
    assert re.fullmatch(r". Images +656 drawings \[of the package\] with a name that is .* elsewhere  0 s", lines[0])
    assert lines[1].strip() == "food 333"
    assert len(lines) == 2


def test_a_terminal_shows_the_current_step():
    written = io.StringIO()
    screen = Screen(Console(file=written, force_terminal=True, width=100, color_system=None))
    with screen.step("Round 1", "training on 80 labels"):
        pass
    assert "training on 80 labels" in written.getvalue()
    assert "Round 1" in written.getvalue().splitlines()[-1]
