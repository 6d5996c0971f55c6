"""Objects in an S3-compatible bucket, with conditional writes.

Endpoint and credentials come from AWS_ variables. Every request has a timeout. Messages quote only status and code of a
response, since the rest may contain credentials.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError, PreconditionError
from obstore.store import S3Store

from contract.errors import ConfigError, PublishConflict, RepositoryUnreachable

if TYPE_CHECKING:
    from obstore import ObjectMeta

_SMALL_REQUEST_S: Final = 5
"""Timeout of a small request, which is retried once."""
_PART_S: Final = 60
"""Timeout of a part of a file: 1.2 megabits per second are enough."""
_PART_BYTES: Final = 8 * 2**20
_CONCURRENT_PARTS: Final = 2
_CONNECT_S: Final = 3
_PAUSE_S: Final = 5
"""Pause after a request without response, so that a page that makes many requests waits only once."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")


@dataclass(frozen=True, slots=True)
class Object:
    """The content of an object, and its ETag for conditional writes."""

    content: bytes
    tag: str


class Bucket:
    """The objects below a prefix of a bucket; keys are relative to it.

    Methods raise RepositoryUnreachable if the bucket does not respond, or refuses.
    """

    def __init__(self, name: str, prefix: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Make no requests yet; `clock` returns seconds. ConfigError if an AWS_ variable is invalid."""
        _check_endpoint(os.environ)
        self.location = f"s3://{name}/{prefix}".rstrip("/")
        self._clock = clock
        self._paused_until = -float("inf")
        try:
            self._small = _connect(name, prefix, timeout_s=_SMALL_REQUEST_S, retries=1)
            self._large = _connect(name, prefix, timeout_s=_PART_S, retries=2)
        except BaseError as err:
            raise ConfigError(
                f"{self.location} cannot be opened: an AWS_ variable has an invalid value; check AWS_ALLOW_HTTP, "
                "AWS_CONDITIONAL_PUT and other booleans"
            ) from err

    def read(self, key: str, *, max_bytes: int) -> Object:
        """Return an object.

        Raises:
            FileNotFoundError: if there is none.
            RepositoryUnreachable: also if it has more than `max_bytes`, or no ETag.
        """
        with self._explaining_errors(f"read ({key})"):
            result = obstore.get(self._small, key)
            size, tag = result.meta["size"], result.meta["e_tag"]
            if size <= max_bytes and tag:
                content = bytes(result.bytes()) if size <= _PART_BYTES else b"".join(self._parts(key, size))
                return Object(content, tag)
        raise RepositoryUnreachable(
            f"{self.location}/{key} must be an object of at most {max_bytes} bytes with an ETag, it has {size} bytes "
            f"and the ETag {tag}; remove objects that are not the repository's"
        )

    def times(self, prefix: str) -> dict[str, datetime]:
        """Return when each object below a prefix was written, by key, unordered."""
        with self._explaining_errors(f"listed ({prefix})"):
            return {
                each["path"]: each["last_modified"] for chunk in obstore.list(self._small, prefix) for each in chunk
            }

    def names(self, prefix: str) -> list[str]:
        """Return the sorted names of the objects and folders in a folder."""
        with self._explaining_errors(f"listed ({prefix})"):
            listing = obstore.list_with_delimiter(self._small, prefix or None)
        paths = [*listing["common_prefixes"], *(each["path"] for each in listing["objects"])]
        return sorted(path.rpartition("/")[2] for path in paths)

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, if it exists."""
        with self._explaining_errors(f"read ({key})"):
            meta = self._head(key)
        return meta and meta["size"]

    def download(self, key: str, target: Path, *, size_bytes: int) -> str:
        """Write the first `size_bytes` of an object, or fewer if it is shorter, to a file, and return their sha256.

        Raises:
            FileNotFoundError: if there is no such object.
            OSError: if the file cannot be written.
        """
        digest = hashlib.sha256()
        with target.open("wb") as file:
            for part in self._parts(key, size_bytes):
                digest.update(part)
                file.write(part)
        return digest.hexdigest()

    def _parts(self, key: str, size_bytes: int) -> Iterator[bytes]:
        """Yield the first bytes of an object in parts, each within the timeout."""
        for start in range(0, size_bytes, _PART_BYTES):
            length = min(_PART_BYTES, size_bytes - start)
            with self._explaining_errors(f"read ({key})"):
                part = bytes(obstore.get_range(self._large, key, start=start, length=length))
            yield part
            if len(part) < length:
                return

    def upload(self, key: str, source: Path) -> None:
        """Create an object from a file.

        Raises:
            PublishConflict: if the key exists already, whose object stays.
            OSError: if the file cannot be read.
        """
        with self._explaining_errors(f"written ({key})"):
            if source.stat().st_size <= _PART_BYTES:
                is_new = self._put_if(key, source.read_bytes(), None, self._large)
            elif is_new := self._head(key) is None:  # multipart uploads of large files cannot be conditional
                self.overwrite(key, source)
        if not is_new:
            raise PublishConflict(f"{self.location}/{key} exists already, and versions never change; publish again")

    def overwrite(self, key: str, source: Path) -> None:
        """Create or replace an object from a file; if this fails, the old object stays.

        Raises:
            OSError: if the file cannot be read.
        """
        with self._explaining_errors(f"written ({key})"):
            obstore.put(self._large, key, source, chunk_size=_PART_BYTES, max_concurrency=_CONCURRENT_PARTS)

    def write(self, key: str, content: bytes) -> None:
        """Create or replace an object."""
        with self._explaining_errors(f"written ({key})"):
            obstore.put(self._small, key, content, use_multipart=False)

    def replace(self, key: str, content: bytes, *, expected: str | None) -> None:
        """Replace an object that still has the expected tag; None creates one that must not exist yet.

        After RepositoryUnreachable it may or may not have been written.

        Raises:
            PublishConflict: if the object has changed.
        """
        with self._explaining_errors(f"written ({key})"):
            if self._put_if(key, content, expected, self._small):
                return
            # Ceph 16 compares tags without quotes; after another writer, the tag has changed.
            meta = self._head(key)
            tag = meta["e_tag"] if meta else None
            if tag is None or tag != expected or not self._put_if(key, content, tag.strip('"'), self._small):
                raise PublishConflict(f"{self.location}/{key} was changed by another writer")

    def _put_if(self, key: str, content: bytes, expected: str | None, store: S3Store) -> bool:
        """Write an object conditionally; return whether it now has this content, even if a response was lost."""
        try:
            obstore.put(store, key, content, mode="create" if expected is None else {"e_tag": expected})
            return True
        except (AlreadyExistsError, PreconditionError):
            with suppress(FileNotFoundError):
                result = obstore.get(self._small, key)
                return result.meta["size"] == len(content) and bytes(result.bytes()) == content
            return False

    def _head(self, key: str) -> "ObjectMeta | None":
        try:
            return obstore.head(self._small, key)
        except FileNotFoundError:
            return None

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, as far as they exist."""
        with self._explaining_errors("cleared"):
            obstore.delete(self._small, keys)

    @contextmanager
    def _explaining_errors(self, action: str) -> Iterator[None]:
        if self._clock() < self._paused_until:
            raise RepositoryUnreachable(f"{self.location} did not answer a moment ago; retry in a few seconds")
        try:
            yield
        except BaseException as err:
            is_gone = isinstance(err, FileNotFoundError) and "<Code>NoSuchBucket<" in str(err)
            # A panic of the library is no Exception, and would terminate threads silently.
            if not is_gone and not isinstance(err, BaseError) and type(err).__name__ != "PanicException":
                raise
            raise self._explain(err, action) from None

    def _explain(self, err: BaseException, action: str) -> RepositoryUnreachable:
        """Return an error with the cause and remedy, without the library's message."""
        text = str(err)
        if isinstance(err, InvalidPathError):
            return RepositoryUnreachable(
                f"{self.location} could not be {action}: an object has a name with empty parts, . or ..; remove it"
            )
        status, code = _STATUS.search(text), _CODE.search(text)
        if status is None:
            self._paused_until = self._clock() + _PAUSE_S
        reply = f"answered {status[1]}{f' ({code[1]})' if code else ''}" if status else "did not answer"
        return RepositoryUnreachable(f"{self.location} could not be {action}: it {reply}; {_advise(text, status)}")


def _check_endpoint(environ: Mapping[str, str]) -> None:
    """Check the AWS_ENDPOINT variables: an invalid URL would terminate the library's thread."""
    for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        value = environ.get(name, "http://localhost")
        try:
            parts = urlsplit(value)
            good = parts.scheme in {"http", "https"} and parts.hostname and "@" not in value and value.isascii()
        except ValueError:
            good = False
        if not good or not value.isprintable() or " " in value:
            raise ConfigError(f"{name} must be an http or https URL without a password, got something else")


def _connect(name: str, prefix: str, *, timeout_s: int, retries: int) -> S3Store:
    # Timeouts in `client_options` would override the AWS_ variables for the client.
    config = cast("Any", {"timeout": f"{timeout_s}s", "connect_timeout": f"{_CONNECT_S}s"})
    return S3Store(
        name,
        prefix=prefix or None,
        config=config,
        retry_config={
            "max_retries": retries,
            "retry_timeout": timedelta(seconds=timeout_s * retries),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
        },
    )


def _advise(text: str, status: re.Match[str] | None) -> str:
    if "/latest/api/token" in text or "/latest/meta-data" in text:
        return "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if "BadScheme" in text:
        return "AWS_ENDPOINT is an http URL; set AWS_ALLOW_HTTP=true to allow that"
    if status and status[1] in {"401", "403"}:
        return "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their permissions"
    return "check the bucket's name, AWS_ENDPOINT, AWS_REGION and the network"
