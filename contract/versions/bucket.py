"""Objects in a bucket of S3, or of what speaks its protocol: read, listed, written under conditions.

The library takes address and credentials from the AWS_ variables. Every request ends within bounded time. Messages
quote what the bucket answered no further than its status and code: there may be credentials in the rest.
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


class Bucket:
    """The objects below a prefix of a bucket; keys are relative to it.

    Methods raise RepositoryUnreachable where the bucket gives no answer, or refuses.
    """

    def __init__(self, name: str, prefix: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask nothing of the bucket yet; ConfigError if the AWS_ variables cannot be used."""
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
        """Return an object; FileNotFoundError if there is none, RepositoryUnreachable if it has too many bytes."""
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

    def times(self, prefix: str) -> dict[str, datetime]:
        """Return when each object below a prefix was written, by its key and in no order."""
        with self._asking(f"listed ({prefix})"):
            return {
                found["path"]: found["last_modified"] for chunk in obstore.list(self._small, prefix) for found in chunk
            }

    def names(self, prefix: str) -> list[str]:
        """Return what lies in a folder, sorted, without what lies below its folders."""
        with self._asking(f"listed ({prefix})"):
            found = obstore.list_with_delimiter(self._small, prefix or None)
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        return sorted(path.rpartition("/")[2] for path in paths)

    def size(self, key: str) -> int | None:
        """Return an object's length in bytes, if there is one."""
        with self._asking(f"read ({key})"):
            found = self._head(key)
        return found and found["size"]

    def download(self, key: str, target: Path, *, size_bytes: int) -> str:
        """Write the first bytes of an object to a file, fewer if it is shorter, and return their sha256.

        FileNotFoundError if there is no such object.
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
        """Write a file to an object; PublishConflict if there is one of that key already, which stays."""
        with self._asking(f"written ({key})"):
            if source.stat().st_size <= _PART_BYTES:
                is_new = self._put_if(key, source.read_bytes(), None, self._large)
            elif is_new := self._head(key) is None:  # large files go in parts, for which there are no conditions
                self.overwrite(key, source)
        if not is_new:
            raise PublishConflict(
                f"{self.location}/{key} is there already, and versions never change; publish again, under a new name"
            )

    def overwrite(self, key: str, source: Path) -> None:
        """Write a file to an object, whatever was there; where that fails, what was there stays."""
        with self._asking(f"written ({key})"):
            obstore.put(self._large, key, source, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    def write(self, key: str, content: bytes) -> None:
        """Write an object, whatever was there."""
        with self._asking(f"written ({key})"):
            obstore.put(self._small, key, content, use_multipart=False)

    def replace(self, key: str, content: bytes, *, expected: str | None) -> None:
        """Write an object if it is still the one with the expected tag; None expects that there is none.

        PublishConflict if it is not, and stays. After RepositoryUnreachable it is not known whether it was written.
        """
        with self._asking(f"written ({key})"):
            if self._put_if(key, content, expected, self._small):
                return
            # Ceph 16 knows a tag only without its quotes; where somebody else was first it is another one by now.
            found = self._head(key)
            tag = found["e_tag"] if found else None
            if tag is None or tag != expected or not self._put_if(key, content, tag.strip('"'), self._small):
                raise PublishConflict(f"{self.location}/{key} was changed by somebody else meanwhile")

    def _put_if(self, key: str, content: bytes, expected: str | None, store: S3Store) -> bool:
        """Say whether an object now is what was to be written, as also after an attempt whose answer was lost."""
        try:
            obstore.put(store, key, content, mode="create" if expected is None else {"e_tag": expected})
            return True
        except (AlreadyExistsError, PreconditionError):
            with suppress(FileNotFoundError):
                found = obstore.get(self._small, key)
                return found.meta["size"] == len(content) and bytes(found.bytes()) == content
            return False

    def _head(self, key: str) -> "ObjectMeta | None":
        try:
            return obstore.head(self._small, key)
        except FileNotFoundError:
            return None

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are gone already do not matter."""
        with self._asking("cleared"):
            obstore.delete(self._small, keys)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        if self._clock() < self._resting_until:
            raise RepositoryUnreachable(f"{self.location} gave no answer a moment ago; it is asked again soon")
        try:
            yield
        except BaseException as err:
            is_gone = isinstance(err, FileNotFoundError) and "<Code>NoSuchBucket<" in str(err)
            # A panic of the library is none of the exceptions that threads expect, and would end them without a word.
            if not is_gone and not isinstance(err, BaseError) and type(err).__name__ != "PanicException":
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
