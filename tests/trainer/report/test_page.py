import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from contract.versions.results import Advice, Compared, Comparison
from tests.trainer.report.examples import make_inputs
from tests.trainer.report.pages import Page
from trainer.labels.dataset import Unreadable
from trainer.report.calibration import error_by_chance
from trainer.report.page import write_report

HOSTILE = ('<script>alert("1")</script>', "$\\frac{", "{{ 7 * 7 }}", "猫 \u202e", "it's & <b>")


def write(inputs, folder):
    write_report(inputs, folder / "report")
    return Page(folder / "report" / "index.html")


def test_a_report_is_a_page_its_figures_and_its_classes(tmp_path):
    inputs = make_inputs()
    page = write(inputs, tmp_path)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "classes.csv",
        "figures.json",
        "index.html",
    ]
    document = json.loads((tmp_path / "report" / "figures.json").read_text(encoding="utf-8"))
    with (tmp_path / "report" / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["cat", "dog", "horse"]
    assert [float(row["f1"]) for row in rows] == [each["f1"] for each in document["classes"]]
    for row in rows:
        assert f"{float(row['f1']):.2f}" in page.text
    assert f"{inputs.manifest.metrics.macro_f1:.2f}" in page.text
    assert inputs.manifest.version in page.text
    assert "The curve begins with the next one" in page.text


@pytest.mark.parametrize(("multiple", "frozen"), [(False, True), (True, False)])
def test_a_page_loads_nothing_and_runs_nothing(tmp_path, multiple, frozen):
    page = write(make_inputs(multiple=multiple, frozen=frozen), tmp_path)
    page.assert_closed("classes.csv", "figures.json")
    assert page.tags.count("img") >= 24


@pytest.mark.parametrize("multiple", [False, True])
def test_labels_and_messages_are_text_whatever_is_in_them(tmp_path, multiple):
    inputs = make_inputs(HOSTILE, multiple=multiple)
    training = replace(
        inputs.manifest.training,
        left_out={"<i>odd</i>": 1},
        lost_labels={"<i>gone</i>": 3},
        advice=Advice("<u>go on</u>"),
    )
    pixels = replace(inputs.pixels, unreadable=(Unreadable("<img src=x>", "<b>no</b>"),))
    page = write(replace(inputs, manifest=replace(inputs.manifest, training=training), pixels=pixels), tmp_path)
    for text in (*HOSTILE, "<i>odd</i>", "<i>gone</i>", "<u>go on</u>", "<img src=x>: <b>no</b>"):
        assert text in page.text
    assert not {"script", "i", "u"} & set(page.tags)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "cells", "pairs"), [(12, 12, False), (13, 13, True), (40, 40, True), (41, 0, True)]
)
def test_confusions_are_a_table_a_picture_or_a_list(tmp_path, classes, cells, pairs):
    labels = [f"class {number}" for number in range(classes)]
    page = write(make_inputs(labels, images=classes * 5), tmp_path)
    assert page.html.count('<th scope="col"') == cells
    assert ('class="confusion compact"' in page.html) == (12 < classes <= 40)
    assert ("Confused most" in page.text) == pairs
    listed = page.html.partition("Confused most")[2].partition("</table>")[0]
    assert 0 <= listed.count("<tr>") - pairs <= 20


@pytest.mark.parametrize("multiple", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_thousand_classes_fit_on_a_page(tmp_path, multiple):
    labels = [f"class {number}" for number in range(1000)]
    page = write(make_inputs(labels, images=150 if multiple else 2000, multiple=multiple, frozen=False), tmp_path)
    assert "The 60 weakest of 1,000" in page.text
    assert not multiple or " more" in page.text
    assert len(page.html) < 1_000_000
    with (tmp_path / "report" / "classes.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1000


def test_where_nothing_was_held_out_the_page_says_so(tmp_path):
    page = write(make_inputs(images=2), tmp_path)
    assert "nothing was measured" in page.text
    assert "There are too few images to judge labels by." in page.text
    assert not {"svg", "img"} & set(page.tags)


def test_versions_that_were_measured_otherwise_are_told_apart(tmp_path):
    inputs = make_inputs()
    former = replace(inputs.manifest, training=replace(inputs.manifest.training, images=50, validation="audit"))
    page = write(replace(inputs, earlier=[former]), tmp_path)
    assert "Each was measured on other images" in page.text
    assert "The curve begins with the next one" not in page.text


def test_a_line_is_said_to_join_what_was_measured_on_the_same_images(tmp_path):
    inputs = make_inputs()
    former = [replace(inputs.manifest, version=f"2025010{day}T030405678Z-abcdef") for day in (1, 2)]
    compared = tuple(Compared(each.version, 90, 0.5, 0.25, 0.75) for each in (former[1], inputs.manifest))
    training = replace(inputs.manifest.training, curve=Comparison(41, compared))
    page = write(replace(inputs, manifest=replace(inputs.manifest, training=training), earlier=former), tmp_path)
    assert "joins versions that were measured on the same 41 random images; the grey ones were measured" in page.text
    assert page.text.count("the same 41") == 3


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [False, True])
def test_a_reliability_diagram_of_few_images_says_that_it_says_nothing(tmp_path, multiple):
    """Below 100 there is none, and the page says why; what chance makes of the error stands beside it either way."""
    few, many = (make_inputs(images=images, multiple=multiple) for images in (90, 300))
    for inputs, name in ((few, "few"), (many, "many")):
        (tmp_path / name).mkdir()
        page = write(inputs, tmp_path / name)
        by_chance = error_by_chance(inputs.probabilities, multiple=multiple)
        assert f"up to {by_chance:.2f} by chance alone" in page.text
        assert ("images are too few to say how far the probabilities can be believed" in page.text) == (name == "few")
        assert ("as sure as right" in page.html) == (name == "many")


@pytest.mark.slow
def test_equal_inputs_gives_equal_files(tmp_path):
    inputs = make_inputs()
    for name in ("first", "second"):
        write_report(inputs, tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_pictures_are_of_the_images_that_are_named(tmp_path):
    """A grey image amid noise is a far smaller file, and it stands where its name does."""
    inputs = make_inputs()
    most = inputs.parts.validation[int(np.argmax(inputs.bald))]
    images = inputs.pixels.images.copy()
    images[most] = 128
    page = write(replace(inputs, pixels=replace(inputs.pixels, images=images)), tmp_path)
    pictures = [link for link in page.links if link.startswith("data:")]
    assert len(pictures[0]) < len(pictures[1]) / 2
    assert page.text.index(f"{most:03}.png") < page.text.index("Most certain")
