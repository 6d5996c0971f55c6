"""The demo's page: what the order was worth, beside what came first in it and what chance would have brought.

One HTML file that shows the images from where they lie; no script runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from demo.pool import Pool, PoolImage
from demo.worth import Worth, count_rare

_SHOWN = 24


def write_page(
    path: Path, pool: Pool, orders: Mapping[str, Sequence[PoolImage]], worths: Mapping[str, Worth], *, origin: str
) -> None:
    """Write the page: images below the heading of their order, and what labels came to, by who chose them."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        pool=pool,
        rare_images=count_rare(pool, pool.images),
        origin=origin,
        worths=worths,
        orders={heading: images[:_SHOWN] for heading, images in orders.items()},
        count_rare=count_rare,
    )
    path.write_text(page, encoding="utf-8")
