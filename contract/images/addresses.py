"""Which network addresses a host named by a stranger may have: those of the public internet."""

import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]
"""From a host name and a port to its addresses as text; raises OSError where there are none."""

_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All that has been given to anyone on the internet; what lies outside is local, reserved or stands for IPv4."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
"""The middle of an address whose last 32 bits are the IPv4 address that it is tunnelled to."""
_SERVICES: Final = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))
"""What Azure and Oracle give to the machines that they host, as others do on 169.254.169.254."""


def resolve_addresses(host: str, port: int) -> list[str]:
    """Ask the system, which also reads what C has always read as an address: 0x7f000001, 2130706433, 127.1.

    OSError or UnicodeError if the name has no address.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an address, and every IPv4 address that it carries inside, is one of the public internet's."""
    return all(_is_public(each) for each in _with_carried(ipaddress.ip_address(address)))


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        return address.is_global and address in _UNICAST
    return address.is_global and not address.is_multicast and not any(address in network for network in _SERVICES)


def _with_carried(address: Address) -> Iterator[Address]:
    """The address, unless it only stands for an IPv4 one, and the IPv4 addresses that packets to it end up at."""
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
