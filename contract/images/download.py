"""One HTTP request to a host that is not trusted, and the whole of its answer within limits of time and size."""

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
LONGEST_REFERENCE: Final = 8192
"""Characters of a reference that is no data URI: what web servers take at most, signatures included."""
_PORTS: Final = {"http": 80, "https": 443}
_ETAG: Final = re.compile(r'(W/)?"[!#-~]{0,512}"')
_SETTLED: Final = timedelta(seconds=2)  # a file that is younger may change again within the second of its date


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """A URL of http or https, normalised: host in lower case, no dot segments in its path."""

    url: str
    origin: Origin
    path: str

    @classmethod
    def parse(cls, url: str) -> "HttpUrl":
        """Read a URL; ValueError says why it is none."""
        if len(url) > LONGEST_REFERENCE:
            raise ValueError(f"longer than {LONGEST_REFERENCE} characters")
        try:
            parts = parse_url(with_plain_host(normalise_reference(url)))
        except LocationParseError as err:
            raise ValueError("not a URL") from err
        if parts.scheme not in _PORTS or not parts.host:
            raise ValueError("not a URL of http or https with a host")
        origin = Origin(parts.scheme, parts.host, parts.port or _PORTS[parts.scheme])
        return cls(parts.url, origin, parts.path or "")

    def follow(self, location: str) -> "HttpUrl":
        """Read the Location of a redirect from here, as `parse` does."""
        try:
            url = urljoin(self.url, normalise_reference(location))
        except ValueError as err:
            raise ValueError("not a URL") from err
        return HttpUrl.parse(url)


@dataclass(frozen=True, slots=True)
class Validators:
    """How to ask a host whether it would still send the same file; only where they came from is asked with them."""

    place: str
    """A URL; with an ETag its query is left out, for it may be a signature that changes. Empty if there is neither an
    ETag nor a date to ask with."""
    etag: str | None
    """Weak ones included: a file that is equivalent as an image is the same image."""
    last_modified: str | None

    @property
    def can_ask(self) -> bool:
        """Whether there is anything to ask with."""
        return bool(self.etag or self.last_modified)

    def are_from(self, target: HttpUrl) -> bool:
        """Whether they came from the target: a date alone would also fit another file of that host."""
        return self.place == _place(target, self.etag)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host said. The body is empty unless the status is 200."""

    status: int
    location: str | None
    body: bytes
    validators: Validators | None
    """None where the host forbids keeping anything."""


@dataclass(frozen=True, slots=True)
class FetchContext:
    """One image to get: what it is called in messages, and until when."""

    asked: str
    end: float
    clock: Callable[[], float]

    def remaining(self) -> float:
        """Seconds left; raises TemporaryFetchError when there are none."""
        remaining = self.end - self.clock()
        if remaining <= 0:
            raise TemporaryFetchError(
                f"{self.asked} was not fetched in time; ask for fewer images at once or a faster host"
            )
        return remaining

    def at(self, target: HttpUrl) -> str:
        """What was asked and who answers: they differ for a path of Label Studio and after a redirect."""
        with suppress(ValueError):
            if HttpUrl.parse(self.asked).origin == target.origin:
                return self.asked
        return f"{self.asked} (at {target.origin})"


def public_name(reference: str) -> str:
    """The reference as messages and logs may show it: without query, password, data and control characters."""
    if is_data_uri(reference):
        return "data:..."
    if len(reference) > LONGEST_REFERENCE:  # nor is it looked at for secrets, which takes seconds for a long one
        return f"a reference of {len(reference)} characters"
    name = re.sub(r"//[^/]*@", "//", re.split(r"[?#]", normalise_reference(reference), maxsplit=1)[0])
    printable = "".join(character if character.isprintable() else "?" for character in name)
    return printable if len(printable) <= _SHOWN else printable[:_SHOWN] + "..."


def too_large(asked: str, limit: int) -> FetchError:
    """Return the error for it."""
    return FetchError(
        f"{asked} holds more than {limit} bytes, the most that is fetched for one image; shrink the image"
    )


class Downloader:
    """Sends requests. Used by many threads, closed by its maker."""

    def __init__(self, limits: "FetchSettings", *, trusted: frozenset[Origin], resolve: Resolver) -> None:
        self._limits = limits
        self._trusted = trusted
        self._anywhere = open_pools(None)
        self._public = open_pools(resolve)

    def close(self) -> None:
        """Close the connections that are kept alive."""
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
    ) -> Answer:
        """Send a GET, or a POST of JSON, and read the answer; with validators it may be 304, without a body."""
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
            with suppress(ProtocolError):  # a connection kept alive that the host has closed since: once more
                return self._exchange(target, context, headers, post)
            return self._exchange(target, context, headers, post)
        except (HTTPError, OSError) as err:
            raise _broken(target, context, err) from err

    def _exchange(self, target: HttpUrl, context: FetchContext, headers: dict[str, str], post: bytes | None) -> Answer:
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
            response.close()  # a body read to its end has given its connection back already; any other loses it here
        return Answer(response.status, location, b"" if location else body, _validators(target, response.headers))

    def _body(self, response: BaseHTTPResponse, context: FetchContext) -> bytes:
        most = self._limits.max_bytes
        if (response.length_remaining or 0) > most:
            raise too_large(context.asked, most)
        body = bytearray()
        with abort_after(context.remaining(), response.shutdown):
            while chunk := response.read1(_CHUNK_BYTES):
                body += chunk
                if len(body) > most:
                    raise too_large(context.asked, most)
        headers = response.headers
        says_its_end = "Content-Length" in headers or "chunked" in headers.get("Transfer-Encoding", "").lower()
        if not body and response.status == HTTPStatus.OK and not says_its_end:
            raise ProtocolError("the connection was closed before the first byte")  # as by a host that is being stopped
        return bytes(body)


def _place(target: HttpUrl, etag: str | None) -> str:
    return f"{target.origin}{target.path}" if etag else target.url


def _validators(target: HttpUrl, headers: Mapping[str, str]) -> Validators | None:
    """What of a host's text is fit to be sent back to it."""
    if "no-store" in {directive.strip().lower() for directive in headers.get("Cache-Control", "").split(",")}:
        return None
    etag, modified = headers.get("ETag"), headers.get("Last-Modified")
    if etag and not _ETAG.fullmatch(etag):
        etag = None
    if modified and not _is_settled(modified, headers.get("Date", "")):
        modified = None
    return Validators(_place(target, etag) if etag or modified else "", etag, modified)


def _is_settled(modified: str, now: str) -> bool:
    """Whether a file that changes again must get another date; dates count whole seconds. False for what is no date."""
    if not modified.isascii() or not modified.isprintable():
        return False
    try:
        return parsedate_to_datetime(modified) + _SETTLED <= parsedate_to_datetime(now)
    except (ValueError, TypeError, OverflowError):  # TypeError: one date has a time zone, the other has none
        return False


def _broken(target: HttpUrl, context: FetchContext, err: Exception) -> TemporaryFetchError:
    """Says what happened without the text of the error, which may hold the whole URL."""
    late = isinstance(err, (PoolTimeoutError, TimeoutError)) and not isinstance(err, NewConnectionError)
    if late:
        step = "connect" if isinstance(err, ConnectTimeoutError) else "answer"
        return TemporaryFetchError(
            f"{context.at(target)} took too long to {step}; check the host, or ask for fewer images at once"
        )
    return TemporaryFetchError(
        f"{context.at(target)} cannot be reached or broke off ({type(err).__name__}); check the address and the network"
    )
