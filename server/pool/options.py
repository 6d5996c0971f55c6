"""Options of `score-pool`. Imports neither Ray nor pyarrow, which the server's images lack."""

from typing import Annotated

from pydantic.dataclasses import dataclass

from contract.commands import Option
from contract.settings import DECLARED, Count, parsed


def _parse_workers(value: str) -> tuple[int, int]:
    minimum, _, maximum = value.partition("-")
    maximum = maximum or minimum
    if not (minimum.isdecimal() and maximum.isdecimal() and 1 <= int(minimum) <= int(maximum)):
        raise ValueError("a number, or a minimum and a maximum such as 2-8")
    return int(minimum), int(maximum)


@dataclass(frozen=True, kw_only=True, config=DECLARED)
class PoolOptions:
    """Input, output, version and resources of a job."""

    input: str
    """A folder or s3:// URI with parquet files."""
    output: str
    """A folder or s3:// URI that gets one file of scores for each input file."""
    id: str = "id"
    """The column that names an image."""
    column: str = "image"
    """The column that says where the image is."""
    version: str | None = None
    """The version to score with (default: the current one)."""
    workers: Annotated[tuple[int, int] | None, parsed(_parse_workers), Option(metavar="N|MIN-MAX")] = None
    """Processes that score (default: up to one for each GPU or, without GPUs, for each machine)."""
    cpus: Count | None = None
    """Cores of each worker (default: an even share of all)."""
    batch: Count | None = None
    """Images in one run of the graph (default: LABELNEXT_MAX_BATCH_IMAGES)."""
