"""Recognises references to images that Label Studio itself serves, by any of its addresses.

Label Studio has one address for trainer and server, and another for browsers: a public host, https, a path prefix. The
latter is in references to uploads and local storage. Such references become paths, fetched from the address in the
settings. References to other hosts are not changed, whatever their path, since annotators see the image there.
"""

import json
import re
import threading
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urlsplit

from contract.images.connections import Origin
from contract.images.download import HttpUrl
from contract.images.urls import is_loopback

_SERVES_IMAGES: Final = re.compile(
    r"/(data/upload/|data/local-files/?(?=\?|$)|storage-data/uploaded/|(tasks|projects)/\d+/(resolve|presign)/)"
)
_REFRESH_S: Final = 600.0
"""Seconds for which the public address of Label Studio is remembered."""
_RETRY_S: Final = 60.0
"""Seconds until the next request if Label Studio reported none."""


class LabelStudioAddresses:
    """The addresses of Label Studio.

    Args:
        home: its address for this program, path included; None if it is not used.
        public: its address for browsers; None requests it from Label Studio from time to time.
        describe: returns its OpenAPI description in JSON; empty if unavailable.
        others: origins that are not Label Studio's.
        clock: returns seconds.
    """

    def __init__(
        self,
        home: HttpUrl | None,
        public: HttpUrl | None,
        *,
        describe: Callable[[], bytes],
        others: frozenset[Origin],
        clock: Callable[[], float],
    ) -> None:
        self._home = home.origin if home else None
        self._prefix = home.path.rstrip("/") if home else ""
        self._public = public
        self._describe = describe
        self._others = others
        self._clock = clock
        self._lock = threading.Lock()
        self._ask_again_at = float("inf") if public else float("-inf")

    def _public_url(self) -> HttpUrl | None:
        """Return the address for browsers; None if unknown."""
        with self._lock:
            if self._clock() >= self._ask_again_at:
                answer = self._describe()
                self._public = _first_server(answer) if answer else self._public
                self._ask_again_at = self._clock() + (_REFRESH_S if self._public else _RETRY_S)
            return self._public

    @property
    def scheme(self) -> str:
        """The scheme of its pages, and thus of references that begin with //."""
        known = self._public_url()
        return known.origin.scheme if known else self._home.scheme if self._home else "https"

    def owns(self, target: HttpUrl) -> bool:
        """Return whether the token may be sent to a URL: on its origin, at a path that serves images."""
        own = _image_path(target.path, self._prefix)
        return target.origin == self._home and own is not None and not _has_parent_segment(own)

    def image_path(self, reference: str) -> str | None:
        """Return path and query of an image that Label Studio serves; None for other normalised references.

        The public address is requested only if the result depends on it. If unknown, any prefix of a path that serves
        images is accepted, and so is any loopback host.
        """
        relative = reference.startswith("/")
        try:
            target = HttpUrl.parse(f"http://studio{reference}" if relative else reference)
        except ValueError:
            return None
        match = _SERVES_IMAGES.search(target.path)
        if match is None or _has_parent_segment(target.path):
            return None
        path = urlsplit(target.url)._replace(scheme="", netloc="", fragment="").geturl()
        at_home = relative or target.origin == self._home
        if at_home and (own := _image_path(path, self._prefix) or _image_path(path, "")):
            return own
        if public := self._public_url():
            known = at_home or target.origin == public.origin or self._is_same_loopback(target.origin, public.origin)
            return _image_path(path, public.path.rstrip("/")) if known else None
        known = at_home or (is_loopback(target.origin.host) and target.origin not in self._others)
        return path[match.start() :] if known else None

    def _is_same_loopback(self, origin: Origin, public: Origin) -> bool:
        """Return whether both are the same port of a loopback host, as with localhost and 127.0.0.1."""
        is_same_port = (origin.scheme, origin.port) == (public.scheme, public.port) and origin not in self._others
        return is_same_port and is_loopback(origin.host) and is_loopback(public.host)


def _image_path(path: str, prefix: str) -> str | None:
    """Return the path without the prefix, if images are served there."""
    own = path.removeprefix(prefix)
    return own if path.startswith(prefix) and _SERVES_IMAGES.match(own) else None


def _has_parent_segment(path: str) -> bool:
    """Return whether a path contains .., escaped any number of times, since proxies may unescape too."""
    while (plain := unquote(path)) != path:
        path = plain
    return ".." in re.split(r"[/\\]", path)


def _first_server(api: bytes) -> HttpUrl | None:
    """Return the first server of an API description; there is none without LABEL_STUDIO_HOST."""
    try:
        return HttpUrl.parse(json.loads(api)["servers"][0]["url"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
