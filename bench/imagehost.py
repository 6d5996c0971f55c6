"""A web server of image files for the server to fetch from: `python -m bench.imagehost FOLDER PORT`, on loopback.

Files are held in memory and carry an ETag, so that a client may ask whether one has changed. /counts says as JSON how
many were sent ("200") and how many had not changed ("304"). A process of its own, lest it share the load's interpreter.
"""

import hashlib
import json
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COUNTS = "/counts"

_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}


class ImageHost(ThreadingHTTPServer):
    """Serves the images of a folder under their paths in it."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        """Read all images into memory, and listen; port 0 takes a free one."""
        self.images = {
            f"/{path.relative_to(folder).as_posix()}": (path.read_bytes(), _TYPES[path.suffix])
            for path in folder.rglob("*")
            if path.suffix in _TYPES
        }
        self.counts = Counter[int]()
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # head and body leave together
    disable_nagle_algorithm = True
    server: ImageHost

    def do_GET(self) -> None:
        if self.path == COUNTS:
            return self._send(200, json.dumps(self.server.counts).encode(), "application/json")
        if (found := self.server.images.get(unquote(self.path))) is None:
            return self._send(404, b"", "text/plain")
        data, kind = found
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        status = 304 if self.headers.get("If-None-Match") == etag else 200
        self.server.counts[status] += 1
        return self._send(status, data if status == 200 else b"", kind, etag)

    def _send(self, status: int, body: bytes, kind: str, etag: str | None = None) -> None:
        self.send_response(status)
        if etag:
            self.send_header("ETag", etag)
        if status != 304:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ImageHost(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
