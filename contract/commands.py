"""A command line that is declared: a command takes values of some classes, and the fields of these are its options.

A field's name, type, default and docstring are those of its option, so that none of them is written down twice. Errors
in the usage end the process with status 2.
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

from contract.settings import describe, explain, quote, written

_WIDTH: Final = 110


@dataclass(frozen=True, slots=True)
class Option:
    """What a field leaves open of its option; stands among the annotations of its type."""

    name: str | None = None
    """Such as `--train`; by default the field's name."""
    metavar: str | None = None
    choices: Sequence[str] = ()
    argument: bool = False
    """Whether it is given by its place instead of its name."""
    once: str = ""
    """What is said if it is given again; by default the last one counts."""
    each: bool = False
    """Whether it may be given again; the values, which are tuples, then follow each other."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a command does, and with values of which classes."""

    do: Callable[..., int | None]
    help: str
    takes: Mapping[str, Any] = field(default_factory=dict)
    """A heading of the usage to the class whose options stand below it; where two share an option, the first has it."""
    without: Sequence[str] = ()
    """Fields that are no options here."""
    epilog: str | None = None
    interrupted: str = "nothing was changed"
    """What is said when it is interrupted."""

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """Return one value of each class; ValidationError if one does not allow what was given."""
        return [
            kind(**{item.name: given[item.name] for item in fields(kind) if item.name in given})
            for kind in self.takes.values()
        ]


@dataclass(frozen=True, slots=True)
class Declared:
    """An option, or what is given by its place, as people read of it."""

    usage: str
    """Such as `--keep N`."""
    default: str
    """Empty where there is none."""
    about: str


def declared(kind: type, *, without: Sequence[str] = ()) -> Iterator[Declared]:
    """Yield the options that the fields of a class are."""
    for name, info in kind.__pydantic_fields__.items():  # type: ignore[attr-defined]  # of pydantic's dataclasses
        if name in without:
            continue
        given = _parameter(name, info, "")
        value = "|".join(given.type.choices) if isinstance(given.type, click.Choice) else given.metavar
        names = "/".join([given.opts[0], *given.secondary_opts])
        usage = f"{names} {value or ''}".strip() if isinstance(given, click.Option) else name.upper()
        about, default = describe(kind, name), written(info.default) or ("off" if info.annotation is bool else "")
        if given.required:
            default = "required"
        elif default and info.annotation is not bool:
            default = f"`{default}`"
        elif said := re.search(r" \(default: (.*?)\)(?=\.)", about):
            about, default = about.replace(said[0], ""), said[1]
        yield Declared(usage, default, about)


def parse(
    program: str,
    commands: Mapping[str, Command],
    arguments: Sequence[str] | None = None,
    *,
    about: str,
    renamed: Mapping[str, str] | None = None,
) -> tuple[Command, list[Any]]:
    """Return the command that is asked for, and the values that it takes; SystemExit after the usage or an error in it.

    Args:
        program: how the command line begins.
        commands: by name.
        arguments: those of the process by default.
        about: what the program does, for its usage.
        renamed: options of old to what they are called now.
    """
    group = _Group(help=about, commands={name: _Parsed(name, command) for name, command in commands.items()})
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
    return parsed  # type: ignore[no-any-return]  # by a command's callback


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class _Parsed(click.Command):
    """A command as click has it, which returns the command and its values."""

    def __init__(self, name: str, command: Command) -> None:
        declared = {
            item: (title, info, describe(kind, item))
            for title, kind in reversed(list(command.takes.items()))
            for item, info in kind.__pydantic_fields__.items()
            if item not in command.without
        }
        self._command = command
        self._titles = {item: title for item, (title, *_) in declared.items()}
        parameters = [_parameter(item, info, about) for item, (_, info, about) in declared.items()]
        super().__init__(
            name,
            callback=self._call,
            params=parameters,
            help=command.help,
            short_help=command.help,
            epilog=command.epilog,
        )

    def _call(self, **given: Any) -> tuple[Command, list[Any]]:
        told = {name: value for name, value in given.items() if value is not None}
        try:
            return self._command, self._command.values(told)
        except ValidationError as err:
            raise click.UsageError("; ".join(expected for _, expected in explain(err))) from err

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of their classes."""
        records = [(self._titles.get(each.name or ""), each.get_help_record(ctx)) for each in self.get_params(ctx)]
        for title in (*self._command.takes, None):
            if below := [record for heading, record in records if heading == title and record]:
                with formatter.section(title or "other"):
                    formatter.write_dl(below)


class _Checked(click.ParamType[Any]):
    """A field's type, as a type of click's."""

    def __init__(self, info: FieldInfo) -> None:
        self._type: Any = Annotated[(info.annotation, Option(), *info.metadata)]  # of which there must be one
        self.name = _metavar(info)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what the field would hold."""
        try:
            return TypeAdapter(self._type).validate_python(value)
        except ValidationError as err:
            self.fail(f"must be {' or '.join(each for _, each in explain(err))}, got {quote(value)}", param, ctx)


def _parameter(name: str, info: FieldInfo, about: str) -> click.Parameter:
    option = next((each for each in info.metadata if isinstance(each, Option)), Option())
    kind = click.Choice(option.choices) if option.choices else _Checked(info)
    required = info.is_required()
    if option.argument:
        return click.Argument([name], type=kind, required=required)
    switch = info.annotation is bool
    spelled = option.name or f"--{name.replace('_', '-')}"
    return click.Option(
        [f"{spelled}/--no-{spelled[2:]}" if info.default is True else spelled, name],
        type=None if switch else kind,
        is_flag=switch or None,  # False would have click read an option out of --control=-x
        multiple=bool(option.once) or option.each,
        callback=_only(option.once) if option.once else _join if option.each else None,
        required=required,
        default=None,  # what is not given is for the field to say
        metavar=None if switch or option.choices else option.metavar or _metavar(info).upper(),
        help=_help(info, about),
    )


def _only(otherwise: str) -> Callable[[click.Context, click.Parameter, tuple[Any, ...]], Any]:
    def take(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
        if len(values) > 1:
            raise click.UsageError(f"{param.opts[0]} may be given once only: {otherwise}", ctx)
        return values[0] if values else None

    return take


def _join(_: click.Context, __: click.Parameter, values: tuple[tuple[Any, ...], ...]) -> tuple[Any, ...] | None:
    """Make one value of all that an option was given; None where it was given none."""
    return tuple(chain.from_iterable(values)) or None


def _metavar(info: FieldInfo) -> str:
    kinds = set(_kinds(info.annotation))
    return "n" if int in kinds else "path" if Path in kinds else "text"


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types that a type is made of, in an optional one or under annotations."""
    yield getattr(annotation, "__origin__", annotation)
    for each in get_args(annotation):
        yield from _kinds(each)


def _help(info: FieldInfo, about: str) -> str:
    about = re.sub(r" \(\[[^]]*\]\([^)]*\)\)", "", about)  # a terminal has no links
    default = "" if info.is_required() else written(info.default)
    return f"{about.replace('`', '').removesuffix('.')}{default and f' (default: {default})'}"
