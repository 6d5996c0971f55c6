"""HTTP requests to untrusted hosts, with limits of time and size."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationParseError, NewConnectionError, ProtocolError
from urllib3.exceptions import TimeoutError as PoolTimeoutError
from urllib3.util import Timeout, parse_url

from contract.errors import FetchError, TemporaryFetchError
from contract.images.addresses import Resolver
from contract.images.connections import Origin, abort_after, open_pools
from contract.images.urls import is_data_uri, normalise_reference, with_plain_host

if TYPE_CHECKING:
    from contract.images.fetch import FetchSettings

_CHUNK_BYTES: Final = 1 << 16
_SHOWN: Final = 200  # characters of a reference in a message
MAX_REFERENCE_LENGTH: Final = 8192
"""Characters of a reference other than a data URI: the limit of most web servers, signatures included."""
_PORTS: Final = {"http": 80, "https": 443}
_ETAG: Final = re.compile(r'(W/)?"[!#-~]{0,512}"')
_SETTLED: Final = timedelta(seconds=2)  # a younger file may change again within the same second


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """A normalised http or https URL: lower-case host, no dot segments in the path."""

    url: str
    origin: Origin
    path: str

    @classmethod
    def parse(cls, url: str) -> "HttpUrl":
        """Parse a URL; ValueError says why it is invalid."""
        if len(url) > MAX_REFERENCE_LENGTH:
            raise ValueError(f"longer than {MAX_REFERENCE_LENGTH} characters")
        try:
            parts = parse_url(with_plain_host(normalise_reference(url)))
        except LocationParseError as err:
            raise ValueError("not a URL") from err
        if parts.scheme not in _PORTS or not parts.host:
            raise ValueError("not a URL of http or https with a host")
        origin = Origin(parts.scheme, parts.host, parts.port or _PORTS[parts.scheme])
        return cls(parts.url, origin, parts.path or "")

    def follow(self, location: str) -> "HttpUrl":
        """Resolve the Location of a redirect; ValueError like `parse`."""
        try:
            url = urljoin(self.url, normalise_reference(location))
        except ValueError as err:
            raise ValueError("not a URL") from err
        return HttpUrl.parse(url)


@dataclass(frozen=True, slots=True)
class Validators:
    """ETag and date for conditional requests to the location that they came from."""

    place: str
    """URL of the file, without the query if there is an ETag, since it may be a changing signature; empty without
    either."""
    etag: str | None
    """Weak ones included: an equivalent file is the same image."""
    last_modified: str | None

    @property
    def can_ask(self) -> bool:
        """Whether a conditional request is possible."""
        return bool(self.etag or self.last_modified)

    def are_from(self, target: HttpUrl) -> bool:
        """Return whether they are from this URL: a date alone would also fit other files of the host."""
        return self.place == _place(target, self.etag)


@dataclass(frozen=True, slots=True)
class Response:
    """A response; its body is empty unless the status is 200."""

    status: int
    location: str | None
    body: bytes
    validators: Validators | None
    """None if the host forbids storing."""


@dataclass(frozen=True, slots=True)
class FetchContext:
    """Name of an image in messages, and its deadline."""

    name: str
    end: float
    clock: Callable[[], float]

    def remaining(self) -> float:
        """Return the seconds left; TemporaryFetchError if there are none."""
        remaining = self.end - self.clock()
        if remaining <= 0:
            raise TemporaryFetchError(
                f"{self.name} was not fetched in time; request fewer images at once, or use a faster host"
            )
        return remaining

    def at(self, target: HttpUrl) -> str:
        """Return the name of the image with the origin of the URL, if that differs, as after a redirect."""
        with suppress(ValueError):
            if HttpUrl.parse(self.name).origin == target.origin:
                return self.name
        return f"{self.name} (at {target.origin})"


def public_name(reference: str) -> str:
    """Return the reference for messages and logs: without query, password, data and control characters."""
    if is_data_uri(reference):
        return "data:..."
    if len(reference) > MAX_REFERENCE_LENGTH:  # removing secrets would take seconds
        return f"a reference of {len(reference)} characters"
    name = re.sub(r"//[^/]*@", "//", re.split(r"[?#]", normalise_reference(reference), maxsplit=1)[0])
    printable = "".join(character if character.isprintable() else "?" for character in name)
    return printable if len(printable) <= _SHOWN else printable[:_SHOWN] + "..."


def too_large(name: str, limit: int) -> FetchError:
    """Return the error for an image above the size limit, in bytes."""
    return FetchError(f"{name} has more than {limit} bytes, the limit for one image; shrink the image")


class Downloader:
    """Sends requests. Thread-safe; the creator must close it."""

    def __init__(self, limits: "FetchSettings", *, trusted: frozenset[Origin], resolve: Resolver) -> None:
        self._limits = limits
        self._trusted = trusted
        self._anywhere = open_pools(None)
        self._public = open_pools(resolve)

    def close(self) -> None:
        """Close the idle connections."""
        self._anywhere.clear()
        self._public.clear()

    def request(
        self,
        target: HttpUrl,
        context: FetchContext,
        *,
        authorization: str | None = None,
        known: Validators | None = None,
        post: bytes | None = None,
    ) -> Response:
        """Send a GET, or a POST of JSON, and return the response; with validators it may be 304, without a body.

        Raises:
            FetchError: if the host has an address that is not allowed, or the body exceeds `FetchSettings.max_bytes`.
            TemporaryFetchError: if the host cannot be reached or is too slow, or the connection breaks off.
        """
        named = {
            "Accept-Encoding": "identity",
            "User-Agent": "labelnext",
            "Authorization": authorization,
            "If-None-Match": known and known.etag,
            "If-Modified-Since": known and known.last_modified,
            "Content-Type": None if post is None else "application/json",
        }
        headers = {name: value for name, value in named.items() if value}
        try:
            with suppress(ProtocolError):  # retry once if the host has closed an idle connection
                return self._send(target, context, headers, post)
            return self._send(target, context, headers, post)
        except (HTTPError, OSError) as err:
            raise _connection_error(target, context, err) from err

    def _send(self, target: HttpUrl, context: FetchContext, headers: dict[str, str], post: bytes | None) -> Response:
        pools = self._anywhere if target.origin in self._trusted else self._public
        response = pools.urlopen(
            "GET" if post is None else "POST",
            target.url,
            body=post,
            headers=headers,
            timeout=Timeout(
                connect=min(self._limits.connect_timeout_s, context.remaining()),
                read=min(self._limits.read_timeout_s, context.remaining()),
            ),
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        try:
            location = response.get_redirect_location() or None
            body = self._body(response, context) if response.status in {200, 304} or location else b""
        finally:
            response.close()  # after a complete body the connection is back in the pool already
        return Response(response.status, location, b"" if location else body, _validators(target, response.headers))

    def _body(self, response: BaseHTTPResponse, context: FetchContext) -> bytes:
        limit = self._limits.max_bytes
        if (response.length_remaining or 0) > limit:
            raise too_large(context.name, limit)
        body = bytearray()
        with abort_after(context.remaining(), response.shutdown):
            while chunk := response.read1(_CHUNK_BYTES):
                body += chunk
                if len(body) > limit:
                    raise too_large(context.name, limit)
        headers = response.headers
        has_known_length = "Content-Length" in headers or "chunked" in headers.get("Transfer-Encoding", "").lower()
        if not body and response.status == HTTPStatus.OK and not has_known_length:
            raise ProtocolError("the connection was closed before the first byte")  # as by a host that is shutting down
        return bytes(body)


def _place(target: HttpUrl, etag: str | None) -> str:
    return f"{target.origin}{target.path}" if etag else target.url


def _validators(target: HttpUrl, headers: Mapping[str, str]) -> Validators | None:
    """Return the validators of a response, without malformed ones; None if it must not be stored."""
    if "no-store" in {directive.strip().lower() for directive in headers.get("Cache-Control", "").split(",")}:
        return None
    etag, modified = headers.get("ETag"), headers.get("Last-Modified")
    if etag and not _ETAG.fullmatch(etag):
        etag = None
    if modified and not _is_settled(modified, headers.get("Date", "")):
        modified = None
    return Validators(_place(target, etag) if etag or modified else "", etag, modified)


def _is_settled(modified: str, now: str) -> bool:
    """Return whether a later change must get another date, as dates have whole seconds; False for invalid dates."""
    if not modified.isascii() or not modified.isprintable():
        return False
    try:
        return parsedate_to_datetime(modified) + _SETTLED <= parsedate_to_datetime(now)
    except (ValueError, TypeError, OverflowError):  # TypeError: only one of the dates has a time zone
        return False


def _connection_error(target: HttpUrl, context: FetchContext, err: Exception) -> TemporaryFetchError:
    """Return an error without the original message, which may contain the whole URL."""
    late = isinstance(err, (PoolTimeoutError, TimeoutError)) and not isinstance(err, NewConnectionError)
    if late:
        step = "connect" if isinstance(err, ConnectTimeoutError) else "answer"
        return TemporaryFetchError(
            f"{context.at(target)} took too long to {step}; check the host, or request fewer images at once"
        )
    return TemporaryFetchError(
        f"{context.at(target)} cannot be reached, or the connection broke off ({type(err).__name__}); "
        "check the address and the network"
    )
