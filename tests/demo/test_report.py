"""What the demo shows at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from demo.pool import PoolImage
from demo.project import Prediction, Shown, Task
from demo.report import Scored, contact_sheet, table, worth


@pytest.fixture
def scored(tmp_path: Path) -> list[Scored]:
    """Sixty images of which every sixth is rare, and the first two are."""
    Image.new("RGB", (40, 20), "navy").save(tmp_path / "image.png")
    image = PoolImage(tmp_path / "image.png", "image.png", "a class with a name that is long")

    def task(index: int) -> Task:
        shown = Shown("ant", 0.5, 1 - index / 60, "the passes disagree") if index != 2 else None
        return Task(index, "image.png", "", labelled=False, predictions=(Prediction("v1", index / 60, shown),))

    return [Scored(task(index), image, rare=index in (0, 1) or index % 6 == 0) for index in range(60)]


def test_the_table_shows_the_first_in_their_order(scored: list[Scored]):
    """Ten rows under a heading, in the order given, each with what a person compares."""
    heading, first, _, by_chance, *others = table(scored).splitlines()
    assert heading.split() == ["task", "score", "BALD", "predicted", "true", "why", "here"]
    assert first.split()[:5] == ["0", "0.000", "1.000", "ant", "(50%)"]
    assert first.endswith(", rare  the passes disagree")
    assert by_chance.split()[:4] == ["2", "0.033", "-", "-"]
    assert by_chance.endswith("random sample, without a guess")
    assert len(others) == 7


def test_worth_compares_with_chance(scored: list[Scored]):
    """Rare images among the first are set beside how many as many random ones would hold."""
    assert worth(scored, first=6) == "Of the first 6 images 2 are of rare classes; a random 6 would hold 1.1."


@pytest.mark.parametrize("count", [2, 21, 60])
def test_a_sheet_shows_both_ends_once(scored: list[Scored], count: int):
    """However few images there are, the sheet is drawn, and no larger than it needs to be."""
    sheet = contact_sheet(scored[:count])
    assert sheet.width == 2 * 28 + 10 * 126 - 14
    assert sheet.getpixel((28 + 60, 28 + 44 + 56)) == (0, 0, 128)
