"""Which network addresses a host named by a stranger may have.

Owns one judgement: whether an address belongs to the public internet, in whichever of its spellings it comes. Knows
nothing of HTTP and opens no connection.
"""

import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]
"""From a host name and a port to its addresses as text; raises OSError where there are none."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def resolve_addresses(host: str, port: int) -> list[str]:
    """Ask the system, which also reads what C has always read as an address: 0x7f000001, 2130706433, 127.1.

    Raises:
        OSError: if the name has no address.
        UnicodeError: if it cannot be a name.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an address, and every IPv4 address that it carries inside, is one of the public internet's."""
    return all(_is_public(each) for each in _with_carried(ipaddress.ip_address(address)))


def _is_public(address: Address) -> bool:
    return address.is_global and not address.is_multicast


def _with_carried(address: Address) -> Iterator[Address]:
    """The address, unless it only stands for an IPv4 one, and the IPv4 addresses that packets to it end up at."""
    if not isinstance(address, ipaddress.IPv6Address):
        yield address
    elif address.ipv4_mapped:
        yield address.ipv4_mapped
    else:
        yield address
        if address.sixtofour:
            yield address.sixtofour
        if address.teredo:
            yield from address.teredo
        if address in _NAT64:
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
