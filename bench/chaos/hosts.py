"""An image host at its worst: `python -m bench.chaos.hosts FOLDER PORT`, on a loopback address of its own.

The first part of a path says how it answers; below /slow/ lie the images of the folder, which come in small pieces.
"""

import socketserver
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from demo.processes import free_port, running
from demo.product import CHECKOUT

ADDRESS = "127.0.0.2"
"""Another host than that of the good images, lest its connections be counted as theirs."""

_HANG_S = 60.0
_PIECES, _PAUSE_S = 10, 0.1
_OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: image/png\r\n"

ANSWERS: Mapping[str, tuple[bytes, ...]] = {
    "error": (b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",),
    "missing": (b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",),
    "cut": (_OK + b"Content-Length: 5000\r\n\r\n" + b"\x89PNG\r\n\x1a\n" * 9,),
    "garbage": (b"\x00\xff\x00\xffnot HTTP at all\r\n\r\n",),
    "text": (_OK + b"Content-Length: 12\r\n\r\n<html></html",),
    "empty": (_OK + b"Content-Length: 0\r\n\r\n",),
    "silence": (),
}
"""What comes under each path that never gives an image, before the connection ends."""
HANGING = "hanging"


class _Handler(socketserver.StreamRequestHandler):
    server: "_Host"

    def handle(self) -> None:
        kind, _, name = self.rfile.readline().split(b" ")[1].decode().lstrip("/").partition("/")
        while self.rfile.readline().strip():
            pass
        with suppress(ConnectionError):
            for piece in self._pieces(kind, name):
                self.wfile.write(piece)

    def _pieces(self, kind: str, name: str) -> Iterator[bytes]:
        if kind == HANGING:
            self.connection.settimeout(_HANG_S)
            with suppress(OSError):
                self.rfile.read()  # until the client gives up
        elif kind == "slow":
            data = self.server.images[name]
            yield _OK + b"Content-Length: %d\r\n\r\n" % len(data)
            for start in range(0, len(data), size := len(data) // _PIECES + 1):
                time.sleep(_PAUSE_S)
                yield data[start : start + size]
        else:
            yield from ANSWERS[kind]


class _Host(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, port: int) -> None:
        self.images = {path.name: path.read_bytes() for path in folder.iterdir()}
        super().__init__((ADDRESS, port), _Handler)


@contextmanager
def bad_host(folder: Path) -> Iterator[str]:
    """Run the host in a process of its own and give its address."""
    port = free_port()
    url = f"http://{ADDRESS}:{port}"
    command: list[str | Path] = [sys.executable, "-m", "bench.chaos.hosts", folder, str(port)]
    with (
        TemporaryDirectory() as logs,
        running("The bad image host", command, log=Path(logs) / "log", environment={}, cwd=CHECKOUT) as child,
    ):
        child.wait_for(f"{url}/text", timeout_s=60, until=bool)
        yield url


if __name__ == "__main__":
    _Host(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
