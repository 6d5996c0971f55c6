"""Shards: which parquet files are to be scored, which have been, and how one becomes whole at once.

Each file of the input is a shard, and has a file of the same name in the output, which exists once every row of it has
been scored. So a job that was broken off goes on by the files that are missing. Knows no engine and no Ray.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs
from pyarrow import parquet as pq

from contract.errors import ConfigError, LabelnextError

CLAIM = "_score-pool.json"
"""What the output was begun with; readers of parquet folders leave out names that begin so."""
_PARTIAL = "_partial"
_FOOTERS_AT_A_TIME = 16


class PoolError(LabelnextError):
    """Could not go on scoring a pool; what was done is kept."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the input's columns."""

    id: str
    """Of any type; goes into the output as it is."""
    image: str
    """A string: where the image is, in any form that a task may have."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the input."""

    name: str
    """Its path below the input, and that of its scores below the output."""
    rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to do."""

    shards: tuple[Shard, ...]
    """Without scores as yet."""
    skipped: tuple[Shard, ...]
    """With scores for as many rows as they have."""

    @property
    def rows(self) -> int:
        """Images to score."""
        return sum(shard.rows for shard in self.shards)


class Folder:
    """A folder of parquet files, on this machine's disks or in a bucket."""

    def __init__(self, location: str) -> None:
        """Take a path, or a URI such as s3://bucket/prefix, for which AWS_* variables say how to get in.

        Raises:
            ConfigError: if the URI is of no file system that pyarrow knows, or cannot be understood.
        """
        try:
            self._files, path = fs.FileSystem.from_uri(location if "://" in location else str(Path(location).resolve()))
        except (pa.ArrowException, OSError, ValueError) as err:
            raise ConfigError(f"expected a folder or an s3:// URI, got {location!r}: {err}") from err
        self.location = location
        self._root = PurePosixPath(path)

    def __contains__(self, other: "Folder") -> bool:
        return self._files.equals(other._files) and other._root.is_relative_to(self._root)

    def names(self) -> list[str]:
        """Return the paths of all parquet files below, sorted; those below names that begin with _ or . are no data.

        Raises:
            PoolError: if the folder cannot be listed.
        """
        try:
            found = self._files.get_file_info(fs.FileSelector(str(self._root), allow_not_found=True, recursive=True))
        except OSError as err:
            raise PoolError(f"{self.location} cannot be listed: {err}") from err
        paths = [PurePosixPath(each.path).relative_to(self._root) for each in found if each.is_file]
        return sorted(str(path) for path in paths if path.suffix == ".parquet" and not _hidden(path))

    def footer(self, name: str) -> tuple[int, pa.Schema]:
        """Return how many rows a file has, and its schema.

        Raises:
            PoolError: if it is no parquet file, or one that is cut short.
        """
        with self._open(name) as file:
            return file.metadata.num_rows, file.schema_arrow

    def read(self, name: str, columns: Columns, *, rows: int) -> Iterator[pa.RecordBatch]:
        """Read a file from its beginning, so many rows at a time: batches of the id's and the image's column.

        Raises:
            PoolError: if it cannot be read.
        """
        with self._open(name) as file:
            yield from file.iter_batches(rows, columns=[columns.id, columns.image])

    @contextmanager
    def writing(self, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
        """Write a file that appears under its name when the block has ended well, in the place of any other.

        Until then it is in a folder that no reader looks into, under a name that no other writer has.

        Raises:
            PoolError: if it cannot be written.
        """
        target = self._root / name
        partial = self._root / _PARTIAL / f"{secrets.token_hex(8)}.parquet"
        try:
            for folder in {target.parent, partial.parent}:
                self._files.create_dir(str(folder), recursive=True)
            with pq.ParquetWriter(str(partial), schema, filesystem=self._files, compression="zstd") as writer:
                yield writer
            self._files.move(str(partial), str(target))
        except OSError as err:
            raise PoolError(f"{name} cannot be written to {self.location}: {err}") from err

    def claim(self, wanted: Mapping[str, object]) -> None:
        """Note what scores in this folder depend on, or compare it with what was noted when the folder was begun.

        Raises:
            ConfigError: if the folder was begun with something else, so that scores in it could not be compared, or
                holds files that nobody noted anything about.
            PoolError: if the note cannot be read or written.
        """
        path = str(self._root / CLAIM)
        try:
            if self._files.get_file_info(path).type == fs.FileType.NotFound:
                if self.names():
                    raise ConfigError(f"{self.location} holds parquet files of others; name an empty folder")
                self._files.create_dir(str(self._root), recursive=True)
                with self._files.open_output_stream(path) as file:
                    file.write(json.dumps(wanted).encode())
            with self._files.open_input_stream(path) as file:
                found = json.loads(file.read())
        except (OSError, ValueError) as err:
            raise PoolError(f"{CLAIM} in {self.location} cannot be used: {err}") from err
        if found != dict(wanted):
            raise ConfigError(
                f"{self.location} was begun with {_show(found)}, and this is {_show(wanted)}; "
                "go on with the same version and settings (--version), or name another output"
            )

    def sweep(self) -> None:
        """Remove what writers left that were killed; no other may be at work."""
        with suppress(FileNotFoundError):
            self._files.delete_dir(str(self._root / _PARTIAL))

    @contextmanager
    def _open(self, name: str) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(str(self._root / name), filesystem=self._files) as file:
                yield file
        except (pa.ArrowException, OSError) as err:
            raise PoolError(f"{name} in {self.location} cannot be read ({err}); write it again") from err


def plan(source: Folder, target: Folder, columns: Columns) -> Plan:
    """Find the shards of an input, and those that the output has scores of already.

    Raises:
        ConfigError: if there are none, one lacks a column, or the output lies in the input.
        PoolError: if a file cannot be read.
    """
    if target in source:
        raise ConfigError(f"the output {target.location} would become part of the input {source.location}; part them")
    with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
        shards = list(pool.map(lambda name: _look_at(source, name, columns), source.names()))
        present = target.names()
        rows = dict(zip(present, pool.map(lambda name: target.footer(name)[0], present), strict=True))
    if not shards:
        raise ConfigError(f"expected parquet files in {source.location}, found none")
    whole = {shard.name: rows.get(shard.name) == shard.rows for shard in shards}
    return Plan(
        shards=tuple(shard for shard in shards if not whole[shard.name]),
        skipped=tuple(shard for shard in shards if whole[shard.name]),
    )


def _look_at(source: Folder, name: str, columns: Columns) -> Shard:
    rows, schema = source.footer(name)
    if missing := {columns.id, columns.image} - set(schema.names):
        raise ConfigError(
            f"{name} has no column {', '.join(sorted(missing))}, only {', '.join(schema.names[:10])}; "
            "name them with --id and --column"
        )
    if not _is_text(kind := schema.field(columns.image).type):
        raise ConfigError(f"column {columns.image} of {name} must hold strings, where images are; it holds {kind}")
    return Shard(name, rows)


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(("_", ".")) for part in path.parts)


def _show(claim: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in claim.items())
