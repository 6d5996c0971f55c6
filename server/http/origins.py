"""By which names the server answers, and which web pages may send to it: what keeps other people's pages away.

A page that somebody visits can have the browser send requests anywhere it reaches. What it sends under our own name
gives itself away by its `Origin` or by what it cannot send, JSON; what it sends under a name of its own, whose address
it has changed to ours (DNS rebinding), by its `Host`.
"""

import ipaddress
import logging
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from werkzeug.datastructures import Headers
from werkzeug.exceptions import Forbidden, MisdirectedRequest, UnsupportedMediaType

ANY_HOST: Final = "*"

_HOST: Final = re.compile(
    r"(?:\[(?P<address>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9_.-]{1,253}))(?::[0-9]{1,5})?", re.ASCII
)
_OURS: Final = (".localhost", ".internal", ".svc", ".cluster.local")
"""Ends of names that nobody can have on the internet: of this machine, of Docker's host, of services in Kubernetes."""
_SHOWN: Final = 100

_log = logging.getLogger(__name__)


class Origins:
    """Lets a request pass, or refuses it, by where it says that it goes and comes from."""

    def __init__(self, hosts: Iterable[str], pages: Iterable[str | None]) -> None:
        """Take names by which the server is known, and URLs of those whose pages may send to it, None for none."""
        self._hosts = frozenset(host.lower() for host in hosts)
        self._pages = frozenset(_origin(page) for page in pages if page)

    def check_host(self, host: str | None) -> None:
        """Raise MisdirectedRequest unless it is for an address, for a name that no stranger has, or for one set."""
        if not host or ANY_HOST in self._hosts or self._knows(host.lower()):  # browsers always name one
            return
        _log.warning("a request for another host was refused", extra={"host": _shown(host)})
        raise MisdirectedRequest(
            f"the server does not answer to the name {_shown(host)}; if it is one of its own, add it to "
            "LABELNEXT_ALLOWED_HOSTS, or ask by an IP address"
        )

    def check_sender(self, headers: Headers) -> None:
        """Refuse a POST that a page of a stranger can have sent.

        Raises:
            Forbidden: if a page has that is neither the server's own nor Label Studio's.
            UnsupportedMediaType: if its body is not said to be JSON, as browsers say it for own pages only.
        """
        origin = headers.get("Origin")
        own = headers.get("Host", "").lower()
        if origin is not None and origin.lower() not in self._pages and urlsplit(origin.lower()).netloc != own:
            _log.warning("a web page's request was refused", extra={"origin": _shown(origin)})
            raise Forbidden(
                f"a web page of {_shown(origin)} may not send requests here; pages of Label Studio may, at "
                "LABELNEXT_LABEL_STUDIO_URL and LABELNEXT_LABEL_STUDIO_PUBLIC_URL"
            )
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and headers.get("Content-Length", "0") != "0":
            raise UnsupportedMediaType("the body must be JSON, with the header Content-Type: application/json")

    def _knows(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = (found["name"] or "").removesuffix(".")
        return _is_address(found["address"] or name) or "." not in name or name.endswith(_OURS) or name in self._hosts


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _origin(url: str) -> str:
    """The origin of a URL as browsers write it: without the port that goes without saying."""
    parts = urlsplit(url.lower())
    usual = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.removesuffix(usual)}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
