import base64
import dataclasses
import re
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.scores.ranking import save_ranking
from contract.versions.repository import Repository
from contract.versions.results import ProjectState, TrainingRecord
from contract.versions.training_requests import submit_request
from server.page.view import Page, format_age, render_models
from tests import versions
from tests.contract.versions.test_results import METRICS
from tests.server.page.conftest import (
    EMPTY_PAGE,
    HOSTILE,
    NOW,
    STUDIO,
    TRAINING_WITHOUT_CURVE,
    Document,
    make_image,
    make_manifest,
    make_ranking,
    publish,
    show,
    thumbnail,
)


def table_of(document, heading):
    """Return the first table with this heading."""
    return next(table for table in document.find("table") if heading in table.text)


class TestVersion:
    def test_the_version_in_use_is_shown_with_its_metrics(self, page, repository):
        """The weakest classes come first; a class without labels is reported."""
        manifest = publish(repository, at=NOW - timedelta(hours=3))
        document = show(page, manifest=manifest)
        for text in (manifest.version, "3 hours ago", "2026-11-23 11:30 UTC", "0.71", "0.62 to 0.79", "150"):
            assert text in document.text
        for text in ("20", "cpu, int8", "64 random images", "label about 120 more", "Serving"):
            assert text in document.text
        assert document.headings[:4] == ["Labelnext", "Version in use", "Macro-F1 over labels", "Classes"]
        classes = table_of(document, "Class").text.split()
        assert classes[-9:-1] == ["ant", "100", "0.50", "cat", "50", "1.00", "bee", "0"]
        assert "No image is labelled bee yet" in document.text

    def test_many_classes_are_collapsed_except_the_extremes(self, page, repository):
        labels = tuple(f"species {i}" for i in range(1000))
        metrics = {**METRICS, "f1": [i / 1000 for i in range(1000)]}
        document = show(page, manifest=publish(repository, metrics=metrics, labels=labels))
        weakest, strongest, others = [t for t in document.find("table") if "Class" in t.text]
        assert [t.text.count("species") for t in (weakest, strongest, others)] == [10, 10, 980]
        assert weakest.text.index("species 0") < weakest.text.index("species 9")
        assert strongest.text.index("species 999") < strongest.text.index("species 990")
        assert "species 999" in strongest.text
        assert any("980 more classes" in details.text for details in document.find("details"))

    def test_the_last_twenty_versions_are_on_a_curve_and_in_a_table(self, page, repository):
        """Except those without metrics; the version in use is highlighted."""
        for i in range(25):
            metrics = {**METRICS, "macro_f1": i / 50, "macro_f1_interval": [0, 1]}
            manifest = publish(
                repository, metrics=metrics, training={**TRAINING_WITHOUT_CURVE, "images": 10 * i}, at=NOW
            )
        publish(repository, metrics={})
        document = show(page, manifest=manifest)
        assert len(document.find("circle")) == 19
        assert len(document.find("circle", **{"class": "in-use"})) == 1
        assert len(document.find("line", **{"class": "bar"})) == 19
        table = table_of(document, "Published").text
        assert table.index(manifest.version) < table.index("0.12")

    def test_versions_measured_on_different_images_are_not_joined(self, page, repository):
        for macro_f1, images in ((0.51, 20), (0.79, 30), (0.55, 41)):
            publish(repository, metrics={**METRICS, "macro_f1": macro_f1, "images": images})
        document = show(page)
        assert "Each was measured on other images, so no line joins them" in document.text
        table = table_of(document, "Published").text
        assert all(f"{images} random images" in table for images in (20, 30, 41))

    def test_a_line_joins_versions_measured_on_the_same_images(self, page, repository):
        unjoined, *joined = (publish(repository, metrics={**METRICS, "macro_f1": 0.7}) for _ in range(4))
        compared = [
            {"version": each.version, "labels": 150, "macro_f1": macro_f1, "low": 0.1, "high": 0.9}
            for each, macro_f1 in zip(joined, (0.41, 0.52, 0.63), strict=True)
        ]
        publish(repository, training={**TRAINING_WITHOUT_CURVE, "curve": {"images": 41, "versions": compared}})
        document = show(page, manifest=joined[1])
        assert {c.attrs["class"] for c in document.find("circle")} == {"point apart", "point", "in-use"}
        assert "joins versions that were measured on the same 41 random images; the grey points" in document.text
        table = table_of(document, "Published").text
        for text in ("0.41", "0.52", "0.63", "0.10 to 0.90", "the same 41 random images", "64 random images"):
            assert text in table
        (row,) = (row.text for row in document.find("tr") if unjoined.version in row.text)
        assert "0.70" in row
        assert "same" not in row

    def test_versions_link_to_their_reports(self, page, repository):
        """The links are relative, because a proxy may add a path prefix."""
        assert show(page, manifest=publish(repository)).find("a") == []
        earlier = publish(repository, at=NOW - timedelta(days=3), report=["index.html"])
        publish(repository, at=NOW - timedelta(days=2))
        publish(repository, at=NOW - timedelta(days=1), report=["figures.json"])
        latest = publish(repository, report=["index.html", "classes.csv"])
        links = show(page, manifest=latest).find("a")
        addresses = [link.attrs["href"] for link in links]
        assert addresses == [f"report/{manifest.version}/" for manifest in (latest, latest, earlier)]
        assert [link.text for link in links] == ["Report of this version", latest.version, earlier.version]


class TestStates:
    def test_without_a_version_the_page_shows_commands(self, page, tmp_path):
        """With the model's name unless it is the default."""
        document = show(page, detail="no version has been published in models/default yet; run `python -m trainer run`")
        assert "Waiting for a version" in document.text
        commands = {e.text for e in document.find("code")}
        assert {"python -m trainer run", "python -m trainer run --project ID"} <= commands
        assert "Version in use" not in document.headings
        page = Page(Repository(tmp_path, "moths & co"), label_studio_url=None)
        commands_shown = {element.text for element in show(page).find("code")}
        commands = ("run --project ID", "rank --project ID", "watch --project ID")
        assert {f"LABELNEXT_MODEL='moths & co' python -m trainer {command}" for command in commands} <= commands_shown

    @pytest.mark.parametrize(
        ("in_use", "up", "kind"), [(False, True, "attention"), (True, True, "attention"), (True, False, "down")]
    )
    def test_problems_are_shown_at_the_top(self, page, repository, in_use, up, kind):
        published = publish(repository)
        document = show(page, manifest=published if in_use else None, up=up, detail="dropout is dead")
        (notice,) = document.find("p", **{"class": f"notice {kind}"})
        assert "dropout is dead" in notice.text
        (state,) = document.find("p", **{"class": f"state {kind}"})
        assert state.text.strip() == ("Serving" if in_use else "Waiting for a version") if up else "Cannot score"
        assert ("Version in use" in document.headings) == in_use
        assert "No version yet" not in document.headings

    def test_a_version_without_a_ranking_shows_the_command(self, page, repository):
        """Otherwise Label Studio keeps the order of the previous version."""
        save_ranking(repository, make_ranking("20260101T000000000Z-0a1b2c", title="Moths"))
        document = show(page, manifest=publish(repository))
        assert "python -m trainer rank --project ID" in document.text
        assert {"Not ranked yet", "Ranked by another version"} <= set(document.headings)
        assert "Moths" in document.text

    def test_a_request_to_train_is_shown(self, page, repository):
        submit_request(repository, 3)
        document = show(page)
        assert "Training of project 3 was requested" in document.text
        assert "python -m trainer watch" in document.text


class TestRankings:
    def test_a_ranking_is_shown_with_its_figures_and_images(self, page, repository):
        """Images and projects link to Label Studio if its address is known."""
        manifest = publish(repository)
        save_ranking(repository, make_ranking(manifest.version))
        document = show(page, manifest=manifest)
        for text in ("Project 3", "3 hours ago", "balanced-bald-margin", "12,850 tasks", "1,285", "412", "0.210"):
            assert text in document.text
        for text in ("62%", "the passes disagree", "score 0.125", "BALD 0.250", "task 7", "99%"):
            assert text in document.text
        assert document.headings[-4:] == ["Beetles", "Next to be labelled", "Most uncertain", "Most confident"]
        images = document.find("img")
        assert [image.attrs["alt"] for image in images] == [f"Task {task}" for task in (6, 5, 7, 8, 9)]
        head, _, data = images[0].attrs["src"].partition(",")
        assert (head, base64.b64decode(data)) == ("data:image/jpeg;base64", thumbnail())
        tasks = [f"{STUDIO}/projects/3/data?task={task}" for task in (6, 5, 7, 8, 9)]
        assert [link.attrs["href"] for link in document.find("a")] == [f"{STUDIO}/projects/3/data", *tasks]
        submit_request(repository, 3)
        document = show(Page(repository, label_studio_url=None), manifest=manifest)
        assert document.find("a") == []
        assert len(document.find("img")) == 5

    def test_a_cold_start_is_shown_before_the_first_version(self, page, repository):
        nothing = {"label": None, "probability": None, "bald": None}
        images = {"first": (make_image(**nothing),), "most_uncertain": (), "most_confident": ()}
        save_ranking(repository, make_ranking(None, mean_bald=None, **images))
        document = show(page)
        assert {"Beetles", "Next to be labelled"} <= set(document.headings)
        assert not {"Most uncertain", "Most confident"} & set(document.headings)
        assert not re.search(r"\d%", document.text)
        assert "BALD 0" not in document.text

    def test_the_number_of_gallery_images_is_limited(self, page, repository):
        """Thumbnails that are not JPEG are not shown."""
        manifest = publish(repository)
        many = tuple(make_image(i) for i in range(500))
        fakes = (make_image(7, thumbnail=b""), make_image(8, thumbnail=b"<svg onload=alert(1)>"), *many)
        save_ranking(repository, make_ranking(manifest.version, first=many, most_uncertain=fakes, most_confident=many))
        document = show(page, manifest=manifest)
        assert len(document.find("img")) == 70
        assert document.text.count("no preview") == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (3599, "59 minutes ago"),
        (3600, "1 hour ago"),
        (86_399, "23 hours ago"),
        (86_400, "1 day ago"),
        (86_400 * 1000, "1,000 days ago"),
    ],
)
def test_format_age(seconds, text):
    assert format_age(NOW - timedelta(seconds=seconds), NOW) == text


@settings(max_examples=25)
@given(st.text(max_size=40) | st.datetimes().map(datetime.isoformat))
def test_any_text_is_accepted_as_a_time(text):
    assert "Version in use" in show(EMPTY_PAGE, manifest=dataclasses.replace(make_manifest(), created_at=text)).headings


def test_names_and_labels_are_escaped_on_the_page_of_all_models():
    training = TrainingRecord(project=ProjectState(4, 3, "2026-01-02T03:04:05Z"))
    manifest = versions.manifest("20260102T030405678Z-0a1b2c")
    engine = SimpleNamespace(manifest=dataclasses.replace(manifest, labels=(HOSTILE, "cat"), training=training))
    models = [
        SimpleNamespace(name=HOSTILE, engine=engine, detail=HOSTILE, projects={3: 0.0}),
        SimpleNamespace(name="javascript:x", engine=None, detail=None, projects={}),
    ]
    document = Document(render_models(models, up=True, detail=HOSTILE, label_studio_url=STUDIO, now=NOW))
    assert not document.find("script")
    links = [element.attrs["href"] for element in document.find("a")]
    assert links.count("p/javascript%3Ax/") == 1
    assert [link for link in links if not link.startswith("p/")] == [f"{STUDIO}/projects/{n}/data" for n in (3, 4)]
    assert not any(set(link) & set("<>\"' ") for link in links)
