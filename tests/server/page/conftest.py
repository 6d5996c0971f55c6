"""Parsed pages, and the manifests and rankings that they show."""

import dataclasses
import io
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from pydantic import TypeAdapter

from contract.scores.ranking import RankedImage, Ranking
from contract.versions.manifest import DropoutSite
from contract.versions.repository import Repository
from contract.versions.results import Metrics, TrainingRecord
from contract.versions.version import MODEL_FILE, PROBE_FILE
from server.page.view import Page
from tests import versions
from tests.contract.versions.test_results import METRICS, TRAINING

NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)
STUDIO = "https://studio.example.org"
HOSTILE = "<script>alert('1')</script>\"onerror=x '&amp; \u202e"
EMPTY_PAGE = Page(Repository(Path("/missing")), label_studio_url=None)
TRAINING_WITHOUT_CURVE = {**TRAINING, "curve": None}
"""Of a version that was not compared with others."""
VOID_TAGS = {"meta", "link", "img"}


class Document(HTMLParser):
    """The elements of a page, with attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(html.decode())
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = SimpleNamespace(tag=tag, attrs=dict(attrs), text="")
        self.elements.append(element)
        if tag not in VOID_TAGS:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(SimpleNamespace(tag=tag, attrs=dict(attrs), text=""))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for element in self.open:
            element.text += data

    def find(self, tag, **attrs):
        return [e for e in self.elements if e.tag == tag and attrs.items() <= e.attrs.items()]

    @property
    def text(self):
        (body,) = self.find("body")
        return re.sub(r"\s+", " ", body.text)

    @property
    def headings(self):
        return [re.sub(r"\s+", " ", e.text).strip() for e in self.elements if e.tag in ("h1", "h2", "h3")]


@pytest.fixture
def page(repository):
    return Page(repository, label_studio_url=STUDIO)


def show(page, *, manifest=None, up=True, detail=None):
    serving = manifest and SimpleNamespace(manifest=manifest, passes=20, provider="cpu", precision="int8")
    return Document(page.render(up=up, detail=detail, serving=serving, now=NOW))


def make_manifest(metrics=METRICS, training=TRAINING, labels=("ant", "bee", "cat")):
    return dataclasses.replace(
        versions.manifest("20260102T030405000Z-0a1b2c"),
        labels=labels,
        control="label",
        dropout_sites=(DropoutSite((16,), 0.5),),
        metrics=TypeAdapter(Metrics).validate_python(metrics),
        training=TypeAdapter(TrainingRecord).validate_python(training),
    )


def publish(
    repository, *, metrics=METRICS, training=TRAINING_WITHOUT_CURVE, labels=("ant", "bee", "cat"), at=NOW, report=()
):
    """Publish a version with a valid manifest and empty files."""
    with repository.stage(at) as staged:
        for name in (MODEL_FILE, PROBE_FILE):
            (staged.path / name).write_bytes(b"")
        for name in report:
            (staged.path / "report").mkdir(exist_ok=True)
            (staged.path / "report" / name).write_bytes(b"")
        created_at = at.isoformat(timespec="seconds")
        manifest = make_manifest(metrics, training, labels)
        manifest = dataclasses.replace(manifest, version=staged.version, created_at=created_at)
        return staged.publish(manifest).manifest


def thumbnail():
    file = io.BytesIO()
    Image.new("RGB", (16, 12), "teal").save(file, "JPEG")
    return file.getvalue()


def make_image(task=7, **fields):
    defaults = {"label": "ant", "probability": 0.625, "bald": 0.25, "score": 0.125, "reason": "the passes disagree"}
    return RankedImage(task=task, **{**defaults, "thumbnail": thumbnail(), **fields})


def make_ranking(version, **fields):
    defaults = {
        "name": version or "cold-start-default",
        "version": version,
        "project": 3,
        "title": "Beetles",
        "created_at": (NOW - timedelta(hours=3)).isoformat(),
        "strategy": "balanced-bald-margin",
        "tasks": 12850,
        "audit": 1285,
        "near_duplicates": 412,
        "failed": 5,
        "mean_bald": 0.21,
        "first": (make_image(6, label=None, probability=None, reason="random holdout"), make_image(5)),
        "most_uncertain": (make_image(7), make_image(8)),
        "most_confident": (make_image(9, probability=0.99),),
    }
    return Ranking(**{**defaults, **fields})
