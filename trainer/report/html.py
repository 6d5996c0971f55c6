"""Reports as one HTML file each: nothing is loaded from elsewhere, no script runs, and all text is escaped.

The one module of the trainer that imports jinja2. Templates lie in `templates` beside it and extend `base.html`.
"""

from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from contract.versions import learning_curve

_TEMPLATES: Final = Path(__file__).parent / "templates"


def render(template: str, **context: Any) -> str:
    """Return a template's page. SVG from `trainer.report.plots.to_svg` may be among what is shown."""
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8") + learning_curve.STYLE
    return _environment().get_template(template).render(style=Markup(style), **context).lstrip()  # noqa: S704  # our file


@cache  # with the templates that it has compiled
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
