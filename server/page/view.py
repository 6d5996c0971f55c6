"""Renders the page of a model (version in use, metrics, next images to label), and the page of all models.

All text is escaped, because users write labels and titles; the pages contain no scripts and load nothing.
"""

import base64
import hashlib
import logging
import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from contract.errors import LabelnextError
from contract.scores.ranking import load_rankings
from contract.settings import DEFAULT_MODEL
from contract.versions import learning_curve
from contract.versions.learning_curve import find_line, find_points
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.training_requests import find_requests
from server.inference.engine import Engine
from server.inference.model import Model
from server.page.reports import has_report, make_headers

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = (_TEMPLATES / "page.css").read_text(encoding="utf-8") + learning_curve.STYLE
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS: Final = make_headers(cache="no-store", style=f"'sha256-{_STYLE_DIGEST}'")
"""The page contains images, which no cache may keep."""

_MAX_CLASSES = 24
"""Up to this many classes are listed in one table."""
_EXTREMES = 10
"""Otherwise, the number of weakest and of strongest classes in tables of their own."""
_VERSIONS = 20
"""Versions on the learning curve."""
_GALLERY = 24
"""Images in a gallery."""
_MAX_CHARS = 300
_MAX_CHARS_NARROW = 60
"""In a narrow column."""
_JPEG = b"\xff\xd8\xff"

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _Class(NamedTuple):
    label: str
    images: int | None
    """Number of labelled images; None if unknown."""
    f1: float | None


class Page:
    """Renders the page of a model, and caches the manifests of versions, which never change."""

    def __init__(self, repository: Repository, *, label_studio_url: str | None) -> None:
        """Link to Label Studio at this address; None for no links."""
        self._repository = repository
        self._label_studio_url = label_studio_url
        self._read_manifest = lru_cache(maxsize=4 * _VERSIONS)(repository.read_manifest)

    def render(
        self, *, up: bool, detail: str | None, serving: Engine | None, now: datetime, is_one_of_several: bool = False
    ) -> bytes:
        """Return the page as HTML in UTF-8; `now` is in UTC.

        `up` is whether the server can score, `detail` why not, or another notice. If the model is one of several,
        the page links to the page of all models, two levels above.
        """
        manifest = serving.manifest if serving else None
        version = manifest.version if manifest else None
        versions = self._read(Repository.history)
        points = find_points(self._read_manifests(versions[-_VERSIONS:]))
        rankings = self._read(load_rankings)
        return _render(
            "page.html",
            now,
            is_one_of_several=is_one_of_several,
            model=self._repository.model,
            up=up,
            detail=detail,
            serving=serving,
            manifest=manifest,
            classes=_arrange_classes(manifest) if manifest else None,
            versions=versions,
            points=points,
            line=find_line(points),
            curve=Markup(learning_curve.draw(points, in_use=version)) if points else None,  # noqa: S704  # of numbers
            rankings=[ranking for ranking in rankings if ranking.version == version],
            former_rankings=[ranking for ranking in rankings if ranking.version != version],
            requests=self._read(find_requests),
            gallery=_GALLERY,
            link=partial(_link, self._label_studio_url),
        )

    def _read(self, read: Callable[[Repository], list[_T]]) -> list[_T]:
        """Return the result of `read`, or an empty list if it fails, so that the rest of the page can be shown."""
        try:
            return read(self._repository)
        except (OSError, ArithmeticError, RecursionError) as err:
            _log.warning("a part of the page is left out: %s", err)
            return []

    def _read_manifests(self, names: list[str]) -> list[Manifest]:
        manifests = []
        for name in names:
            try:
                manifests.append(self._read_manifest(name))
            except (LabelnextError, OSError, ValueError, RecursionError) as err:
                _log.warning("version %s is left out of the page: %s", name, err)
        return manifests


def render_models(
    models: Sequence[Model], *, up: bool, detail: str | None, label_studio_url: str | None, now: datetime
) -> bytes:
    """Return the page of all models as HTML in UTF-8; it links to their pages at `p/<model>/`."""
    rows = [_make_row(model) for model in models]
    return _render("models.html", now, models=rows, up=up, detail=detail, link=partial(_link, label_studio_url))


def _render(template: str, now: datetime, **context: object) -> bytes:
    style = Markup(_STYLE)  # noqa: S704  # a file of this package
    html = _environment().get_template(template).render(style=style, ago=partial(format_age, now=now), **context)
    return html.lstrip().encode("utf-8", "replace")  # JSON may contain lone surrogates, which UTF-8 has not


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        time=_parse_time,
        text=_shorten,
        short=partial(_shorten, limit=_MAX_CHARS_NARROW),
        jpeg=_data_uri,
        count="{:,}".format,
        percent="{:.0%}".format,
        figure="{:.2f}".format,
        fine="{:.3f}".format,
        shell=shlex.quote,
    )
    environment.globals["default_model"] = DEFAULT_MODEL
    environment.tests["reported"] = has_report
    return environment


def _link(label_studio_url: str | None, project: int, task: int | None = None) -> str | None:
    if label_studio_url is None:
        return None
    return f"{label_studio_url}/projects/{project}/data{'' if task is None else f'?task={task}'}"


def _make_row(model: Model) -> dict[str, object]:
    manifest = engine.manifest if (engine := model.engine) else None
    trained_on = manifest.training.project if manifest else None
    projects = {*model.projects, *([trained_on.id] if trained_on else [])}
    return {"name": model.name, "manifest": manifest, "detail": model.detail, "projects": sorted(projects)}


def _arrange_classes(manifest: Manifest) -> dict[str, list[_Class]]:
    """Return a version's classes by table: sorted by F1, or for many classes the weakest, strongest and others."""
    images, f1 = manifest.training.images_by_class, manifest.metrics.f1 or (None,) * len(manifest.labels)
    classes = [_Class(label, images.get(label), f1) for label, f1 in zip(manifest.labels, f1, strict=True)]
    rated = sorted((each for each in classes if each.f1 is not None), key=lambda each: each.f1 or 0.0)
    if len(classes) <= _MAX_CLASSES:
        return {"weakest": rated + [each for each in classes if each.f1 is None], "strongest": [], "others": []}
    weakest, strongest = rated[:_EXTREMES], rated[_EXTREMES:][-_EXTREMES:][::-1]
    extremes = {each.label for each in (*weakest, *strongest)}
    others = [each for each in classes if each.label not in extremes]
    return {"weakest": weakest, "strongest": strongest, "others": others}


def format_age(moment: datetime, now: datetime) -> str:
    """Return the age of a moment, such as "2 hours ago"; "just now" for less than a minute or a future moment."""
    seconds = (now - moment).total_seconds()
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if (count := int(seconds // length)) >= 1:
            return f"{count:,} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _parse_time(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _shorten(text: str, limit: int = _MAX_CHARS) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _data_uri(image: bytes) -> str | None:
    """Return a JPEG as a data URI; None for other data."""
    return "data:image/jpeg;base64," + base64.b64encode(image).decode() if image.startswith(_JPEG) else None
