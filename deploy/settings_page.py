"""Writes the tables of docs/settings.md from the declarations in the code: python -m deploy.settings_page."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import click

import server.__main__
import trainer.__main__
from contract.commands import Command, click_parameter
from contract.settings import PREFIX, SharedSettings, field_docstring, format_default
from server.settings import Settings
from trainer.settings import Environment

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "settings.md"

_COMMANDS: Final[Mapping[str, Mapping[str, Command]]] = {
    "trainer": trainer.__main__.COMMANDS,
    "server": server.__main__.COMMANDS,
}
_OWN_OPTIONS: Final = "options"
"""The heading of options that belong to one command only."""
_NO_DEFAULT: Final = "not set"
_SHARED: Final = tuple(item.name for item in fields(SharedSettings))


@dataclass(frozen=True, slots=True)
class OptionRow:
    """The row of an option or positional argument."""

    usage: str
    """For example `--keep N`."""
    default: str
    """Empty if there is none."""
    about: str


def option_rows(kind: type, *, excluded: Sequence[str] = ()) -> Iterator[OptionRow]:
    """Yield a row for each field of a class of options."""
    for name, info in kind.__pydantic_fields__.items():  # type: ignore[attr-defined]  # of pydantic's dataclasses
        if name in excluded:
            continue
        parameter = click_parameter(name, info, "")
        value = "|".join(parameter.type.choices) if isinstance(parameter.type, click.Choice) else parameter.metavar
        names = "/".join([parameter.opts[0], *parameter.secondary_opts])
        usage = f"{names} {value or ''}".strip() if isinstance(parameter, click.Option) else name.upper()
        about, default = (
            field_docstring(kind, name),
            format_default(info.default) or ("off" if info.annotation is bool else ""),
        )
        if parameter.required:
            default = "required"
        elif default and info.annotation is not bool:
            default = f"`{default}`"
        elif match := re.search(r" \(default: (.*?)\)(?=\.)", about):
            about, default = about.replace(match[0], ""), match[1]
        yield OptionRow(usage, default, about)


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def render(page: str) -> str:
    """Return the page with new tables; the text before the tables of each section is kept.

    Raises:
        ValueError: if the page lacks a section, or one has no table.
    """
    variables = {"Both": (SharedSettings, ()), "Server": (Settings, _SHARED), "Trainer": (Environment, _SHARED)}
    sections = {title: _variables(kind, without=shared) for title, (kind, shared) in variables.items()}
    for title, tables in {**sections, "Command line": "\n\n".join(_commands())}.items():
        matches = list(re.finditer(rf"(?ms)^(## {title}\n.*?)^\|.*?(?=^## |\Z)", page))
        if len(matches) != 1:
            raise ValueError(f"{PAGE.name} needs one section '## {title}' with a table in it, found {len(matches)}")
        page = f"{page[: matches[0].end(1)]}{tables}\n\n{page[matches[0].end() :]}"
    return page.rstrip() + "\n"


def _variables(kind: Any, *, without: Sequence[str]) -> str:
    rows = [
        (
            f"`{PREFIX}{name.upper()}`",
            f"`{text}`" if (text := format_default(info.default)) else _NO_DEFAULT,
            field_docstring(kind, name),
        )
        for name, info in kind.__pydantic_fields__.items()
        if name not in without
    ]
    return _table(("variable", "default", "meaning"), rows)


def _commands() -> Iterator[str]:
    """Yield the table of commands, then a headed table for each group of options."""
    named = [(f"{program} {name}", each) for program, commands in _COMMANDS.items() for name, each in commands.items()]
    groups: dict[str, Any] = {}
    for name, command in named:
        for heading, kind in command.groups.items():
            groups.setdefault(_title(name, heading), kind)
    overview = [
        (f"`{name}`", command.help, ", ".join(_link_groups(name, command, groups)) or "none") for name, command in named
    ]
    yield _table(("command", "what it does", "options"), overview)
    for title, kind in groups.items():
        rows = [
            (f"`{each.usage}`".replace("|", r"\|"), each.default or _NO_DEFAULT, each.about)
            for each in option_rows(kind)
        ]
        yield f"### {title}\n\n{_table(('option', 'default', 'meaning'), rows)}"


def _link_groups(name: str, command: Command, groups: Mapping[str, Any]) -> Iterator[str]:
    """Yield links to a command's groups of options, with the options of each group that the command lacks."""
    own = {option for kind in command.groups.values() for option in _names(kind, command.excluded)}
    for heading in command.groups:
        title = _title(name, heading)
        missing = [f"`{option}`" for option in _names(groups[title]) if option not in own]
        link = f"[{heading}](#{title.lower().replace(' ', '-')})"
        yield f"{link} but {', '.join(missing)}" if missing else link


def _names(kind: Any, excluded: Sequence[str] = ()) -> list[str]:
    return [each.usage.split()[0] for each in option_rows(kind, excluded=excluded)]


def _title(name: str, heading: str) -> str:
    return name if heading == _OWN_OPTIONS else heading.capitalize()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    main()
