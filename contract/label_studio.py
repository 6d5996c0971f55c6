"""A client of Label Studio's API, with its two kinds of tokens.

A personal access token is a refresh token: sent directly, it gets 401. It is exchanged for an access token, which is
valid for five minutes. A legacy token is sent directly.
"""

import base64
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

import urllib3

from contract.errors import ConfigError

WHOAMI: Final = "/api/current-user/whoami"
"""Returns the user of a token."""

_RENEWED_S: Final = 270  # access tokens expire after 300
_EXCHANGE: Final = "/api/token/refresh/"
_CONNECT_S: Final = 10.0
_MAX_PAUSE_S: Final = 15.0
_SHOWN: Final = 300  # characters of a response in a message

Post = Callable[[str, bytes], tuple[int, bytes]]
"""Posts JSON to a path of Label Studio without a token; returns the status and body of the response."""

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Unreachable(ConfigError):
    """Label Studio does not answer, or reports an internal error; a retry may succeed."""


class BadRequest(ConfigError):
    """Label Studio rejects the content of a request."""


class TokenRejected(ConfigError):
    """Label Studio rejects the token."""


class NoAccessToken(Exception):
    """A response has no access token."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Token:
    """A Label Studio token, and the access token for it, which threads share.

    Raises:
        ConfigError: if the token is not printable ASCII without spaces.
    """

    def __init__(self, token: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token.strip()
        if not re.fullmatch(r"[!-~]*", self._token):
            raise ConfigError(
                "expected a Label Studio token of printable ASCII without spaces, got something else; copy "
                "LABELNEXT_LABEL_STUDIO_TOKEN from the account settings again"
            )
        kind = _jwt_kind(self._token)
        self.renewable = kind == "refresh"
        self._fixed = (f"Bearer {self._token}" if kind else f"Token {self._token}") if self._token else None
        self._clock = clock
        self._lock = threading.Lock()
        self._header: str | None = None
        self._renew_at = 0.0

    def header(self, post: Post, *, timeout_s: float, refused: str | None = None) -> str | None:
        """Return the Authorization header; None without a token.

        One thread at a time exchanges the token, by `post`; the others reuse the result.

        Args:
            post: sends the request for an access token.
            timeout_s: how long to wait for another thread's exchange.
            refused: a header that got 401, and is not returned again.

        Raises:
            NoAccessToken: if the response has no access token.
            TimeoutError: if another thread's exchange takes longer than `timeout_s`.
        """
        if not self.renewable:
            return self._fixed
        if not self._lock.acquire(timeout=timeout_s):
            raise TimeoutError("Label Studio takes too long to issue an access token")
        try:
            if self._header in {None, refused} or self._clock() >= self._renew_at:
                self._header = f"Bearer {self._exchange(post)}"
                self._renew_at = self._clock() + _RENEWED_S
            return self._header
        finally:
            self._lock.release()

    def _exchange(self, post: Post) -> str:
        status, body = post(_EXCHANGE, json.dumps({"refresh": self._token}).encode())
        try:
            return str(json.loads(body)["access"])
        except (ValueError, KeyError, TypeError) as err:
            raise NoAccessToken(status) from err


def _jwt_kind(token: str) -> str | None:
    """Return the `token_type` of a JSON web token; None for a legacy token."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return str(claims["token_type"])
    except (ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to retry requests while Label Studio does not answer or reports a fault, in seconds."""

    total_s: float = 3.0
    """From the first attempt to the last."""
    pause_s: float = 0.5
    """Pause before the second attempt; each further one is twice as long, up to 15 s."""


RETRY_POLICY: Final = RetryPolicy()
"""The default of `LabelStudioClient`."""


class LabelStudioClient:
    """A client of one Label Studio. Requests that fail temporarily are sent again, except by methods that send once.

    An unsuccessful status raises ConfigError: `Unreachable`, `TokenRejected` or `BadRequest` where one of them applies.

    Raises:
        ConfigError: if the token is not printable ASCII without spaces, or a response is not Label Studio's.
        Unreachable: if Label Studio does not answer.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float = 60.0, retries: RetryPolicy | None = None) -> None:
        self.url = url.rstrip("/")
        self._token = Token(token)
        self._timeout_s = timeout_s
        self._retries = retries or RETRY_POLICY
        self._http = urllib3.PoolManager(retries=False)
        self._date = ""

    @property
    def date(self) -> datetime | None:
        """The Date header of the last response, to the second; None without one."""
        try:
            return parsedate_to_datetime(self._date).astimezone(UTC)
        except ValueError:
            return None

    def get(self, path: str, **query: str | int) -> Any:
        """GET a path such as "/api/projects", and return the JSON of the response."""
        return self._parse(self.send("GET", path, query=query))

    def post(self, path: str, body: object) -> Any:
        """POST a body as JSON, once, and return the JSON of the response; None if it is empty."""
        return self._parse(self.send("POST", path, body=body, once=True))

    def upload(self, path: str, files: Sequence[tuple[str, bytes]]) -> Any:
        """POST files as (name, content) in one form, once, and return the JSON of the response."""
        form, media_type = urllib3.encode_multipart_formdata([(name, (name, content)) for name, content in files])
        return self._parse(self._succeed("POST", path, content=form, media_type=media_type))

    def read(
        self,
        path: str,
        parse: Callable[[Any], _T],
        *,
        resource: str,
        query: Mapping[str, str | int] | None = None,
        timeout_s: float | None = None,
        object_hook: Callable[[dict[str, Any]], Any] | None = None,
    ) -> _T:
        """GET a path, and return `parse` of the JSON, whose objects are passed through `object_hook` first.

        ValueError, LookupError, TypeError and AttributeError of `parse` are reported as a response that is not Label
        Studio's, by ConfigError.
        """
        data = self.send("GET", path, resource=resource, query=query, timeout_s=timeout_s)
        with self._checking_response():
            return parse(json.loads(data, object_hook=object_hook))

    def send(
        self,
        method: str,
        path: str,
        *,
        resource: str = "",
        query: Mapping[str, str | int] | None = None,
        body: object = None,
        timeout_s: float | None = None,
        once: bool = False,
        accepted: Sequence[int] = (),
    ) -> bytes:
        """Send a request, and return the body of the response.

        Args:
            method: the HTTP method.
            path: such as "/api/projects".
            resource: name of the resource, for error messages.
            query: the query parameters.
            body: sent as JSON, unless it is None.
            timeout_s: for this request, instead of the client's.
            once: whether the request is never sent again.
            accepted: statuses that count as success.
        """
        content = None if body is None else json.dumps(body).encode()
        sent = {"query": query, "content": content, "timeout_s": timeout_s}
        started, pause_s = time.monotonic(), self._retries.pause_s
        while True:
            try:
                return self._succeed(method, path, resource=resource, accepted=accepted, **sent)
            except Unreachable as err:
                if once or time.monotonic() + pause_s - started > self._retries.total_s:
                    raise
                _log.warning("%s; retrying in %.1f s", err, pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _succeed(
        self, method: str, path: str, *, resource: str = "", accepted: Sequence[int] = (), **sent: Any
    ) -> bytes:
        """Send a request; after 401 once more with a new access token."""
        header = self._authorization()
        status, data = self._exchange(method, path, authorization=header, **sent)
        if status == 401 and self._token.renewable:
            status, data = self._exchange(method, path, authorization=self._authorization(refused=header), **sent)
        if 200 <= status < 300 or status in accepted:
            return data
        raise self._explain(status, data, resource or f"{method} {path}")

    def _authorization(self, *, refused: str | None = None) -> str | None:
        def post(path: str, content: bytes) -> tuple[int, bytes]:
            return self._exchange("POST", path, content=content)

        try:
            return self._token.header(post, timeout_s=self._timeout_s, refused=refused)
        except NoAccessToken as err:
            raise self._explain(err.status, b"", "an access token") from err
        except TimeoutError as err:
            raise Unreachable(f"{err}; check its load") from err

    def _exchange(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        content: bytes | None = None,
        media_type: str = "application/json",
        timeout_s: float | None = None,
        authorization: str | None = None,
    ) -> tuple[int, bytes]:
        """Send a request, and return the status and body of the response."""
        read_s = timeout_s or self._timeout_s
        try:
            reply = self._http.request(
                method,
                self.url + path,
                fields={name: str(value) for name, value in (query or {}).items()} or None,
                body=content,
                headers={"Content-Type": media_type} | ({"Authorization": authorization} if authorization else {}),
                timeout=urllib3.Timeout(connect=min(_CONNECT_S, read_s), read=read_s),
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as err:
            raise Unreachable(
                f"expected Label Studio at {self.url}, which cannot be reached ({type(err).__name__}); "
                "check LABELNEXT_LABEL_STUDIO_URL and that it is running"
            ) from err
        self._date = reply.headers.get("Date", "")
        return reply.status, reply.data

    def _parse(self, data: bytes) -> Any:
        with self._checking_response():
            return json.loads(data) if data else None

    @contextmanager
    def _checking_response(self) -> Iterator[None]:
        """Context manager that raises ConfigError if the response is no JSON or has an unexpected form."""
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError) as err:
            raise ConfigError(
                f"expected Label Studio at {self.url}, got a response that is not Label Studio's "
                f"({type(err).__name__}); check LABELNEXT_LABEL_STUDIO_URL"
            ) from err

    def _explain(self, status: int, data: bytes, resource: str) -> ConfigError:
        if status in {401, 403}:
            return TokenRejected(
                f"Label Studio at {self.url} refuses the token ({status}); set LABELNEXT_LABEL_STUDIO_TOKEN to a new "
                "personal access token from the account settings (legacy tokens work only where the organisation "
                "allows them)"
            )
        if status == 404:
            return ConfigError(
                f"Label Studio at {self.url} has no {resource} for this token; check the number and the token's user"
            )
        if 300 <= status < 400:
            return ConfigError(
                f"Label Studio at {self.url} answers {status}, a redirect; set LABELNEXT_LABEL_STUDIO_URL to the "
                "address that it redirects to"
            )
        message = f"Label Studio at {self.url} answered {status} for {resource}"
        if status == 400:
            return BadRequest(f"{message}: {data[:_SHOWN].decode(errors='replace')}")
        kind = Unreachable if status == 429 or status >= 500 else ConfigError
        return kind(f"{message}; check its log")
