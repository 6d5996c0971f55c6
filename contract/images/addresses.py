"""Checks that hosts in references have public network addresses."""

import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]
"""Resolves a host name and port to addresses as text; raises OSError if there are none."""

_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All allocated unicast addresses; others are local, reserved or embed IPv4."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
"""The middle 32 bits of an ISATAP address; the last 32 are its IPv4 address."""
_METADATA_SERVICES: Final = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))
"""Metadata services of Azure and Oracle; others use 169.254.169.254."""


def resolve_addresses(host: str, port: int) -> list[str]:
    """Resolve a host name by the system, which also accepts 0x7f000001, 2130706433 and 127.1 as 127.0.0.1.

    OSError or UnicodeError if the name has no address.
    """
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def is_public(address: str) -> bool:
    """Return whether an address and all IPv4 addresses embedded in it are public; ValueError if it is no address."""
    return all(_is_public(each) for each in _with_embedded(ipaddress.ip_address(address)))


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        return address.is_global and address in _UNICAST
    return (
        address.is_global and not address.is_multicast and not any(address in network for network in _METADATA_SERVICES)
    )


def _with_embedded(address: Address) -> Iterator[Address]:
    """Yield the address, unless it only stands for an IPv4 one, and the IPv4 addresses embedded in it."""
    if not isinstance(address, ipaddress.IPv6Address):
        yield address
    elif address.ipv4_mapped:
        yield address.ipv4_mapped
    elif address in _NAT64:
        yield _last_32_bits(address)
    else:
        yield address
        if address.sixtofour:
            yield address.sixtofour
        if address.teredo:
            yield from address.teredo
        if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
            yield _last_32_bits(address)


def _last_32_bits(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
