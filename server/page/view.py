"""The page at `/`: which version is in use, how good it is, and what it would have labelled next.

Labels, titles and reasons were written by people, so all text is escaped, and neither scripts nor anything from
elsewhere is on the page. Reads the repository; knows no routes.
"""

import base64
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from contract.errors import LabelnextError
from contract.scores.ranking import load_rankings
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.training_requests import find_requests
from server.page import learning_curve
from server.page.metrics import Yardstick, read_classes, read_figures, read_yardstick
from server.page.reports import has_report

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_STYLE_DIGEST}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""No script runs, nothing is loaded from elsewhere, and no cache keeps the images."""

_VERSIONS = 20
"""How many of the last versions are on the curve."""
_GALLERY = 24
"""Images of a gallery that are shown."""
_TEXT = 300
"""Characters of a text that are shown."""
_JPEG = b"\xff\xd8\xff"

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Serving(Protocol):
    """What is shown of an engine."""

    @property
    def manifest(self) -> Manifest:
        """That of the version in use."""

    @property
    def passes(self) -> int:
        """T."""

    @property
    def provider(self) -> str:
        """The device."""

    @property
    def precision(self) -> str | None:
        """Of the trunk."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a version says of itself, and of those before it."""

    point: learning_curve.Point | None
    yardstick: Yardstick | None


class Page:
    """Renders the page; remembers what it has read of versions, which never change."""

    def __init__(self, repository: Repository, *, label_studio_url: str | None) -> None:
        """Take the repository to show and Label Studio's address, to which links lead; None makes no links."""
        self._repository = repository
        self._label_studio_url = label_studio_url
        self._read_entry = lru_cache(maxsize=4 * _VERSIONS)(self._read_entry_anew)
        environment = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(
            time=_parse_time,
            text=_cut,
            jpeg=_data_uri,
            count="{:,}".format,
            percent="{:.0%}".format,
            figure="{:.2f}".format,
            fine="{:.3f}".format,
        )
        self._template = environment.get_template("page.html")

    def render(self, *, up: bool, detail: str | None, serving: Serving | None, now: datetime) -> bytes:
        """Return the page in UTF-8.

        Args:
            up: whether the server can do its work.
            detail: why it cannot, or what else there is to say; None for nothing.
            serving: the engine in use; None before the first.
            now: in UTC.
        """
        version = serving.manifest.version if serving else None
        versions = self._read(Repository.history)
        rankings = self._read(load_rankings)
        html = self._template.render(
            style=Markup(_STYLE),  # noqa: S704  # a file of this package
            model=self._repository.model,
            up=up,
            detail=detail,
            serving=serving,
            figures=read_figures(serving.manifest) if serving else None,
            classes=read_classes(serving.manifest) if serving else None,
            has_report=has_report(serving.manifest) if serving else False,
            versions=versions,
            curve=self._draw_curve(versions[-_VERSIONS:]),
            height=learning_curve.HEIGHT,
            rankings=[ranking for ranking in rankings if ranking.version == version],
            former_rankings=[ranking for ranking in rankings if ranking.version != version],
            requests=self._read(find_requests),
            gallery=_GALLERY,
            ago=lambda moment: show_ago(moment, now),
            link=self._link,
        )
        return html.lstrip().encode("utf-8", "replace")  # JSON may hold halves of characters, of which UTF-8 has none

    def _read(self, read: Callable[[Repository], list[_T]]) -> list[_T]:
        """Return what there is of something; none where it cannot be read at all, for the rest can still be shown."""
        try:
            return read(self._repository)
        except (OSError, ArithmeticError, RecursionError) as err:
            _log.warning("something is left out of the page: %s", err)
            return []

    def _draw_curve(self, versions: list[str]) -> learning_curve.Curve | None:
        """Return the curve over those that say how good they are; None if none does.

        The newest version that was measured beside others says what all of them came to on the same images.
        """
        found = [entry for name in versions if (entry := self._find_entry(name))]
        yardstick = next((entry.yardstick for entry in reversed(found) if entry.yardstick), None)
        points = [_on_yardstick(entry.point, yardstick) for entry in found if entry.point]
        return learning_curve.draw(points) if points else None

    def _find_entry(self, name: str) -> "_Entry | None":
        try:
            return self._read_entry(name)
        except (LabelnextError, OSError, ValueError, RecursionError) as err:
            _log.warning("version %s is left out of the page: %s", name, err)
            return None

    def _read_entry_anew(self, name: str) -> "_Entry":
        manifest = self._repository.read_manifest(name)
        figures = read_figures(manifest)
        if figures.labels is None or figures.macro_f1 is None:
            return _Entry(None, None)
        point = learning_curve.Point(
            name,
            manifest.created_at,
            figures.labels,
            figures.macro_f1,
            figures.interval,
            images=figures.validation_images,
            random=figures.random,
            has_report=has_report(manifest),
        )
        return _Entry(point, read_yardstick(manifest))

    def _link(self, project: int, task: int | None = None) -> str | None:
        """Return where a project, or a task of it, is in Label Studio."""
        if self._label_studio_url is None:
            return None
        return f"{self._label_studio_url}/projects/{project}/data{'' if task is None else f'?task={task}'}"


def _on_yardstick(point: learning_curve.Point, yardstick: Yardstick | None) -> learning_curve.Point:
    """Return what a version came to on the common images, where it was measured on them, and its own figures if not."""
    if yardstick is None or (measured := yardstick.versions.get(point.version)) is None:
        return point
    return replace(
        point,
        macro_f1=measured.macro_f1,
        interval=measured.interval,
        joined=True,
        images=yardstick.images,
        random=True,
    )


def show_ago(moment: datetime, now: datetime) -> str:
    """Return how long ago it was, in the largest unit that gives at least 1; clocks that differ show "just now"."""
    seconds = (now - moment).total_seconds()
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if (count := int(seconds // length)) >= 1:
            return f"{count:,} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _parse_time(text: str) -> datetime | None:
    """Return the moment that ISO 8601 names, in UTC; None for another text."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def _data_uri(image: bytes) -> str | None:
    """Return an image as the text that a page can hold it in; None if it is no JPEG."""
    return "data:image/jpeg;base64," + base64.b64encode(image).decode() if image.startswith(_JPEG) else None
