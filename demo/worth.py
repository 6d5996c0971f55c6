"""What the order is worth: how far as many labels come that were given in it, and at random; counted, and as a page."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from demo.pool import Pool, PoolImage

_SHOWN = 24


@dataclass(frozen=True, slots=True)
class Worth:
    """How far labels have come: what people have labelled is right, and so is what the model guesses rightly."""

    labels: int
    rare_labelled: int
    """Images of rare classes among them."""
    rare_right: int
    """Images of rare classes in the whole pool whose label or guess is right."""
    right: float
    """The share of the whole pool, in [0, 1], whose label or guess is right."""


def measure(pool: Pool, labelled: Collection[str], guesses: Mapping[str, str]) -> Worth:
    """Count what is right in a pool, by the names of what is labelled, and what a model takes the others for."""
    known = [image for image in pool.images if image.name in labelled]
    right = [image for image in pool.images if image.name in labelled or guesses.get(image.name) == image.label]
    return Worth(len(labelled), count_rare(pool, known), count_rare(pool, right), len(right) / len(pool.images))


def count_rare(pool: Pool, images: Sequence[PoolImage]) -> int:
    """Return how many are of a rare class."""
    return sum(image.label in pool.rare for image in images)


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
