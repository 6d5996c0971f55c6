"""What a person sees while the demo runs: a line for each step, with how long it took, and a table at the end.

On a terminal the step at work shows that it lives; elsewhere, as in a container's log, a step is a plain line once it
has ended.
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
    """One step at work."""

    _progress: Progress
    _task: TaskID
    outcome: str = ""
    """What is said of it once it has ended."""

    def say(self, doing: str) -> None:
        """Say what it does now."""
        self._progress.update(self._task, doing=doing)


class Screen:
    """The terminal, or the file that stands in for it."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._plain = not self._console.is_terminal

    def title(self, text: str) -> None:
        """Say what begins."""
        self._console.print(f"\n[bold]{escape(text)}[/]\n")

    @contextmanager
    def step(self, title: str, doing: str = "") -> Iterator[Step]:
        """Show a step for as long as the block lasts, and then its outcome and the seconds that it took."""
        started = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn(f"{title:<{_TITLE_COLUMNS}}"),
            TextColumn("{task.fields[doing]}", style="dim"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True, disable=self._plain) as progress:
            step = Step(progress, progress.add_task("", total=None, doing=doing))
            yield step
        seconds = f"[dim]{time.monotonic() - started:.0f} s[/]"
        self._console.print(f"[green]{self._mark}[/] {title:<{_TITLE_COLUMNS}} {escape(step.outcome)}  {seconds}")

    def note(self, title: str, text: str) -> None:
        """Write a line that stands beside those of the steps."""
        self._console.print(f"[green]{self._mark}[/] {title:<{_TITLE_COLUMNS}} {escape(text)}")

    def say(self, text: str) -> None:
        """Write a line that belongs to the one above."""
        self._console.print(f"{'':{_TITLE_COLUMNS + 2}} [dim]{escape(text)}[/]")

    def table(self, title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
        """Write figures under columns, each row with its name in front."""
        self._console.print()
        table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 3, 0, 0))
        for name in ("", *columns):
            table.add_column(name, justify="left" if not name else "right", no_wrap=True)
        for name, figures in rows.items():
            table.add_row(f"  {escape(name)}", *map(escape, figures))
        self._console.print(table)
        self._console.print()

    def links(self, rows: Mapping[str, str]) -> None:
        """Write where to go on: a name and an address or a path in each line."""
        width = max(map(len, rows))
        for name, target in rows.items():
            self._console.print(f"  [bold]{name:<{width}}[/]  {escape(target)}")

    @property
    def _mark(self) -> str:
        return "✓" if self._console.encoding.startswith("utf") else "+"
