"""Protection against requests that a foreign web page has a visitor's browser send.

Cross-site requests to the server's own name are recognised by their `Origin`, or because they cannot be JSON; requests
to a foreign name that resolves to the server's address (DNS rebinding) by their `Host`.
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
_LOCAL: Final = (".localhost", ".internal", ".svc", ".cluster.local")
"""Suffixes that do not exist on the internet: this machine, Docker's host, services in Kubernetes."""
_SHOWN: Final = 100

_log = logging.getLogger(__name__)


class Origins:
    """Checks the Host, Origin and Content-Type of requests."""

    def __init__(self, hosts: Iterable[str], pages: Iterable[str | None]) -> None:
        """Accept requests to the names `hosts`, and from web pages of the URLs `pages`, of which None is ignored."""
        self._hosts = frozenset(host.lower() for host in hosts)
        self._pages = frozenset(_origin(page) for page in pages if page)

    def check_host(self, host: str | None) -> None:
        """Raise MisdirectedRequest unless `host` is an IP address, a local name, or one of the server's names."""
        if not host or ANY_HOST in self._hosts or self._accepts(host.lower()):  # browsers always send a host
            return
        _log.warning("a request for another host was refused", extra={"host": _shown(host)})
        raise MisdirectedRequest(
            f"the server does not answer to the name {_shown(host)}; if it is the server's, add it to "
            "LABELNEXT_ALLOWED_HOSTS, or use an IP address"
        )

    def check_sender(self, headers: Headers) -> None:
        """Refuse a POST that a foreign web page may have sent.

        Raises:
            Forbidden: if its origin is neither the server nor Label Studio.
            UnsupportedMediaType: if the body is not declared as JSON, which browsers do not allow across origins.
        """
        origin = headers.get("Origin")
        own = headers.get("Host", "").lower()
        if origin is not None and origin.lower() not in self._pages and urlsplit(origin.lower()).netloc != own:
            _log.warning("a web page's request was refused", extra={"origin": _shown(origin)})
            raise Forbidden(
                f"web pages of {_shown(origin)} may not send requests; only those of Label Studio may, at "
                "LABELNEXT_LABEL_STUDIO_URL and LABELNEXT_LABEL_STUDIO_PUBLIC_URL"
            )
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and headers.get("Content-Length", "0") != "0":
            raise UnsupportedMediaType("the body must be JSON, with the header Content-Type: application/json")

    def _accepts(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match["name"] or "").removesuffix(".")
        return _is_address(match["address"] or name) or "." not in name or name.endswith(_LOCAL) or name in self._hosts


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _origin(url: str) -> str:
    """Return the origin of a URL as browsers send it, without the default port."""
    parts = urlsplit(url.lower())
    default_port = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.removesuffix(default_port)}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
