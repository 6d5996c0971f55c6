"""Renders reports as self-contained HTML files, without scripts or external resources, from `templates`."""

from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from contract.versions import learning_curve

_TEMPLATES: Final = Path(__file__).parent / "templates"


def render(template: str, **context: Any) -> str:
    """Return the page of a template; all text is escaped except Markup, such as SVG plots."""
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8") + learning_curve.STYLE
    return _environment().get_template(template).render(style=Markup(style), **context).lstrip()  # noqa: S704  # our file


@cache  # keeps compiled templates
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count="{:,}".format,
        percent="{:.0%}".format,
        figure="{:.2f}".format,
        fine="{:.3f}".format,
        signed="{:+.3f}".format,
    )
    return environment
