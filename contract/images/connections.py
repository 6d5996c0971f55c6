"""Connections to hosts that are not trusted: to which addresses, and how long each step may take.

They are kept alive, without proxies from the environment. To trusted origins they are made wherever these are, to
others only at public addresses.
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
    """Scheme, host and port: what a token is bound to."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return f"{self.scheme}://{host}:{self.port}"


def open_pools(resolve: Resolver | None) -> PoolManager:
    """Connections to anywhere, or with a resolver to public addresses only.

    The check is made where the socket is opened, to the addresses that were checked: there is no way around it, and no
    time between check and use in which a name could change. TLS still verifies the name.
    """

    class Plain(_Bounded):
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


class _Bounded(HTTPConnection):
    """A connection whose time-outs hold for a step as a whole.

    Those of a socket hold for each piece received, so that a host which sends a byte now and then is never too slow.
    """

    def connect(self) -> None:
        """Connect, with TLS where the scheme says so."""
        with abort_after(self.timeout, self._shut):
            super().connect()

    def getresponse(self) -> Any:
        """Read the head of the answer."""
        with abort_after(self.timeout, self._shut):
            return super().getresponse()

    def _shut(self) -> None:
        if self.sock is not None:
            self.sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def abort_after(after_s: object, shut: Callable[[], None]) -> Iterator[None]:
    """End a blocking read in this thread from another one when its time is over; raises TimeoutError if so."""
    over = threading.Event()

    def cut() -> None:
        over.set()
        with suppress(OSError, ValueError, RuntimeError):  # it ended by itself just now
            shut()

    if not isinstance(after_s, (int, float)):
        raise TypeError(f"expected a time-out in seconds, got {after_s!r}; every request must set one")
    timer = threading.Timer(after_s, cut)
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
    if over.is_set():  # what was read of an answer of unknown length looks complete
        raise TimeoutError("cut off")


def _connect_public(connection: HTTPConnection, resolve: Resolver) -> socket.socket:
    """Open a socket to the host, if all its addresses are public; the first that answers in time is taken."""
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
            f"{host} is not on the public internet, where only Label Studio and allowed origins are asked; if images "
            f"lie there, add {origin} to LABELNEXT_ALLOWED_ORIGINS; if that is Label Studio as browsers see it, set "
            "LABELNEXT_LABEL_STUDIO_PUBLIC_URL"
        )
    end = time.monotonic() + float(connection.timeout or 0)
    for address in addresses:
        left = max(end - time.monotonic(), 0.001)
        with suppress(OSError):
            return create_connection((address, port), left, socket_options=connection.socket_options)
    raise NewConnectionError(connection, f"none of {len(addresses)} addresses of {host} answered")
