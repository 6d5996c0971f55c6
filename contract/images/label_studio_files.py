"""Which references are Label Studio's own images, by whichever of its names they call it.

Trainer and server ask it at one address, browsers at another: a public host, https in front of http, a path prefix. It
writes the latter into the references of local storage and uploads. Such a reference is a path here, which is asked for
at the one address that the settings name. What is at anybody else's address stays there, whatever its path looks like,
for that is what people see.
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
_KNOWN_S: Final = 600.0
"""Seconds after which Label Studio is asked for its public address again."""
_UNKNOWN_S: Final = 60.0
"""The same where it gave none."""


class Studio:
    """Label Studio: where it is asked, and what is its own.

    Args:
        home: where it is asked, a path included; None where it is not asked at all.
        public: where browsers ask it; None asks Label Studio, now and then.
        describe: gets its description of its API, in the JSON of OpenAPI; empty where it cannot be had.
        others: origins that are known to be something else.
        clock: counts seconds.
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
        self._asked_again_at = float("inf") if public else float("-inf")

    def _public_url(self) -> HttpUrl | None:
        """The address as browsers see it; None where none was set and Label Studio gives none."""
        with self._lock:
            if self._clock() >= self._asked_again_at:
                answer = self._describe()
                self._public = _described(answer) if answer else self._public
                self._asked_again_at = self._clock() + (_KNOWN_S if self._public else _UNKNOWN_S)
            return self._public

    @property
    def scheme(self) -> str:
        """Of its pages, and so of an address that begins with //."""
        known = self._public_url()
        return known.origin.scheme if known else self._home.scheme if self._home else "https"

    def owns(self, target: HttpUrl) -> bool:
        """Whether the token may go there: to its origin, and to a path on which it serves images."""
        own = _image_path(target.path, self._prefix)
        return target.origin == self._home and own is not None and not _climbs(own)

    def image_path(self, reference: str) -> str | None:
        """Path and query of an image that Label Studio serves; None of any other path or URL, plainly spelled.

        It is asked for its public address only where that decides. Where it gives none, a prefix is known by what
        stands behind it, and so is a host that is the machine of whoever reads the reference.
        """
        relative = reference.startswith("/")
        try:
            target = HttpUrl.parse(f"http://studio{reference}" if relative else reference)
        except ValueError:
            return None
        found = _SERVES_IMAGES.search(target.path)
        if found is None or _climbs(target.path):
            return None
        path = urlsplit(target.url)._replace(scheme="", netloc="", fragment="").geturl()
        at_home = relative or target.origin == self._home
        if at_home and (own := _image_path(path, self._prefix) or _image_path(path, "")):
            return own
        if public := self._public_url():
            known = at_home or target.origin == public.origin or self._is_spelt_otherwise(target.origin, public.origin)
            return _image_path(path, public.path.rstrip("/")) if known else None
        known = at_home or (is_loopback(target.origin.host) and target.origin not in self._others)
        return path[found.start() :] if known else None

    def _is_spelt_otherwise(self, origin: Origin, public: Origin) -> bool:
        """Whether both are the same port of the machine of whoever reads them, as localhost and 127.0.0.1 are."""
        alike = (origin.scheme, origin.port) == (public.scheme, public.port) and origin not in self._others
        return alike and is_loopback(origin.host) and is_loopback(public.host)


def _image_path(path: str, prefix: str) -> str | None:
    """The part of the path behind the prefix, if images are served there."""
    own = path.removeprefix(prefix)
    return own if path.startswith(prefix) and _SERVES_IMAGES.match(own) else None


def _climbs(path: str) -> bool:
    """Whether a path has dots that lead out of it, escaped however often: proxies in front may unescape, too."""
    while (plain := unquote(path)) != path:
        path = plain
    return ".." in re.split(r"[/\\]", path)


def _described(api: bytes) -> HttpUrl | None:
    """The first of the servers that an API's description names; it names none where LABEL_STUDIO_HOST is not set."""
    try:
        return HttpUrl.parse(json.loads(api)["servers"][0]["url"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
