"""Shards: which parquet files are to be scored, which have been, and how one becomes whole at once.

Each file of the input is a shard, and has a file of the same name in the output, which exists once every row of it has
been scored. So a job that was broken off goes on by the files that are missing.
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
from server.pool.options import PoolOptions

LOCK_FILE = "_score-pool.json"
"""What scores in the output depend on; readers of parquet folders leave out names that begin so."""
_PARTIAL = "_partial"
_FOOTERS_AT_A_TIME = 16


class PoolError(LabelnextError):
    """Could not go on scoring a pool; what was done is kept."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the input."""

    name: str
    """Its path below the input, and that of its scores below the output."""
    rows: int


class Folder:
    """A folder of parquet files, on this machine's disks or in a bucket. Its methods raise PoolError where it fails."""

    def __init__(self, location: str) -> None:
        """Take a path, or a URI such as s3://bucket/prefix, for which AWS_* variables say how to get in.

        Raises:
            ConfigError: if the URI is of no file system that pyarrow knows, or cannot be understood.
        """
        try:
            files, path = fs.FileSystem.from_uri(location if "://" in location else str(Path(location).resolve()))
        except (pa.ArrowException, OSError, ValueError) as err:
            raise ConfigError(f"expected a folder or an s3:// URI, got {location!r}: {err}") from err
        self.location = location
        self._files = fs.SubTreeFileSystem(path, files)

    def __contains__(self, other: "Folder") -> bool:
        inner, outer = other._files, self._files
        return bool(inner.base_fs.equals(outer.base_fs)) and str(inner.base_path).startswith(outer.base_path)

    def names(self) -> list[str]:
        """Return the paths of all parquet files below, sorted; those below names that begin with _ or . are no data."""
        with _explaining(f"{self.location} cannot be listed"):
            found = self._files.get_file_info(fs.FileSelector("", allow_not_found=True, recursive=True))
        paths = [PurePosixPath(each.path) for each in found if each.is_file]
        return sorted(
            str(path)
            for path in paths
            if path.suffix == ".parquet" and not any(part.startswith(("_", ".")) for part in path.parts)
        )

    @contextmanager
    def open(self, name: str) -> Iterator[pq.ParquetFile]:
        """Open a file to read."""
        with (
            _explaining(f"{name} in {self.location} cannot be read; write it again"),
            pq.ParquetFile(name, filesystem=self._files) as file,
        ):
            yield file

    def footers(self) -> dict[str, tuple[int, pa.Schema]]:
        """Return how many rows each file has, and its schema."""

        def read(name: str) -> tuple[int, pa.Schema]:
            with self.open(name) as file:
                return file.metadata.num_rows, file.schema_arrow

        with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as threads:
            return dict(zip(names := self.names(), threads.map(read, names), strict=True))

    def write(self, name: str, table: pa.Table) -> None:
        """Write a file that appears under its name when it is whole, in the place of any other."""
        partial = f"{_PARTIAL}/{secrets.token_hex(8)}.parquet"
        with _explaining(f"{name} cannot be written to {self.location}"):
            for path in (name, partial):
                self._files.create_dir(str(PurePosixPath(path).parent), recursive=True)
            pq.write_table(table, partial, filesystem=self._files, compression="zstd")
            self._files.move(partial, name)

    def remove_partial(self) -> None:
        """Remove what writers left that were killed; no other may be at work."""
        with suppress(FileNotFoundError):
            self._files.delete_dir(_PARTIAL)

    def lock(self, wanted: Mapping[str, object]) -> None:
        """Note what scores in this folder depend on, or compare it with what was noted when the folder was begun.

        Raises:
            ConfigError: if the folder was begun with something else, so that scores in it could not be compared, or
                holds files that nobody noted anything about.
        """
        with _explaining(f"{LOCK_FILE} in {self.location} cannot be used"):
            if self._files.get_file_info(LOCK_FILE).type == fs.FileType.NotFound:
                if self.names():
                    raise ConfigError(f"{self.location} holds parquet files of others; name an empty folder")
                self._files.base_fs.create_dir(self._files.base_path, recursive=True)
                with self._files.open_output_stream(LOCK_FILE) as file:
                    file.write(json.dumps(wanted).encode())
            with self._files.open_input_stream(LOCK_FILE) as file:
                found = json.loads(file.read())
        if found != dict(wanted):
            raise ConfigError(
                f"{self.location} was begun with {_show(found)}, and this is {_show(wanted)}; "
                "go on with the same version and settings (--version), or name another output"
            )


def find_shards(options: PoolOptions) -> tuple[list[Shard], int]:
    """Return the shards without scores as yet, and of how many others the output has scores for as many rows.

    Raises:
        ConfigError: if there are none, one lacks a column, or the output lies in the input.
        PoolError: if a file cannot be read.
    """
    source, target = Folder(options.input), Folder(options.output)
    if target in source:
        raise ConfigError(f"the output {target.location} would become part of the input {source.location}; part them")
    footers = source.footers()
    if not footers:
        raise ConfigError(f"expected parquet files in {source.location}, found none")
    for name, (_, schema) in footers.items():
        _check_columns(name, schema, options)
    scored = {name: rows for name, (rows, _) in target.footers().items()}
    shards = [Shard(name, rows) for name, (rows, _) in footers.items() if scored.get(name) != rows]
    return shards, len(footers) - len(shards)


def _check_columns(name: str, schema: pa.Schema, options: PoolOptions) -> None:
    if missing := {options.id, options.column} - set(schema.names):
        raise ConfigError(
            f"{name} has no column {', '.join(sorted(missing))}, only {', '.join(schema.names[:10])}; "
            "name them with --id and --column"
        )
    kind = schema.field(options.column).type
    if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise ConfigError(f"column {options.column} of {name} must hold strings, where images are; it holds {kind}")


@contextmanager
def _explaining(failure: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as err:
        raise PoolError(f"{failure} ({err})") from err


def _show(wanted: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in wanted.items())
