"""As much of Label Studio as serves images: access tokens for a personal one, uploads, and objects of a storage."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

_ACCESS_TOKEN = "an-access-token"


def personal_access_token() -> str:
    """Return what looks like one: a JSON web token that says it is for refreshing."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"token_type": "refresh", "exp": 8071266800})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "c2lnbmVk"])


@contextlib.contextmanager
def serve_images(images: Mapping[str, bytes]) -> Iterator[str]:
    """Serve `images`, by their reference in task data, to whoever has the token; yield the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(images))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(images: Mapping[str, bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = self.path == "/api/token/refresh/" and body == {"refresh": personal_access_token()}
            self._answer(200 if known else 401, json.dumps({"access": _ACCESS_TOKEN}).encode())

        def do_GET(self) -> None:
            if self.headers["Authorization"] != f"Bearer {_ACCESS_TOKEN}":
                self._answer(401, b"")
                return
            image = images.get(_reference(self.path))
            self._answer(404 if image is None else 200, image or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _reference(path: str) -> str:
    """Return what a task's data holds where Label Studio is asked for `path`."""
    parts = urlsplit(path)
    if parts.path.endswith("/resolve/"):
        return base64.urlsafe_b64decode(parse_qs(parts.query)["fileuri"][0]).decode()
    return parts.path
