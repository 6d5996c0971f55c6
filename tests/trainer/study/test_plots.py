import re

import pytest
from PIL import Image

from tests.trainer.study.studies import make_study
from trainer.study.plots import (
    choose_lines,
    draw_measures,
    save_curves,
)
from trainer.study.statistics import MEASURES


def texts(svg):
    return re.findall(r"<text [^>]*>([^<]*)</text>", svg)


def test_those_come_in_colour_whom_people_ask_about():
    """The default, random and plain BALD; of a few strategies all, and each in a colour of its own."""
    names = ["entropy", "bald", "random", "margin", "baal-bald", "labelnext"]
    assert [line.strategy for line in choose_lines(names, "labelnext")] == ["labelnext", "random", "baal-bald"]
    assert [line.strategy for line in choose_lines(names[:4], None)] == ["random", "bald", "margin", "entropy"]
    assert "bald" not in [line.strategy for line in choose_lines([*names, "core-set"], "labelnext", most=5)]
    seven = choose_lines([f"strategy {index}" for index in range(20)], None, most=7)
    assert len({line.colour for line in seven}) == 7


@pytest.mark.slow
def test_each_measure_has_a_plot_with_every_strategy():
    """Those without a colour are lines too, only grey."""
    study = make_study(seeds=2, rounds=3)
    plots = draw_measures(study, choose_lines([*study.runs], "labelnext"))
    assert len(plots) == len(MEASURES)
    for svg in plots:
        assert svg.count("stroke: #bcc6ce") == len(study.runs) - 3
        assert "labels" in texts(svg)


def test_the_picture_is_on_white(tmp_path):
    """For pages that are not."""
    save_curves(make_study(seeds=1, rounds=3), tmp_path / "curves.png", "labelnext")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1440, 672)
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
