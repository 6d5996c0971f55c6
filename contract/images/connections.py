"""Connections to untrusted hosts, with checks of addresses and time limits.

Connections are kept alive and ignore proxies from the environment. Trusted origins may have any address, others only
public ones.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import Any, NamedTuple

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection

from contract.errors import FetchError
from contract.images.addresses import Resolver, is_public


class Origin(NamedTuple):
    """Scheme, host and port, to which a token is bound."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return f"{self.scheme}://{host}:{self.port}"


def open_pools(resolve: Resolver | None) -> PoolManager:
    """Return connection pools to any address or, with a resolver, to public addresses only.

    The check is made when the socket is opened, on the addresses that it connects to: it cannot be bypassed, also not
    by a name that changes in between. TLS still verifies the name. A request to a host with any other address raises
    FetchError.
    """

    class Plain(_TimeLimited):
        def _new_conn(self) -> socket.socket:
            return super()._new_conn() if resolve is None else _connect_public(self, resolve)

    class Tls(Plain, HTTPSConnection):
        pass

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    manager = PoolManager(maxsize=16)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": TlsPool}
    return manager


class _TimeLimited(HTTPConnection):
    """A connection whose timeouts limit each step as a whole.

    A socket's timeout limits each receive, so a host that sends a byte now and then would never exceed it.
    """

    def connect(self) -> None:
        """Connect, with TLS for https."""
        with abort_after(self.timeout, self._shut):
            super().connect()

    def getresponse(self) -> Any:
        """Read the status and headers of the response."""
        with abort_after(self.timeout, self._shut):
            return super().getresponse()

    def _shut(self) -> None:
        if self.sock is not None:
            self.sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def abort_after(timeout_s: object, shut: Callable[[], None]) -> Iterator[None]:
    """Context manager that ends a blocking read by `shut` after a timeout, and then raises TimeoutError.

    Raises:
        TypeError: if the timeout is not a number of seconds.
    """
    over = threading.Event()

    def cut() -> None:
        over.set()
        with suppress(OSError, ValueError, RuntimeError):  # the connection ended at the same moment
            shut()

    if not isinstance(timeout_s, (int, float)):
        raise TypeError(f"expected a timeout in seconds, got {timeout_s!r}; every request must set one")
    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (HTTPError, HTTPException, OSError) as err:
        if over.is_set():
            raise TimeoutError("cut off") from err
        raise
    finally:
        timer.cancel()
    if over.is_set():  # a truncated body of unknown length looks complete
        raise TimeoutError("cut off")


def _connect_public(connection: HTTPConnection, resolve: Resolver) -> socket.socket:
    """Open a socket to the host if all its addresses are public, to the first address that connects in time."""
    host, port = connection.host.strip("[]"), connection.port
    try:
        addresses = resolve(host, port)
    except socket.gaierror as err:
        raise NameResolutionError(host, connection, err) from err
    except (OSError, UnicodeError) as err:
        raise NewConnectionError(connection, f"{host} has no address") from err
    if not addresses or not all(is_public(address) for address in addresses):
        origin = Origin("https" if isinstance(connection, HTTPSConnection) else "http", host, port)
        raise FetchError(
            f"{host} has an address that is not public; if images are there, add {origin} to "
            "LABELNEXT_ALLOWED_ORIGINS; if it is Label Studio's address for browsers, set "
            "LABELNEXT_LABEL_STUDIO_PUBLIC_URL"
        )
    end = time.monotonic() + float(connection.timeout or 0)
    for address in addresses:
        left = max(end - time.monotonic(), 0.001)
        with suppress(OSError):
            return create_connection((address, port), left, socket_options=connection.socket_options)
    raise NewConnectionError(connection, f"none of {len(addresses)} addresses of {host} answered")
