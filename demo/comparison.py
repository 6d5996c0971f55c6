"""Compares labels in the ranked order with as many random ones, in figures and on an HTML page."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from demo.pool import Pool, PoolImage

_IMAGES_SHOWN = 24


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state of a pool; an image is correct if it is labelled or its prediction is correct."""

    labels: int
    rare_labelled: int
    """Labelled images of rare classes."""
    rare_correct: int
    """Correct images of rare classes."""
    accuracy: float
    """The share of correct images in the pool, in [0, 1]."""


def measure(pool: Pool, labelled: Collection[str], predicted: Mapping[str, str]) -> Outcome:
    """Return the outcome, given the names of labelled images, and the predictions of the others by name."""
    known = [image for image in pool.images if image.name in labelled]
    correct = [image for image in pool.images if image.name in labelled or predicted.get(image.name) == image.label]
    return Outcome(len(labelled), count_rare(pool, known), count_rare(pool, correct), len(correct) / len(pool.images))


def count_rare(pool: Pool, images: Sequence[PoolImage]) -> int:
    """Return the number of images of rare classes."""
    return sum(image.label in pool.rare for image in images)


def write_page(
    path: Path, pool: Pool, orders: Mapping[str, Sequence[PoolImage]], outcomes: Mapping[str, Outcome], *, origin: str
) -> None:
    """Write the page: the first images of each order, and the outcome of each way of labelling."""
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
        outcomes=outcomes,
        orders={heading: images[:_IMAGES_SHOWN] for heading, images in orders.items()},
        count_rare=count_rare,
    )
    path.write_text(page, encoding="utf-8")
