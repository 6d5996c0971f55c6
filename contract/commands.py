"""Command lines made from dataclasses: each field of a command's classes is an option.

The field's name, type, default and docstring are those of the option. Errors in the usage exit with status 2.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import click
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from contract.settings import explain_errors, field_docstring, format_default, quote

_WIDTH: Final = 110


@dataclass(frozen=True, slots=True)
class Option:
    """Properties of an option beyond its field's type and docstring; one of the annotations of the type."""

    name: str | None = None
    """Such as `--train`; by default made from the field's name."""
    metavar: str | None = None
    choices: Sequence[str] = ()
    argument: bool = False
    """Whether it is a positional argument."""
    repeat_error: str = ""
    """The error if it is given again; without one, the last value counts."""
    multiple: bool = False
    """Whether it may be repeated; the values, which are tuples, are concatenated."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a command line."""

    run: Callable[..., int | None]
    help: str
    groups: Mapping[str, Any] = field(default_factory=dict)
    """Heading in the usage to the class whose fields are listed below it; an option of two classes is listed once."""
    excluded: Sequence[str] = ()
    """Fields that are no options of this command."""
    epilog: str | None = None
    interrupted: str = "nothing was changed"
    """Message after an interruption."""

    def values(self, options: Mapping[str, Any]) -> list[Any]:
        """Return an instance of each class, made of these options; ValidationError if one rejects a value."""
        return [
            kind(**{item.name: options[item.name] for item in fields(kind) if item.name in options})
            for kind in self.groups.values()
        ]


def parse(
    program: str,
    commands: Mapping[str, Command],
    arguments: Sequence[str] | None = None,
    *,
    about: str,
    renamed: Mapping[str, str] | None = None,
) -> tuple[Command, list[Any]]:
    """Return the command and the instances of its classes; SystemExit after --help or an error in the usage.

    Args:
        program: the beginning of the command line, for the usage.
        commands: the commands by name.
        arguments: by default those of the process.
        about: what the program does, for the usage.
        renamed: former names of options to their names.
    """
    group = _Group(help=about, commands={name: _ClickCommand(name, command) for name, command in commands.items()})
    try:
        parsed = group.main(arguments, program, standalone_mode=False, max_content_width=_WIDTH)
    except click.ClickException as err:
        shown = err
        if isinstance(err, click.NoSuchOption) and (now := (renamed or {}).get(err.option_name)):
            shown = click.UsageError(f"{err.option_name} is now called {now}", err.ctx)
        shown.show()
        sys.exit(shown.exit_code)
    if isinstance(parsed, int):
        sys.exit(parsed)
    return parsed  # type: ignore[no-any-return]  # the result of `_ClickCommand._call`


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class _ClickCommand(click.Command):
    """A click command that returns a command and the instances of its classes."""

    def __init__(self, name: str, command: Command) -> None:
        options = {
            item: (title, info, field_docstring(kind, item))
            for title, kind in reversed(list(command.groups.items()))
            for item, info in kind.__pydantic_fields__.items()
            if item not in command.excluded
        }
        self._command = command
        self._titles = {item: title for item, (title, *_) in options.items()}
        parameters = [click_parameter(item, info, about) for item, (_, info, about) in options.items()]
        super().__init__(
            name,
            callback=self._call,
            params=parameters,
            help=command.help,
            short_help=command.help,
            epilog=command.epilog,
        )

    def _call(self, **options: Any) -> tuple[Command, list[Any]]:
        values = {name: value for name, value in options.items() if value is not None}
        try:
            return self._command, self._command.values(values)
        except ValidationError as err:
            raise click.UsageError("; ".join(expected for _, expected in explain_errors(err))) from err

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options below the headings of their classes."""
        records = [(self._titles.get(each.name or ""), each.get_help_record(ctx)) for each in self.get_params(ctx)]
        for title in (*self._command.groups, None):
            if below := [record for heading, record in records if heading == title and record]:
                with formatter.section(title or "other"):
                    formatter.write_dl(below)


class _FieldType(click.ParamType[Any]):
    """The type of a field, as a click type."""

    def __init__(self, info: FieldInfo) -> None:
        self._type: Any = Annotated[(info.annotation, Option(), *info.metadata)]  # Annotated needs at least one
        self.name = _metavar(info)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the validated value."""
        try:
            return TypeAdapter(self._type).validate_python(value)
        except ValidationError as err:
            self.fail(f"must be {' or '.join(each for _, each in explain_errors(err))}, got {quote(value)}", param, ctx)


def click_parameter(name: str, info: FieldInfo, about: str) -> click.Parameter:
    """Return a field as an option or argument of click, with `about` as its help."""
    option = next((each for each in info.metadata if isinstance(each, Option)), Option())
    kind = click.Choice(option.choices) if option.choices else _FieldType(info)
    required = info.is_required()
    if option.argument:
        return click.Argument([name], type=kind, required=required)
    switch = info.annotation is bool
    spelled = option.name or f"--{name.replace('_', '-')}"
    return click.Option(
        [f"{spelled}/--no-{spelled[2:]}" if info.default is True else spelled, name],
        type=None if switch else kind,
        is_flag=switch or None,  # with False, click would take --control=-x for a switch
        multiple=bool(option.repeat_error) or option.multiple,
        callback=_single(option.repeat_error) if option.repeat_error else _join if option.multiple else None,
        required=required,
        default=None,  # the field has the default
        metavar=None if switch or option.choices else option.metavar or _metavar(info).upper(),
        help=_help(info, about),
    )


def _single(repeat_error: str) -> Callable[[click.Context, click.Parameter, tuple[Any, ...]], Any]:
    def get_single(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
        if len(values) > 1:
            raise click.UsageError(f"{param.opts[0]} may be given once only: {repeat_error}", ctx)
        return values[0] if values else None

    return get_single


def _join(_: click.Context, __: click.Parameter, values: tuple[tuple[Any, ...], ...]) -> tuple[Any, ...] | None:
    """Concatenate the values of a repeated option; None without a value."""
    return tuple(chain.from_iterable(values)) or None


def _metavar(info: FieldInfo) -> str:
    kinds = set(_types_in(info.annotation))
    return "n" if int in kinds else "path" if Path in kinds else "text"


def _types_in(annotation: Any) -> Iterator[Any]:
    """Yield the types that an optional or annotated type consists of."""
    yield getattr(annotation, "__origin__", annotation)
    for each in get_args(annotation):
        yield from _types_in(each)


def _help(info: FieldInfo, about: str) -> str:
    about = re.sub(r" \(\[[^]]*\]\([^)]*\)\)", "", about)  # a terminal has no links
    default = "" if info.is_required() else format_default(info.default)
    return f"{about.replace('`', '').removesuffix('.')}{default and f' (default: {default})'}"
