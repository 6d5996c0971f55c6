"""Hostile content is escaped, and the markup is accessible and self-contained."""

import base64
import dataclasses
import hashlib
import json
import math
import re
from datetime import timedelta
from itertools import pairwise

import pytest

from contract.scores.ranking import RankedImage, save_ranking
from contract.versions.repository import RANKINGS_FOLDER
from contract.versions.training_requests import REQUESTS_FOLDER
from server.page.view import HEADERS, Page
from tests.contract.versions.test_results import METRICS, TRAINING
from tests.server.page.conftest import (
    EMPTY_PAGE,
    HOSTILE,
    NOW,
    STUDIO,
    make_image,
    make_manifest,
    make_ranking,
    publish,
    show,
)


class TestHostileContent:
    def test_user_text_is_escaped(self, page, repository):
        training = {**TRAINING, "images_by_class": {HOSTILE: 3}, "advice": {"sentence": HOSTILE}}
        manifest = publish(repository, labels=(HOSTILE, "bee", "cat"), training=training)
        image = make_image(label=HOSTILE, reason=HOSTILE)
        texts = {"title": HOSTILE, "strategy": HOSTILE, "name": HOSTILE, "created_at": HOSTILE}
        save_ranking(repository, make_ranking(manifest.version, first=(image,), most_uncertain=(image,), **texts))
        save_ranking(repository, make_ranking("another", project=4, most_uncertain=(image,), **texts))
        document = show(page, manifest=dataclasses.replace(manifest, created_at=HOSTILE), detail=HOSTILE)
        assert document.find("script") == []
        assert not any(name.startswith("on") for e in document.elements for name in e.attrs)
        assert document.text.count("<script>") >= 11

    def test_strange_labels_are_shown_as_text(self, page, repository):
        """Right-to-left overrides are isolated, lone surrogates replaced, and long labels cut."""
        manifest = publish(repository, labels=("\u202eant", "bee", "a" * 10**6))
        document = show(page, manifest=manifest, detail="x" * 10**6)
        assert any(e.text == "\u202eant" for e in document.find("bdi"))
        assert len(document.text) < 10_000
        assert "ant?" in show(page, manifest=make_manifest(labels=("ant\ud800", "bee", "cat"))).text

    def test_invalid_figures_are_left_out(self, page, repository):
        for value in (math.nan, math.inf, -1, 10**400, "0.5", None, [], {"a": []}):
            metrics, training = dict.fromkeys(METRICS, value), dict.fromkeys(TRAINING, value)
            document = show(page, manifest=publish(repository, metrics=metrics, training=training))
            assert "Version in use" in document.headings
            assert not re.search(r"\b(nan|inf|None)\b", document.text, re.IGNORECASE)

    def test_removed_versions_stay_on_the_curve_and_keep_their_reports(self, page, repository):
        for day in range(3):
            publish(repository, at=NOW + timedelta(days=day), report=["index.html"])
        before = show(page)
        for name in repository.versions()[:2]:
            repository.retire(name)
        after = show(Page(repository, label_studio_url=STUDIO))
        assert len(repository.versions()) == 1
        assert len(before.find("circle")) == 3
        assert [e.attrs for e in after.find("circle")] == [e.attrs for e in before.find("circle")]
        assert [e.attrs for e in after.find("a")] == [e.attrs for e in before.find("a")]
        assert after.text == before.text

    def test_unreadable_files_are_left_out(self, page, repository):
        """Broken manifests are not on the curve; files in place of folders are ignored."""
        manifest = publish(repository)
        for text in (b"", b'{"contract": 2}', b"\xff", b"[" * 100_000):
            broken = publish(repository)
            (repository.folder / broken.version / "manifest.json").write_bytes(text)
        for path in (repository.folder / RANKINGS_FOLDER, repository.root / REQUESTS_FOLDER):
            path.write_text("not a folder")
        document = show(page, manifest=manifest)
        assert "Version in use" in document.headings
        assert len(document.find("circle")) == 1

    @pytest.mark.slow
    def test_invalid_fields_of_ranked_images_do_not_break_the_page(self, page, repository):
        manifest = publish(repository)
        save_ranking(repository, make_ranking(manifest.version))
        path = repository.folder / RANKINGS_FOLDER / "3.json"
        record = json.loads(path.read_text())
        for name in (field.name for field in dataclasses.fields(RankedImage)):
            for value in (None, "x", -1, 10**300, 10**400, 1e308, -1e308, [], math.nan):
                image = {**record["most_uncertain"][0], name: value}
                path.write_text(json.dumps({**record, "most_uncertain": [image]}))
                assert "Version in use" in show(page, manifest=manifest).headings


class TestMarkup:
    @pytest.fixture
    def document(self, page, repository):
        manifest = publish(repository)
        save_ranking(repository, make_ranking(manifest.version))
        return show(page, manifest=manifest)

    def test_the_page_has_no_scripts_and_loads_nothing(self, document):
        """The policy allows only its stylesheet, by digest, and images in data: URIs."""
        policy = HEADERS["Content-Security-Policy"]
        (style,) = document.find("style")
        digest = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
        assert f"style-src 'sha256-{digest}'" in policy
        assert policy.startswith("default-src 'none'; img-src data:;")
        assert (HEADERS["Cache-Control"], HEADERS["Referrer-Policy"]) == ("no-store", "no-referrer")
        assert not any("style" in element.attrs for element in document.elements)
        addresses = [e.attrs.get("src") or e.attrs["href"] for e in document.elements if e.tag in ("img", "link")]
        assert all(address.startswith("data:image/") for address in addresses)
        assert "url(" not in style.text
        assert "@import" not in style.text

    def test_the_page_is_accessible(self, document):
        """It has a doctype, viewport and language, one main heading, and named sections, tables and images."""
        assert EMPTY_PAGE.render(up=True, detail=None, serving=None, now=NOW).startswith(b"<!DOCTYPE html>")
        assert document.find("meta", name="viewport", content="width=device-width, initial-scale=1")
        assert document.find("html", lang="en")
        levels = [int(e.tag[1]) for e in document.elements if re.fullmatch("h[1-6]", e.tag)]
        assert levels.count(1) == 1
        assert all(below - above <= 1 for above, below in pairwise(levels))
        assert all(image.attrs.get("alt") for image in document.find("img"))
        ids = [e.attrs["id"] for e in document.elements if "id" in e.attrs]
        assert len(ids) == len(set(ids))
        named = [e for e in document.elements if "aria-labelledby" in e.attrs]
        assert {e.attrs["aria-labelledby"] for e in named} <= set(ids)
        assert all(e.attrs.get("scope") in ("col", "row") for e in document.find("th"))
        assert all("aria-hidden" in e.attrs or e.attrs.get("role") == "img" for e in document.find("svg"))
