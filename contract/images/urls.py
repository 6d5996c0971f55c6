"""Normalises image references as browsers do, after the URL Standard (https://url.spec.whatwg.org).

Annotators label what a browser shows them, so a reference must mean the same here.
"""

import ipaddress
import re
import socket
from typing import Final
from urllib.parse import unquote_to_bytes

import idna

C0_CONTROL_OR_SPACE: Final = "".join(map(chr, range(0x21)))
TAB_OR_NEWLINE: Final = str.maketrans("", "", "\t\n\r")
_SCHEME_CHARACTERS: Final = 64
"""Length of a prefix that contains the scheme of a data URI, line breaks included."""
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_DOTS: Final = re.compile(r"(?<=/)(\.|%2e){1,2}(?=/|$)", re.IGNORECASE)
_AUTHORITY: Final = re.compile(r"([^/?#]*@)?(\[[^\]/?#]*\]|[^:/?#]*)((?::[0-9]*)?(?=[/?#]|$))")
_FORBIDDEN_HOST: Final = re.compile(r"[\0-\x20\x7f#/:<>?@\[\\\]^|%]|^$")
_NUMERIC: Final = re.compile(r"(^|\.)([0-9]+|0x[0-9a-f]*)\.?$")


def is_data_uri(reference: str) -> bool:
    """Return whether the reference is a data URI."""
    return reference.lstrip(C0_CONTROL_OR_SPACE)[:_SCHEME_CHARACTERS].translate(TAB_OR_NEWLINE)[:5].lower() == "data:"


def normalise_reference(reference: str) -> str:
    r"""Return the normalised form of a reference that is no data URI.

    Surrounding spaces and line breaks are removed, and the scheme is lower-cased. In http(s) URLs and relative
    references \ becomes /, a host is preceded by two slashes however many there were, and %2e becomes a dot in dot
    segments.
    """
    text = reference.strip(C0_CONTROL_OR_SPACE).translate(TAB_OR_NEWLINE)
    match = _SCHEME.match(text)
    scheme = match[0].lower() if match else ""
    remainder = text[len(scheme) :]
    if scheme not in {"http:", "https:", ""}:
        return scheme + remainder
    path = re.split(r"[?#]", remainder, maxsplit=1)[0]
    plain = re.sub("^//+", "//", path.replace("\\", "/"))
    return scheme + _DOTS.sub(lambda dots: re.sub("(?i)%2e", ".", dots[0]), plain) + remainder[len(path) :]


def with_plain_host(url: str) -> str:
    """Return the URL with its host normalised: names in lower-case ASCII, IP addresses in their usual form.

    Raises:
        ValueError: if browsers would reject the host.
    """
    start, _, remainder = url.partition("//")
    match = _AUTHORITY.match(remainder)
    if match is None:
        raise ValueError("not a URL")
    user, host, port = match.groups(default="")
    plain = _normalise_ipv6(host) if host.startswith("[") else _normalise_name(host)
    return f"{start}//{user}{plain}{port}{remainder[match.end() :]}"


def is_loopback(host: str) -> bool:
    """Return whether a normalised host is a loopback address or name."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _normalise_name(host: str) -> str:
    """Return a normalised name, or an IPv4 address, which may be in any form that inet_aton reads."""
    name = unquote_to_bytes(host).decode()
    name = name.lower() if name.isascii() else _encode(idna.uts46_remap(name, std3_rules=False, transitional=False))
    if _FORBIDDEN_HOST.search(name):
        raise ValueError("not a URL")
    if _NUMERIC.search(name):
        try:
            return socket.inet_ntoa(socket.inet_aton(name.removesuffix(".")))
        except OSError as err:
            raise ValueError("not a URL") from err
    return name


def _encode(name: str) -> str:
    """Return a Unicode name in Punycode."""
    labels = name.split(".")
    return ".".join(label if label.isascii() else "xn--" + label.encode("punycode").decode() for label in labels)


def _normalise_ipv6(host: str) -> str:
    """Return the shortest form of an IPv6 address in brackets; a zone, which only settings have, is kept."""
    address, percent, zone = host[1:-1].partition("%")
    return f"[{ipaddress.IPv6Address(address).compressed}{percent}{zone}]"
