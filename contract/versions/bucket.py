"""Objects in a bucket of S3, or of what speaks its protocol: read, listed, written under conditions.

The only file that knows the library, which takes address and credentials from the AWS_ variables. Every request ends
within bounded time. Messages quote what the bucket answered no further than its status and code: there may be
credentials in the rest. Knows nothing of what the objects are.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError, PreconditionError
from obstore.store import S3Store

from contract.errors import ConfigError, PublishConflict, RepositoryUnreachable

_ANSWER_S: Final = 5
"""Of a small request, of which there is at most one more attempt."""
_PART_S: Final = 60
"""Of a part of a file: 1.2 megabits a second are enough."""
_PART_BYTES: Final = 8 * 2**20
_PARTS_AT_ONCE: Final = 2
_CONNECT_S: Final = 3
_REST_S: Final = 5
"""How long a bucket that gave no answer is not asked again, so that a page which asks for much waits only once."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")


@dataclass(frozen=True, slots=True)
class Object:
    """An object's content, and the tag that names this content in a condition."""

    content: bytes
    tag: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a listing."""

    key: str
    modified: datetime


class Bucket:
    """The objects below a prefix of a bucket; keys are relative to it."""

    def __init__(self, name: str, prefix: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the bucket's name, the prefix, and a clock in seconds; nothing is asked of the bucket yet.

        Raises:
            ConfigError: if the AWS_ variables are no settings that can be used.
        """
        _check_endpoint(os.environ)
        self.location = f"s3://{name}/{prefix}".rstrip("/")
        self._clock = clock
        self._resting_until = -float("inf")
        try:
            self._small = _connect(name, prefix, timeout_s=_ANSWER_S, retries=1)
            self._large = _connect(name, prefix, timeout_s=_PART_S, retries=2)
        except BaseError as err:
            raise ConfigError(
                f"{self.location} cannot be opened: one of the AWS_ variables has a value that it cannot have; "
                "look at AWS_ALLOW_HTTP, AWS_CONDITIONAL_PUT and others that are yes or no"
            ) from err

    def read(self, key: str, *, most_bytes: int) -> Object:
        """Return an object.

        Raises:
            FileNotFoundError: if there is none.
            RepositoryUnreachable: if it cannot be had, or has more than so many bytes.
        """
        with self._asking(f"read ({key})"):
            found = obstore.get(self._small, key)
            size, tag = found.meta["size"], found.meta["e_tag"]
            if size <= most_bytes and tag:
                content = bytes(found.bytes()) if size <= _PART_BYTES else b"".join(self._parts(key, size))
                return Object(content, tag)
        raise RepositoryUnreachable(
            f"{self.location}/{key} must be an object of at most {most_bytes} bytes with an ETag, it has {size} bytes "
            f"and the ETag {tag}; remove what is not the repository's"
        )

    def entries(self, prefix: str) -> list[Entry]:
        """Return every object below a prefix, in no order.

        Raises:
            RepositoryUnreachable: if they cannot be listed.
        """
        with self._asking(f"listed ({prefix})"):
            return [
                Entry(found["path"], found["last_modified"])
                for chunk in obstore.list(self._small, prefix)
                for found in chunk
            ]

    def names(self, prefix: str) -> list[str]:
        """Return what lies in a folder, sorted, without what lies below its folders.

        Raises:
            RepositoryUnreachable: if it cannot be listed.
        """
        with self._asking(f"listed ({prefix})"):
            found = obstore.list_with_delimiter(self._small, prefix or None)
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        return sorted(path.rpartition("/")[2] for path in paths)

    def size(self, key: str) -> int | None:
        """Return an object's length in bytes; None if there is none.

        Raises:
            RepositoryUnreachable: if the bucket gives no answer.
        """
        with self._asking(f"read ({key})"):
            try:
                return obstore.head(self._small, key)["size"]
            except FileNotFoundError:
                return None

    def download(self, key: str, target: Path, *, size_bytes: int) -> str:
        """Write the first bytes of an object to a file, and return their sha256; they are fewer if it is shorter.

        Raises:
            FileNotFoundError: if there is no such object.
            RepositoryUnreachable: if it cannot be had.
            OSError: if the file cannot be written.
        """
        digest = hashlib.sha256()
        with target.open("wb") as file:
            for part in self._parts(key, size_bytes):
                digest.update(part)
                file.write(part)
        return digest.hexdigest()

    def _parts(self, key: str, size_bytes: int) -> Iterator[bytes]:
        """Give the first bytes of an object, a part at a time, so that each is had within bounded time."""
        for start in range(0, size_bytes, _PART_BYTES):
            length = min(_PART_BYTES, size_bytes - start)
            with self._asking(f"read ({key})"):
                part = bytes(obstore.get_range(self._large, key, start=start, length=length))
            yield part
            if len(part) < length:
                return

    def upload(self, key: str, source: Path) -> None:
        """Write a file to an object.

        Raises:
            PublishConflict: if there is an object of that key already.
            RepositoryUnreachable: if it cannot be written; there is then no such object.
        """
        with self._asking(f"written ({key})"):
            if source.stat().st_size <= _PART_BYTES:
                self._create(key, source.read_bytes())
            elif self._tag(key):  # large files go in parts, for which there are no conditions
                raise self._refuse(key)
            else:
                self._send(key, source)

    def overwrite(self, key: str, source: Path) -> None:
        """Write a file to an object, whatever was there.

        Raises:
            RepositoryUnreachable: if it cannot be written; what was there then stays.
        """
        with self._asking(f"written ({key})"):
            self._send(key, source)

    def _send(self, key: str, source: Path) -> None:
        obstore.put(self._large, key, source, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    def _create(self, key: str, content: bytes) -> None:
        try:
            obstore.put(self._large, key, content, mode="create")
        except AlreadyExistsError:
            if not self._holds(key, content):
                raise self._refuse(key) from None

    def _holds(self, key: str, content: bytes) -> bool:
        """Say whether an object is what was to be written: an attempt whose answer was lost may have written it."""
        try:
            found = obstore.get(self._small, key)
        except FileNotFoundError:
            return False
        return found.meta["size"] == len(content) and bytes(found.bytes()) == content

    def _refuse(self, key: str) -> PublishConflict:
        return PublishConflict(
            f"{self.location}/{key} is there already, and versions never change; publish again, under a new name"
        )

    def write(self, key: str, content: bytes) -> None:
        """Write an object, whatever was there.

        Raises:
            RepositoryUnreachable: if it cannot be written.
        """
        with self._asking(f"written ({key})"):
            obstore.put(self._small, key, content, use_multipart=False)

    def replace(self, key: str, content: bytes, *, expected: str | None) -> None:
        """Write an object if it is still the one with the expected tag; None expects that there is none.

        Raises:
            PublishConflict: if it is not; it then stays.
            RepositoryUnreachable: if it cannot be written; whether it was is then not known.
        """
        with self._asking(f"written ({key})"):
            if self._put_if(key, content, expected):
                return
            # Ceph 16 knows a tag only without its quotes; where somebody else was first it is another one by now.
            unchanged = expected if self._tag(key) == expected else None
            if unchanged is None or not self._put_if(key, content, unchanged.strip('"')):
                raise PublishConflict(f"{self.location}/{key} was changed by somebody else meanwhile")

    def _put_if(self, key: str, content: bytes, expected: str | None) -> bool:
        try:
            obstore.put(self._small, key, content, mode="create" if expected is None else {"e_tag": expected})
        except (AlreadyExistsError, PreconditionError):
            return self._holds(key, content)
        return True

    def _tag(self, key: str) -> str | None:
        try:
            return obstore.head(self._small, key)["e_tag"]
        except FileNotFoundError:
            return None

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are gone already do not matter.

        Raises:
            RepositoryUnreachable: if they cannot be removed.
        """
        with self._asking("cleared"):
            obstore.delete(self._small, keys)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        if self._clock() < self._resting_until:
            raise RepositoryUnreachable(f"{self.location} gave no answer a moment ago; it is asked again soon")
        try:
            yield
        except FileNotFoundError as err:
            if "<Code>NoSuchBucket<" not in str(err):
                raise
            raise self._explain(err, what) from None
        except BaseError as err:
            raise self._explain(err, what) from None
        except BaseException as err:
            # A panic of the library is none of the exceptions that threads expect, and would end them without a word.
            if type(err).__name__ != "PanicException":
                raise
            raise self._explain(err, what) from None

    def _explain(self, err: BaseException, what: str) -> RepositoryUnreachable:
        """Say what happened and what to do, without the rest of what the library says."""
        text = str(err)
        if isinstance(err, InvalidPathError):
            return RepositoryUnreachable(
                f"{self.location} could not be {what}: an object there has a name with empty parts, . or ..; remove it"
            )
        status, code = _STATUS.search(text), _CODE.search(text)
        if status is None:
            self._resting_until = self._clock() + _REST_S
        said = f"answered {status[1]}{f' ({code[1]})' if code else ''}" if status else "gave no answer"
        return RepositoryUnreachable(f"{self.location} could not be {what}: it {said}; {_advise(text, status)}")


def _check_endpoint(environ: Mapping[str, str]) -> None:
    """The library ends its thread on one that is no address."""
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
    # Given as `client_options`, the timeouts would put out of force the AWS_ variables that the client knows.
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
        return "AWS_ENDPOINT is http, which AWS_ALLOW_HTTP=true allows"
    if status and status[1] in {"401", "403"}:
        return "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do there"
    return "check the bucket's name, AWS_ENDPOINT, AWS_REGION and the network"
