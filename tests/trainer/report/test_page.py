import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from contract.versions.results import Advice, Compared, Comparison
from tests.trainer.report.examples import make_evidence
from trainer.labels.dataset import Unreadable
from trainer.report.calibration import error_by_chance
from trainer.report.page import write_report

VOID = {"meta", "img", "br", "link", "hr", "input"}
HOSTILE = ('<script>alert("1")</script>', "$\\frac{", "{{ 7 * 7 }}", "猫 \u202e", "it's & <b>")


class Page(HTMLParser):
    """A page's elements and text; fails where an element is not closed by its own end."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href", "action", "data"}]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


def write(evidence, folder):
    write_report(evidence, folder / "report")
    return Page((folder / "report" / "index.html").read_text(encoding="utf-8"))


def test_a_report_is_a_page_its_figures_and_its_classes(tmp_path):
    """All three say the same."""
    evidence = make_evidence()
    page = write(evidence, tmp_path)
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
    assert f"{evidence.manifest.metrics.macro_f1:.2f}" in page.text
    assert evidence.manifest.version in page.text


@pytest.mark.parametrize("multiple", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_page_loads_nothing_and_runs_nothing(tmp_path, multiple, frozen):
    """Its pictures are in it, and its links go to the files beside it or within its own plots."""
    page = write(make_evidence(multiple=multiple, frozen=frozen), tmp_path)
    assert "script" not in page.tags
    assert {link for link in page.links if not link.startswith(("data:image/jpeg;base64,", "#"))} <= {
        "classes.csv",
        "figures.json",
    }
    assert page.tags.count("img") >= 24


@pytest.mark.parametrize("multiple", [False, True])
def test_labels_and_messages_are_text_whatever_is_in_them(tmp_path, multiple):
    """Markup, templates, mathematics and marks of direction stand on the page as they were written."""
    evidence = make_evidence(HOSTILE, multiple=multiple)
    training = replace(
        evidence.manifest.training,
        left_out={"<i>odd</i>": 1},
        lost_labels={"<i>gone</i>": 3},
        advice=Advice("<u>go on</u>"),
    )
    pixels = replace(evidence.pixels, unreadable=(Unreadable("<img src=x>", "<b>no</b>"),))
    page = write(replace(evidence, manifest=replace(evidence.manifest, training=training), pixels=pixels), tmp_path)
    for text in (*HOSTILE, "<i>odd</i>", "<i>gone</i>", "<u>go on</u>", "<img src=x>: <b>no</b>"):
        assert text in page.text
    assert not {"script", "i", "u"} & set(page.tags)


@pytest.mark.parametrize(
    ("classes", "cells", "pairs"), [(12, 12, False), (13, 13, True), (40, 40, True), (41, 0, True)]
)
def test_confusions_are_a_table_a_picture_or_a_list(tmp_path, classes, cells, pairs):
    """By how many classes there are."""
    labels = [f"class {number}" for number in range(classes)]
    page = write(make_evidence(labels, images=classes * 5), tmp_path)
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert text.count('<th scope="col"') == cells
    assert ('class="confusion compact"' in text) == (12 < classes <= 40)
    assert ("Confused most" in page.text) == pairs
    listed = text.partition("Confused most")[2].partition("</table>")[0]
    assert 0 <= listed.count("<tr>") - pairs <= 20


def test_a_shade_is_a_share_of_the_row(tmp_path):
    """In each row they amount to 1, but for rounding."""
    write(make_evidence(), tmp_path)
    rows = (tmp_path / "report" / "index.html").read_text(encoding="utf-8").split('<tr><th scope="row" title=')[1:]
    shares = [[float(share) for share in re.findall(r"--share: ([0-9.]+)", row)] for row in rows]
    assert [sum(each) for each in shares] == pytest.approx([1, 1, 1], abs=0.02)


@pytest.mark.parametrize("multiple", [False, True])
def test_a_thousand_classes_fit_on_a_page(tmp_path, multiple):
    """The weakest are listed, and where the others are; of an image's many labels, some."""
    labels = [f"class {number}" for number in range(1000)]
    page = write(make_evidence(labels, images=500 if multiple else 2000, multiple=multiple, frozen=False), tmp_path)
    assert "The 60 weakest of 1,000" in page.text
    assert not multiple or " more" in page.text
    assert (tmp_path / "report" / "index.html").stat().st_size < 1_000_000
    with (tmp_path / "report" / "classes.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1000


def test_where_nothing_was_held_out_the_page_says_so(tmp_path):
    """It has no plots, and no table of confusions."""
    page = write(make_evidence(images=2), tmp_path)
    assert "nothing was measured" in page.text
    assert "There are too few images to judge labels by." in page.text
    assert not {"svg", "img"} & set(page.tags)


def test_versions_are_drawn_once_there_are_two(tmp_path):
    """Those that were measured otherwise are told apart."""
    evidence = make_evidence()
    page = write(evidence, tmp_path)
    assert "The curve begins with the next one" in page.text
    former = replace(evidence.manifest, training=replace(evidence.manifest.training, images=50, validation="audit"))
    (tmp_path / "second").mkdir()
    second = write(replace(evidence, earlier=[former]), tmp_path / "second")
    assert second.tags.count("svg") == page.tags.count("svg") + 1
    assert "Each was measured on other images" in second.text


def test_a_line_is_said_to_join_what_was_measured_on_the_same_images(tmp_path):
    """And what was not is said not to be comparable."""
    evidence = make_evidence()
    former = [replace(evidence.manifest, version=f"2025010{day}T030405678Z-abcdef") for day in (1, 2)]
    compared = tuple(Compared(each.version, 90, 0.5, 0.25, 0.75) for each in (former[1], evidence.manifest))
    training = replace(evidence.manifest.training, curve=Comparison(41, compared))
    page = write(replace(evidence, manifest=replace(evidence.manifest, training=training), earlier=former), tmp_path)
    assert "joins versions that were measured on the same 41 random images; the grey ones were measured" in page.text
    assert page.text.count("the same 41") == 3


@pytest.mark.parametrize("multiple", [False, True])
def test_a_reliability_diagram_of_few_images_says_that_it_says_nothing(tmp_path, multiple):
    """Below 100 there is none, and the page says why; what chance makes of the error stands beside it either way."""
    few, many = (make_evidence(images=images, multiple=multiple) for images in (90, 300))
    for evidence, name in ((few, "few"), (many, "many")):
        (tmp_path / name).mkdir()
        page = write(evidence, tmp_path / name)
        by_chance = error_by_chance(evidence.probabilities, multiple=multiple)
        assert f"up to {by_chance:.2f} by chance alone" in page.text
        assert ("images are too few to say how far the probabilities can be believed" in page.text) == (name == "few")
        assert ("as sure as right" in (tmp_path / name / "report" / "index.html").read_text()) == (name == "many")


def test_equal_evidence_gives_equal_files(tmp_path):
    """Byte for byte, so that a version can be made again."""
    evidence = make_evidence()
    for name in ("first", "second"):
        write_report(evidence, tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_pictures_are_of_the_images_that_are_named(tmp_path):
    """A grey image amid noise is a far smaller file, and it stands where its name does."""
    evidence = make_evidence()
    most = evidence.parts.validation[int(np.argmax(evidence.bald))]
    images = evidence.pixels.images.copy()
    images[most] = 128
    page = write(replace(evidence, pixels=replace(evidence.pixels, images=images)), tmp_path)
    pictures = [link for link in page.links if link.startswith("data:")]
    assert len(pictures[0]) < len(pictures[1]) / 2
    assert page.text.index(f"{most:03}.png") < page.text.index("Most certain")
