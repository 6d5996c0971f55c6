"""What the demo shows at the end: a table of the images to label first, a contact sheet, and what they are worth.

Knows tasks with their predictions and true classes; asks nobody for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

from demo.pool import PoolImage
from demo.project import Shown, Task

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
    """One unlabelled task, its image with the true class, and whether that is rare."""

    task: Task
    image: PoolImage
    rare: bool

    @property
    def shown(self) -> Shown | None:
        """What people see of the prediction; None of the random holdout, in which they see nothing."""
        return self.task.predictions[0].shown

    @property
    def truth(self) -> str:
        """The true class, for people."""
        return self.image.label + (", rare" if self.rare else "")


def table(scored: Sequence[Scored], rows: int = 10) -> str:
    """Return the first `rows` images as text."""
    predicted = [_predicted(item.shown) for item in scored[:rows]]
    width = max(9, *map(len, predicted))
    broad = max(4, *(len(item.truth) for item in scored[:rows]))
    lines = [f"  {'task':>6}  {'score':>6}  {'BALD':>6}  {'predicted':<{width}}  {'true':<{broad}}  why here"]
    for item, said in zip(scored, predicted, strict=False):
        bald = f"{item.shown.bald:.3f}" if item.shown else "-"
        figures = f"{item.task.id:>6}  {item.task.predictions[0].score:>6.3f}  {bald:>6}"
        reason = item.shown.reason if item.shown else "random sample, without a guess"
        lines.append(f"  {figures}  {said:<{width}}  {item.truth:<{broad}}  {reason}")
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
    section = _HEADING_PX + -(-few // _COLUMNS) * (_TILE_PX + _CAPTION_PX + _GAP_PX)
    width = 2 * _MARGIN_PX + _COLUMNS * (_TILE_PX + _GAP_PX) - _GAP_PX
    sheet = Image.new("RGB", (width, 2 * section + 2 * _MARGIN_PX), _PAPER)
    for part, (heading, items) in enumerate(
        (("These come first", scored[:few]), ("These can wait", scored[len(scored) - few :]))
    ):
        top = _MARGIN_PX + part * section
        ImageDraw.Draw(sheet).text((_MARGIN_PX, top), heading, fill=_INK, font=_HEADING)
        for place, item in enumerate(items):
            row, column = divmod(place, _COLUMNS)
            left = _MARGIN_PX + column * (_TILE_PX + _GAP_PX)
            sheet.paste(_tile(item), (left, top + _HEADING_PX + row * (_TILE_PX + _CAPTION_PX + _GAP_PX)))
    return sheet


def _tile(item: Scored) -> Image.Image:
    """Draw an image above what is predicted of it, what it is, and how sure the model is."""
    tile = Image.new("RGB", (_TILE_PX, _TILE_PX + _CAPTION_PX), _PAPER)
    with Image.open(item.image.path) as image:
        size = (_TILE_PX, _TILE_PX)
        tile.paste(ImageOps.pad(image.convert("RGB"), size, Image.Resampling.BICUBIC, color="#f2f2f2"))
    pen = ImageDraw.Draw(tile)
    pen.rectangle((0, 0, _TILE_PX - 1, _TILE_PX - 1), outline="#d0d0d0")
    lines = [("by chance", _GREY), (f"is {item.truth}", _INK)]
    if shown := item.shown:
        lines[0] = (f"says {shown.label}", _RIGHT if shown.label == item.image.label else _WRONG)
        lines.append((f"{shown.probability:.0%}, {shown.bald:.3f} nats", _GREY))
    for number, (text, colour) in enumerate(lines):
        pen.text((0, _TILE_PX + 5 + number * _LINE_PX), text, fill=colour, font=_CAPTION)  # cut at the tile's edge
    return tile
