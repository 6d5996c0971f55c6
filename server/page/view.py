"""A model's page: which version is in use, how good it is, and what it would have labelled next; and all models' page.

Labels, titles and reasons were written by people, so all text is escaped, and neither scripts nor anything from
elsewhere is on the page. Reads the repository; knows no routes.
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
"""No cache keeps the images."""

_LISTED_CLASSES = 24
"""Up to so many classes are listed whole."""
_ENDS = 10
"""Of more, so many stand at either end."""
_VERSIONS = 20
"""How many of the last versions are on the curve."""
_GALLERY = 24
"""Images of a gallery that are shown."""
_TEXT = 300
"""Characters of a text that are shown."""
_SHORT = 60
"""Characters of a text in a narrow column."""
_JPEG = b"\xff\xd8\xff"

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _Class(NamedTuple):
    label: str
    images: int | None
    """How many were labelled with it; None where that is not known."""
    f1: float | None


class Page:
    """Renders the page; remembers what it has read of versions, which never change."""

    def __init__(self, repository: Repository, *, label_studio_url: str | None) -> None:
        """Take Label Studio's address, to which links lead; None makes no links."""
        self._repository = repository
        self._label_studio_url = label_studio_url
        self._read_manifest = lru_cache(maxsize=4 * _VERSIONS)(repository.read_manifest)

    def render(
        self, *, up: bool, detail: str | None, serving: Engine | None, now: datetime, is_one_of_several: bool = False
    ) -> bytes:
        """Return the page in UTF-8; `now` is in UTC.

        `up` says whether the server can do its work, `detail` why it cannot, or what else there is to say. Where the
        model is one of several, a page of all is two levels above this one.
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
        """Return what there is of something; none where it cannot be read at all, for the rest can still be shown."""
        try:
            return read(self._repository)
        except (OSError, ArithmeticError, RecursionError) as err:
            _log.warning("something is left out of the page: %s", err)
            return []

    def _read_manifests(self, names: list[str]) -> list[Manifest]:
        found = []
        for name in names:
            try:
                found.append(self._read_manifest(name))
            except (LabelnextError, OSError, ValueError, RecursionError) as err:
                _log.warning("version %s is left out of the page: %s", name, err)
        return found


def render_models(
    models: Sequence[Model], *, up: bool, detail: str | None, label_studio_url: str | None, now: datetime
) -> bytes:
    """Return the page of all models in UTF-8; a model's own is at `p/<model>/` below it."""
    rows = [_describe(model) for model in models]
    return _render("models.html", now, models=rows, up=up, detail=detail, link=partial(_link, label_studio_url))


def _render(template: str, now: datetime, **context: object) -> bytes:
    style = Markup(_STYLE)  # noqa: S704  # a file of this package
    html = _environment().get_template(template).render(style=style, ago=partial(show_ago, now=now), **context)
    return html.lstrip().encode("utf-8", "replace")  # JSON may hold halves of characters, of which UTF-8 has none


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
        text=_cut,
        short=partial(_cut, most=_SHORT),
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


def _describe(model: Model) -> dict[str, object]:
    """Return what the page says of a model, all of it of one moment."""
    manifest = engine.manifest if (engine := model.engine) else None
    trained_on = manifest.training.project if manifest else None
    projects = {*model.projects, *([trained_on.id] if trained_on else [])}
    return {"name": model.name, "manifest": manifest, "detail": model.detail, "projects": sorted(projects)}


def _arrange_classes(manifest: Manifest) -> dict[str, list[_Class]]:
    """Return a version's classes, the least F1 first and those without last; of many, only the ends are sorted."""
    images, f1 = manifest.training.images_by_class, manifest.metrics.f1 or (None,) * len(manifest.labels)
    classes = [_Class(label, images.get(label), f1) for label, f1 in zip(manifest.labels, f1, strict=True)]
    rated = sorted((each for each in classes if each.f1 is not None), key=lambda each: each.f1 or 0.0)
    if len(classes) <= _LISTED_CLASSES:
        return {"weakest": rated + [each for each in classes if each.f1 is None], "strongest": [], "others": []}
    weakest, strongest = rated[:_ENDS], rated[_ENDS:][-_ENDS:][::-1]
    apart = {each.label for each in (*weakest, *strongest)}
    others = [each for each in classes if each.label not in apart]
    return {"weakest": weakest, "strongest": strongest, "others": others}


def show_ago(moment: datetime, now: datetime) -> str:
    """Return how long ago it was, in the largest unit that gives at least 1; clocks that differ show "just now"."""
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


def _cut(text: str, most: int = _TEXT) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _data_uri(image: bytes) -> str | None:
    """Return an image as the text that a page can hold it in; None if it is no JPEG."""
    return "data:image/jpeg;base64," + base64.b64encode(image).decode() if image.startswith(_JPEG) else None
