"""The demo's output: a line with the duration of each step, and a table at the end.

A terminal shows a spinner for the running step; elsewhere, as in a container's log, a step is printed when it ends.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

_TITLE_COLUMNS = 14


@dataclass(slots=True)
class Step:
    """A running step."""

    _progress: Progress
    _task: TaskID
    outcome: str = ""
    """Printed when the step ends."""

    def update(self, activity: str) -> None:
        """Show the current activity of the step."""
        self._progress.update(self._task, activity=activity)


class Screen:
    """The terminal, or a file if output is redirected."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._plain = not self._console.is_terminal

    def title(self, text: str) -> None:
        """Print the title."""
        self._console.print(f"\n[bold]{escape(text)}[/]\n")

    @contextmanager
    def step(self, title: str, activity: str = "") -> Iterator[Step]:
        """Context manager for a running step; prints its outcome and duration in seconds at the end."""
        started = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn(f"{title:<{_TITLE_COLUMNS}}"),
            TextColumn("{task.fields[activity]}", style="dim"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True, disable=self._plain) as progress:
            step = Step(progress, progress.add_task("", total=None, activity=activity))
            yield step
        seconds = f"[dim]{time.monotonic() - started:.0f} s[/]"
        self._console.print(f"[green]{self._mark}[/] {title:<{_TITLE_COLUMNS}} {escape(step.outcome)}  {seconds}")

    def note(self, title: str, text: str) -> None:
        """Print a line in the layout of a step."""
        self._console.print(f"[green]{self._mark}[/] {title:<{_TITLE_COLUMNS}} {escape(text)}")

    def detail(self, text: str) -> None:
        """Print a detail of the line above."""
        self._console.print(f"{'':{_TITLE_COLUMNS + 2}} [dim]{escape(text)}[/]")

    def table(self, title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
        """Print a table of named rows."""
        self._console.print()
        table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 3, 0, 0))
        for name in ("", *columns):
            table.add_column(name, justify="left" if not name else "right", no_wrap=True)
        for name, figures in rows.items():
            table.add_row(f"  {escape(name)}", *map(escape, figures))
        self._console.print(table)
        self._console.print()

    def links(self, rows: Mapping[str, str]) -> None:
        """Print addresses and paths by name."""
        width = max(map(len, rows))
        for name, target in rows.items():
            self._console.print(f"  [bold]{name:<{width}}[/]  {escape(target)}")

    @property
    def _mark(self) -> str:
        return "✓" if self._console.encoding.startswith("utf") else "+"
