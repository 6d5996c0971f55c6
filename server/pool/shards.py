"""Shards: the parquet files of input and output.

Each file of the input is a shard. Its scores are a file of the same name in the output, which appears when every row
has been scored, so that an interrupted job continues with the missing files.
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
"""Records the version and settings of the scores. Readers of parquet folders skip names that begin with _."""
_PARTIAL = "_partial"
_FOOTERS_AT_A_TIME = 16


class PoolError(LabelnextError):
    """The job cannot continue; finished shards are kept."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the input."""

    name: str
    """Its path in the input, and that of its scores in the output."""
    rows: int


class Folder:
    """A folder of parquet files, local or in a bucket. Methods raise PoolError if reading or writing fails."""

    def __init__(self, location: str) -> None:
        """Open a path, or a URI such as s3://bucket/prefix, which needs credentials in AWS_* variables.

        Raises:
            ConfigError: if pyarrow does not support the URI.
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
        """Return the sorted paths of all parquet files below, without paths in which a part begins with _ or a dot."""
        with _explaining(f"{self.location} cannot be listed"):
            entries = self._files.get_file_info(fs.FileSelector("", allow_not_found=True, recursive=True))
        paths = [PurePosixPath(entry.path) for entry in entries if entry.is_file]
        return sorted(
            str(path)
            for path in paths
            if path.suffix == ".parquet" and not any(part.startswith(("_", ".")) for part in path.parts)
        )

    @contextmanager
    def open(self, name: str) -> Iterator[pq.ParquetFile]:
        """Context manager for a file to read."""
        with (
            _explaining(f"{name} in {self.location} cannot be read; write it again"),
            pq.ParquetFile(name, filesystem=self._files) as file,
        ):
            yield file

    def read(self, name: str, columns: list[str], *, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of a file in batches of at most `rows` rows."""
        with self.open(name) as file:
            yield from file.iter_batches(rows, columns=columns)

    def footers(self) -> dict[str, tuple[int, pa.Schema]]:
        """Return the number of rows and the schema of each file."""

        def read(name: str) -> tuple[int, pa.Schema]:
            with self.open(name) as file:
                return file.metadata.num_rows, file.schema_arrow

        with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as threads:
            return dict(zip(names := self.names(), threads.map(read, names), strict=True))

    def write(self, name: str, table: pa.Table) -> None:
        """Write or replace a file; readers see it only when it is complete."""
        partial = f"{_PARTIAL}/{secrets.token_hex(8)}.parquet"
        with _explaining(f"{name} cannot be written to {self.location}"):
            for path in (name, partial):
                self._files.create_dir(str(PurePosixPath(path).parent), recursive=True)
            pq.write_table(table, partial, filesystem=self._files, compression="zstd")
            self._files.move(partial, name)

    def remove_partial(self) -> None:
        """Remove the unfinished files of killed writers; no writer may be running."""
        with _explaining(f"unfinished files in {self.location} cannot be removed"), suppress(FileNotFoundError):
            self._files.delete_dir(_PARTIAL)

    def lock(self, settings: Mapping[str, object]) -> None:
        """Record the version and settings of the scores in this folder, or compare them with those recorded.

        Raises:
            ConfigError: if the recorded ones differ, or the folder has files but no record.
        """
        with _explaining(f"{LOCK_FILE} in {self.location} cannot be used"):
            if self._files.get_file_info(LOCK_FILE).type == fs.FileType.NotFound:
                if self.names():
                    raise ConfigError(f"{self.location} has parquet files but no {LOCK_FILE}; choose an empty folder")
                self._files.base_fs.create_dir(self._files.base_path, recursive=True)
                with self._files.open_output_stream(LOCK_FILE) as file:
                    file.write(json.dumps(settings).encode())
            with self._files.open_input_stream(LOCK_FILE) as file:
                recorded = json.loads(file.read())
        if recorded != dict(settings):
            raise ConfigError(
                f"{self.location} was scored with {_format(recorded)}, this job would use {_format(settings)}; "
                "use the same version and settings (--version), or another output"
            )


def find_shards(options: PoolOptions) -> tuple[list[Shard], int]:
    """Return the shards to score, and the number of those whose output exists and has as many rows.

    Raises:
        ConfigError: if a location is not supported, the input has no files, one lacks a column or has no strings in
            that of the images, or the output lies in the input.
        PoolError: if a file cannot be read.
    """
    source, target = Folder(options.input), Folder(options.output)
    if target in source:
        raise ConfigError(f"the output {target.location} lies in the input {source.location}; choose another folder")
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
            "choose columns with --id and --column"
        )
    kind = schema.field(options.column).type
    if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise ConfigError(f"column {options.column} of {name} must contain strings, references to images, got {kind}")


@contextmanager
def _explaining(failure: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as err:
        raise PoolError(f"{failure} ({err})") from err


def _format(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
