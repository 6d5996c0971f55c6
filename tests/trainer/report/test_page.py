import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from contract.versions.results import Advice, ComparedVersion, Comparison
from tests.trainer.report.examples import make_inputs
from tests.trainer.report.pages import Page
from trainer.labels.dataset import Unreadable
from trainer.report.calibration import ece_by_chance
from trainer.report.page import write_report

HOSTILE = ('<script>alert("1")</script>', "$\\frac{", "{{ 7 * 7 }}", "猫 \u202e", "it's & <b>")


def write(inputs, folder):
    folder.mkdir(exist_ok=True)
    write_report(inputs, folder / "report")
    return Page(folder / "report" / "index.html")


def test_writes_page_figures_and_classes(tmp_path):
    inputs = make_inputs()
    page = write(inputs, tmp_path)
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert files == {"classes.csv", "figures.json", "index.html"}
    document = json.loads((tmp_path / "report" / "figures.json").read_text(encoding="utf-8"))
    with (tmp_path / "report" / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{name: str(value) for name, value in each.items()} for each in document["classes"]]
    assert [row["label"] for row in rows] == ["cat", "dog", "horse"]
    figures = [f"{float(row['f1']):.2f}" for row in rows] + [f"{inputs.manifest.metrics.macro_f1:.2f}"]
    for each in (*figures, inputs.manifest.version, "The curve begins with the next one"):
        assert each in page.text


def test_weakest_class_comes_first_and_confusion_rows_are_true_classes(tmp_path):
    inputs = make_inputs(images=300)
    page = write(inputs, tmp_path)
    weakest = np.argsort(inputs.manifest.metrics.f1, kind="stable")
    assert re.findall('<th scope="row">(\\w+)</th>', page.html)[:3] == [
        inputs.manifest.labels[each] for each in weakest
    ]
    cells = re.findall("<td[^>]*>(\\d*)</td>", page.html.partition('class="confusion')[2].partition("</table>")[0])
    targets = inputs.pixels.targets[inputs.parts.validation]
    expected = confusion_matrix(targets, inputs.probabilities.argmax(axis=1))
    assert [int(cell or 0) for cell in cells[-9:]] == expected.ravel().tolist()


@pytest.mark.parametrize(("multiple", "frozen"), [(False, True), (True, False)])
def test_page_has_no_scripts_and_no_external_resources(tmp_path, multiple, frozen):
    inputs = make_inputs(multiple=multiple, frozen=frozen)
    page = write(inputs, tmp_path)
    page.assert_closed("classes.csv", "figures.json")
    assert page.tags.count("img") >= 24
    assert ("Confusions" in page.text) is not multiple
    assert write(inputs, tmp_path / "again").html == page.html  # equal inputs give equal files


@pytest.mark.parametrize("multiple", [False, True])
def test_escapes_labels_and_messages(tmp_path, multiple):
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
def test_confusions_are_a_matrix_or_a_list(tmp_path, classes, cells, pairs):
    labels = [f"class {number}" for number in range(classes)]
    page = write(make_inputs(labels, images=classes * 5), tmp_path)
    assert page.html.count('<th scope="col"') == cells
    assert ('class="confusion compact"' in page.html) == (12 < classes <= 40)
    assert ("Most frequent confusions" in page.text) == pairs
    listed = page.html.partition("Most frequent confusions")[2].partition("</table>")[0]
    assert 0 <= listed.count("<tr>") - pairs <= 20


@pytest.mark.parametrize("multiple", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_page_of_a_thousand_classes_is_small(tmp_path, multiple):
    labels = [f"class {number}" for number in range(1000)]
    page = write(make_inputs(labels, images=150 if multiple else 2000, multiple=multiple, frozen=False), tmp_path)
    assert "The 60 weakest of 1,000" in page.text
    assert not multiple or " more" in page.text
    assert len(page.html) < 1_000_000
    with (tmp_path / "report" / "classes.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1000


def test_page_without_validation_part(tmp_path):
    page = write(make_inputs(images=2), tmp_path)
    assert "the version was not evaluated" in page.text
    assert "There are too few images to check labels." in page.text
    assert not {"svg", "img"} & set(page.tags)


def test_explains_which_versions_are_comparable(tmp_path):
    inputs = make_inputs()
    other = replace(inputs.manifest, training=replace(inputs.manifest.training, images=50, validation="audit"))
    assert "Each was evaluated on other images" in write(replace(inputs, earlier=[other]), tmp_path / "apart").text
    former = [replace(inputs.manifest, version=f"2025010{day}T030405678Z-abcdef") for day in (1, 2)]
    compared = tuple(ComparedVersion(each.version, 90, 0.5, 0.25, 0.75) for each in (former[1], inputs.manifest))
    training = replace(inputs.manifest.training, curve=Comparison(41, compared))
    page = write(replace(inputs, manifest=replace(inputs.manifest, training=training), earlier=former), tmp_path)
    assert "connects versions evaluated on the same 41 random images; the grey ones were evaluated" in page.text
    assert page.text.count("the same 41") == 3


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [False, True])
def test_reliability_diagram_needs_100_images(tmp_path, multiple):
    """With fewer than 100 images there is none, and the page explains it; the error by chance is always shown."""
    few, many = (make_inputs(images=images, multiple=multiple) for images in (90, 300))
    for inputs, name in ((few, "few"), (many, "many")):
        page = write(inputs, tmp_path / name)
        by_chance = ece_by_chance(inputs.probabilities, multiple=multiple)
        assert f"up to {by_chance:.2f} by chance" in page.text
        assert ("images are too few for a reliability diagram" in page.text) == (name == "few")
        assert ("on the dashed line" in page.text) == (name == "many")


def test_thumbnails_match_the_names(tmp_path):
    """A grey image among images of noise is a smaller file, and has the right name."""
    inputs = make_inputs()
    most = inputs.parts.validation[int(np.argmax(inputs.bald))]
    images = inputs.pixels.images.copy()
    images[most] = 128
    page = write(replace(inputs, pixels=replace(inputs.pixels, images=images)), tmp_path)
    pictures = [link for link in page.links if link.startswith("data:")]
    assert len(pictures[0]) < len(pictures[1]) / 2
    assert page.text.index(f"{most:03}.png") < page.text.index("Most certain")
