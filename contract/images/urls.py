"""How browsers read the address of an image, after the URL Standard (https://url.spec.whatwg.org).

People label what a browser shows them, so an address means here what it means there.
"""

import ipaddress
import re
import socket
from typing import Final
from urllib.parse import unquote_to_bytes

import idna

AROUND: Final = "".join(map(chr, range(0x21)))
BREAKS: Final = str.maketrans("", "", "\t\n\r")
_LOOKED_AT: Final = 64
"""Characters within which the scheme of a data URI lies, line breaks included."""
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_DOTS: Final = re.compile(r"(?<=/)(\.|%2e){1,2}(?=/|$)", re.IGNORECASE)
_AUTHORITY: Final = re.compile(r"([^/?#]*@)?(\[[^\]/?#]*\]|[^:/?#]*)((?::[0-9]*)?(?=[/?#]|$))")
_NO_HOST: Final = re.compile(r"[\0-\x20\x7f#/:<>?@\[\\\]^|%]|^$")
_NUMERIC: Final = re.compile(r"(^|\.)([0-9]+|0x[0-9a-f]*)\.?$")


def is_data_uri(reference: str) -> bool:
    """Whether the image lies in the reference itself."""
    return reference.lstrip(AROUND)[:_LOOKED_AT].translate(BREAKS)[:5].lower() == "data:"


def normalise_reference(reference: str) -> str:
    r"""The plain spelling of a reference that is no data URI.

    Without spaces around it and line breaks in it, its scheme in lower case. In addresses of http and https, and in
    what is relative to one, \ is /, a host stands behind two slashes however many were written, and %2e is a dot where
    a path climbs.
    """
    text = reference.strip(AROUND).translate(BREAKS)
    found = _SCHEME.match(text)
    scheme = found[0].lower() if found else ""
    rest = text[len(scheme) :]
    if scheme not in {"http:", "https:", ""}:
        return scheme + rest
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    plain = re.sub("^//+", "//", path.replace("\\", "/"))
    return scheme + _DOTS.sub(lambda dots: re.sub("(?i)%2e", ".", dots[0]), plain) + rest[len(path) :]


def with_plain_host(url: str) -> str:
    """The URL with its host as it is looked up: names in ASCII and lower case, addresses in their usual form.

    ValueError if it has no host that a browser would look up.
    """
    start, _, rest = url.partition("//")
    found = _AUTHORITY.match(rest)
    if found is None:
        raise ValueError("not a URL")
    user, host, port = found.groups(default="")
    plain = _plain_ipv6(host) if host.startswith("[") else _plain_name(host)
    return f"{start}//{user}{plain}{port}{rest[found.end() :]}"


def is_loopback(host: str) -> bool:
    """Whether a plain host is, for whoever reads it, the machine that reads it."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _plain_name(host: str) -> str:
    """A name, or an IPv4 address in any of the spellings that C reads."""
    name = unquote_to_bytes(host).decode()
    name = name.lower() if name.isascii() else _in_ascii(idna.uts46_remap(name, std3_rules=False, transitional=False))
    if _NO_HOST.search(name):
        raise ValueError("not a URL")
    if _NUMERIC.search(name):
        try:
            return socket.inet_ntoa(socket.inet_aton(name.removesuffix(".")))
        except OSError as err:
            raise ValueError("not a URL") from err
    return name


def _in_ascii(name: str) -> str:
    """A name in Unicode as the domain name system has it."""
    labels = name.split(".")
    return ".".join(label if label.isascii() else "xn--" + label.encode("punycode").decode() for label in labels)


def _plain_ipv6(host: str) -> str:
    """An IPv6 address in brackets, in its shortest form; a zone stays, which only settings have."""
    address, percent, zone = host[1:-1].partition("%")
    return f"[{ipaddress.IPv6Address(address).compressed}{percent}{zone}]"
