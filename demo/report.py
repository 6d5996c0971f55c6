"""What the demo shows at the end: a table of the images to label first, a contact sheet, and what they are worth.

Knows tasks with their predictions and true classes; asks nobody for anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from demo.project import Shown

_COLUMNS = 10
_ROWS = 2
_TILE_PX = 112
_GAP_PX = 14
_MARGIN_PX = 28
_LINE_PX = 18
_CAPTION_PX = 3 * _LINE_PX + 8
_HEADING_PX = 44
_HEADING, _CAPTION = ImageFont.load_default(22), ImageFont.load_default(14)
_PAPER, _INK, _GREY, _RIGHT, _WRONG = "#ffffff", "#1c1c1c", "#6b6b6b", "#1a7f37", "#b42318"


@dataclass(frozen=True, slots=True)
class Scored:
    """One unlabelled image: its task, file, true class, and where and why it stands in the order."""

    task_id: int
    path: Path
    truth: str
    rare: bool
    score: float
    shown: Shown | None
    """What people see of the prediction; None of the random sample, in which they see nothing."""


def table(scored: Sequence[Scored], rows: int = 10) -> str:
    """Return the first `rows` images as text."""
    predicted = [_predicted(item.shown) for item in scored[:rows]]
    width = max(9, *map(len, predicted))
    truths = [item.truth + (", rare" if item.rare else "") for item in scored[:rows]]
    broad = max(4, *map(len, truths))
    lines = [f"  {'task':>6}  {'score':>6}  {'BALD':>6}  {'predicted':<{width}}  {'true':<{broad}}  why here"]
    for item, said, truth in zip(scored, predicted, truths, strict=False):
        bald = f"{item.shown.bald:.3f}" if item.shown else "-"
        figures = f"{item.task_id:>6}  {item.score:>6.3f}  {bald:>6}"
        reason = item.shown.reason if item.shown else "random sample, without a guess"
        lines.append(f"  {figures}  {said:<{width}}  {truth:<{broad}}  {reason}")
    return "\n".join(lines)


def _predicted(shown: Shown | None) -> str:
    return f"{shown.label} ({shown.probability:.0%})" if shown else "-"


def worth(scored: Sequence[Scored], first: int = 50) -> str:
    """Return in one line how many images of rare classes come first, beside how many chance would give."""
    first = min(first, len(scored))
    found = sum(item.rare for item in scored[:first])
    expected = first * sum(item.rare for item in scored) / len(scored)
    return f"Of the first {first} images {found} are of rare classes; a random {first} would hold {expected:.1f}."


def contact_sheet(scored: Sequence[Scored]) -> Image.Image:
    """Draw the first images above the last ones, each with what the model says of it."""
    few = min(_COLUMNS * _ROWS, len(scored) // 2)
    sections = (
        ("These come first", scored[:few]),
        ("These can wait", scored[len(scored) - few :]),
    )
    rows = -(-few // _COLUMNS)
    height = 2 * (_HEADING_PX + rows * (_TILE_PX + _CAPTION_PX + _GAP_PX)) + 2 * _MARGIN_PX
    sheet = Image.new("RGB", (2 * _MARGIN_PX + _COLUMNS * (_TILE_PX + _GAP_PX) - _GAP_PX, height), _PAPER)
    top = _MARGIN_PX
    for heading, items in sections:
        ImageDraw.Draw(sheet).text((_MARGIN_PX, top), heading, fill=_INK, font=_HEADING)
        top += _HEADING_PX
        for (left, offset), item in zip(_places(), items, strict=False):
            _draw(sheet, item, left, top + offset)
        top += rows * (_TILE_PX + _CAPTION_PX + _GAP_PX)
    return sheet


def _places() -> Iterator[tuple[int, int]]:
    """Yield the left and top of tile after tile, row by row."""
    for row in range(_ROWS):
        for column in range(_COLUMNS):
            yield _MARGIN_PX + column * (_TILE_PX + _GAP_PX), row * (_TILE_PX + _CAPTION_PX + _GAP_PX)


def _draw(sheet: Image.Image, item: Scored, left: int, top: int) -> None:
    with Image.open(item.path) as image:
        tile = ImageOps.pad(image.convert("RGB"), (_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC, color="#f2f2f2")
    sheet.paste(tile, (left, top))
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((left, top, left + _TILE_PX - 1, top + _TILE_PX - 1), outline="#d0d0d0")
    for line, (text, colour) in enumerate(_caption(item)):
        pen.text((left, top + _TILE_PX + 5 + line * _LINE_PX), _cut(text), fill=colour, font=_CAPTION)


def _caption(item: Scored) -> Iterator[tuple[str, str]]:
    """Yield lines of text and their colours."""
    shown = item.shown
    said = (f"says {shown.label}", _RIGHT if shown.label == item.truth else _WRONG) if shown else ("by chance", _GREY)
    yield said
    yield f"is {item.truth}{', rare' if item.rare else ''}", _INK
    yield f"{shown.probability:.0%}, {shown.bald:.3f} nats" if shown else "", _GREY


def _cut(text: str) -> str:
    """Cut a line to a tile's width."""
    while _CAPTION.getlength(text) > _TILE_PX:
        text = text[:-2] + "…"
    return text
