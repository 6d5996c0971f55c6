from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic.dataclasses import dataclass

from contract.commands import Command, Option, parse
from contract.settings import DECLARED, Count, Url, parsed, split


@dataclass(frozen=True, config=DECLARED)
class Base:
    many: Count = 3
    """How many
    of them."""
    folder: Path | None = None
    """Where `they` are (default: here)."""


@dataclass(frozen=True, config=DECLARED)
class Options(Base):
    names: Annotated[tuple[str, ...], parsed(split), Option("--name")] = ()
    """Of each."""
    kind: Annotated[str, Option(choices=("a", "b"))] = "a"
    """Which."""
    where: Annotated[str | None, Option(repeat_error="go twice")] = None
    link: Url | None = None
    """Where."""
    dry: bool = False
    """Do nothing."""
    loud: bool = True
    """Say so."""
    most: Count | Literal["all"] = "all"
    """At most."""


@dataclass(frozen=True, config=DECLARED)
class Other:
    place: Annotated[str, Option(argument=True)]
    many: int = 7
    """Another."""


COMMANDS = {
    "do": Command(print, "Do it.", {"these": Options}, excluded=("folder",)),
    "both": Command(print, "Do both.", {"these": Options, "those": Other}),
}


def parse_arguments(*arguments):
    return parse("program", COMMANDS, arguments, about="Does.", renamed={"--nome": "--name"})


def test_options_set_the_fields_of_all_classes():
    assert parse_arguments("both", "here") == (COMMANDS["both"], [Options(), Other("here")])
    arguments = ("--many", "5", "--name=-x,y", "--folder", "f", "--kind", "b", "--dry", "--no-loud")
    options = Options(5, Path("f"), ("-x", "y"), "b", dry=True, loud=False)
    assert parse_arguments("both", *arguments, "here")[1] == [options, Other("here", 5)]
    assert parse_arguments("do", "--loud")[1] == [Options()]


def test_values_from_a_dictionary():
    options = Options(5, names=("x",), dry=True)
    assert COMMANDS["do"].values(asdict(options)) == [options]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["do", "--many", "0"], "'--many': must be greater than or equal to 1, got '0'"),
        (["do", "--many", "x"], "'--many': must be a whole number, got 'x'"),
        (["do", "--most", "none"], "'--most': must be a whole number or 'all', got 'none'"),
        (["do", "--kind", "c"], "'c' is not one of 'a', 'b'"),
        (["do", "--folder", "f"], "No such option '--folder'"),
        (["do", "--link", "http://u:s3cret@h"], "got one with a password"),
        (["do", "--nome", "f"], "--nome is now called --name"),
        (["do", "--where", "a", "--where", "b"], "--where may be given once only: go twice"),
        (["both"], "Missing argument 'PLACE'"),
        (["undo"], "No such command 'undo'"),
    ],
)
def test_errors_are_shown_with_the_usage(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(*arguments)
    error = capsys.readouterr().err
    assert message in error
    assert "s3cret" not in error
    assert error.startswith("Usage: program ")


def test_help(capsys):
    """Options are below the heading of their class, with defaults and inherited docstrings."""
    with pytest.raises(SystemExit, match="0"):
        parse_arguments("both", "--help")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines.index(["these:"]) < lines.index(["--many", "N", "How", "many", "of", "them", "(default:", "3)"])
    assert ["--folder", "PATH", "Where", "they", "are", "(default:", "here)"] in lines
    assert ["--kind", "[a|b]", "Which", "(default:", "a)"] in lines
    assert ["--dry", "Do", "nothing"] in lines
    assert ["--loud", "/", "--no-loud", "Say", "so", "(default:", "on)"] in lines
    assert lines.index(["those:"]) < lines.index(["PLACE"])
