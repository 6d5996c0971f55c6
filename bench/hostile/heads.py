"""Request smuggling, malformed heads, cross-site requests, and requests without valid credentials."""

import base64
import re
from collections.abc import Mapping
from functools import partial
from itertools import product

from bench.hostile.case import MEBIBYTE, Case, Kind, printable
from bench.hostile.exchange import (
    BODY_BYTES,
    OK,
    ExpectedReply,
    bodyless_case,
    exchange,
    head,
    post,
    post_case,
    request_case,
)
from bench.hostile.site import Escaped, Site

_UNAUTHORIZED = ExpectedReply({401}, "unauthorized")
_FORBIDDEN = ExpectedReply({403}, "forbidden")
_NOT_FOUND = ExpectedReply({404}, "not_found")
_METHOD_NOT_ALLOWED = ExpectedReply({405}, "method_not_allowed")
_UNSUPPORTED_TYPE = ExpectedReply({415}, "unsupported_media_type")
_MISDIRECTED = ExpectedReply({421}, "misdirected_request")
_BAD_HEAD = ExpectedReply({0, 400, 405, 414, 431, 501, 505}, ours=False)

_MALFORMED_HEADERS = (
    # Two lengths, or a length and chunks.
    *("Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"),
    *("Content-Length: 4\r\nContent-Length: 5", "Content-Length: 4, 5"),
    # Misspelt chunked encoding.
    *("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked, identity"),
    *("Transfer-Encoding: xchunked", "Transfer-Encoding:\tchunked\r\nContent-Length: 4", "Transfer-Encoding : chunked"),
    "X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 4",
    # Lengths that only some parsers accept.
    *("Content-Length: +4", "Content-Length: -4", "Content-Length: 0x4", "Content-Length: 1_0", "Content-Length: \xb2"),
    # Malformed, too many or too long headers.
    *("Content-Length 4", ": 4", "X: a\0b", "X: a\rContent-Length: 4", "X: " + "a" * MEBIBYTE),
    "\r\n".join(f"X-{number}: a" for number in range(10_000)),
)
_MALFORMED_LINES = (
    *(b"GET /", b"GET / HTTP/9.9", b"GET / HTTP/0.9", b"GET  / HTTP/1.1", b"get / HTTP/1.1", b"PRI * HTTP/2.0"),
    *(b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2"),
    b"GET /" + b"a" * MEBIBYTE + b" HTTP/1.1",
)
_UNKNOWN_PATHS = (
    *("/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/%00", "/%0a%7b%22forged%22:true%7d", "/console"),
    *("/report/../../manifest.json", "/report/%2e%2e/manifest.json", "/report/VERSION/%2e%2e%2fmanifest.json"),
    *("/report/VERSION/model.onnx", "/report/VERSION/index.html%00", "/report/http:evil.test"),
)
_PATHS = {
    **dict.fromkeys(_UNKNOWN_PATHS, _NOT_FOUND),
    "/?__debugger__=yes&cmd=resource&f=debugger.js": OK,
    "/report//evil.test": ExpectedReply({308, 404}),
}
_REQUEST_IDS = ("a%0d%0aX-Injected: 1", "a" * 6_000, '"><script>')

_ROUTES = ("predict", "score", "setup", "webhook")
_PAGES = {"page": "/", "versions": "/versions", "report": "/report/VERSION/", "report-without-slash": "/report/VERSION"}
_FOREIGN_HOSTS = (
    *("evil.test:9090", "evil.test.", "127.0.0.1.evil.test", "localhost.evil.test", "localhost@evil.test"),
    *("[::1].evil.test", "localhost, evil.test"),
)
_OWN_HOSTS = (
    *("localhost", "127.0.0.1:9090", "[::1]:9090"),
    *("server", "host.docker.internal", "server.labelnext.svc"),
)
_ORIGINS = ("https://evil.test", "null", "http://labelnext:1")
_CONTENT_TYPES = (
    *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"),
    *("application/jsonp", ""),
)


def _basic(pair: bytes) -> str:
    return "Basic " + base64.b64encode(pair).decode()


_CREDENTIALS: Mapping[str, str] = {
    "empty": "",
    "scheme-only": "Basic",
    "basic-empty-name-and-password": "Basic Og==",
    "basic-not-base64": "Basic !!!!",
    "basic-not-ascii": "Basic \xe4\xf6",
    "basic-with-parameters": "Basic a=b, c=d",
    "bearer": "Bearer none",
    "digest": 'Digest username="annotator", realm="a", nonce="a", uri="/", response="a"',
    "basic-wrong-password": _basic(b"annotator:guess"),
    "basic-empty-password": _basic(b"annotator:"),
    "basic-without-colon": _basic(b"annotator"),
    "basic-nul-in-name": _basic(b"annotator\0:a"),
    "basic-not-utf-8": _basic(b"\xff\xfe:\xff"),
    "basic-not-ascii-name": _basic("ännotator:pässword".encode()),
    "basic-password-of-4500-bytes": _basic(b"a:" + b"b" * 4_500),
}


def cases() -> list[Case]:
    """Return the cases of this module."""
    return [*_heads(), *_pages(), *_unauthenticated()]


def _heads() -> list[Case]:
    """Ambiguous and malformed heads, path traversal, request ids and methods."""
    smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    close = b"Host: a\r\nConnection: close\r\n"
    begin = b"POST /predict HTTP/1.1\r\n" + close
    to_canary = ExpectedReply({0, 400, 404, 405}, ours=False)
    too_long = ExpectedReply({431}, "request_header_fields_too_large")
    return [
        *(
            request_case(
                f"smuggling-{printable(each, 60)}",
                _BAD_HEAD,
                begin + each.encode("latin-1") + b"\r\n\r\n" + smuggled,
            )
            for each in _MALFORMED_HEADERS
        ),
        *(
            request_case(
                f"request-line-{printable(line.decode('latin-1'))}", _BAD_HEAD, line + b"\r\n" + close + b"\r\n"
            )
            for line in _MALFORMED_LINES
        ),
        *(bodyless_case(f"path-{path}", outcome, f"GET {path} HTTP/1.1") for path, outcome in _PATHS.items()),
        *(
            Case(f"request-id-{printable(each)}", Kind.REQUEST, partial(_send_request_id, each))
            for each in _REQUEST_IDS
        ),
        *(
            bodyless_case(
                f"method-{method.lower()}", _METHOD_NOT_ALLOWED, f"{method} /predict HTTP/1.1", {"Content-Length": "0"}
            )
            for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "FOO", "PROPFIND")
        ),
        bodyless_case("method-connect", to_canary, "CONNECT CANARY HTTP/1.1"),
        bodyless_case("method-get-absolute-url", to_canary, "GET http://CANARY/a.png HTTP/1.1"),
        request_case("head-of-70-kb-unfinished", too_long, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: abc\r\n" * 9_000),
    ]


def _send_request_id(request_id: str, site: Site, _payload: None) -> None:
    """Send an unsafe request id; the reply must have another id."""
    reply = exchange(site, head("GET /health HTTP/1.1", {"X-Request-Id": request_id}))
    assigned = reply.headers.get("X-Request-Id", "")
    if reply.status != 200 or assigned == request_id or not re.fullmatch(r"[\w-]{1,64}", assigned):
        raise Escaped(f"expected a new request id, got {assigned[:100]!r} with status {reply.status}")


def _pages() -> list[Case]:
    """DNS rebinding and CSRF: requests that a web page can make a user's browser send, with credentials."""
    body = {"action": "START_TRAINING", "project": {"id": 1}}
    versions = "GET /versions HTTP/1.1"
    return [
        *(
            bodyless_case(f"dns-rebinding-{name}", _MISDIRECTED, f"GET {path} HTTP/1.1", host="evil.test")
            for name, path in _PAGES.items()
        ),
        *(
            post_case(
                f"dns-rebinding-{name}",
                _MISDIRECTED,
                body,
                path=f"/{name}",
                origin="http://evil.test",
                host="evil.test",
            )
            for name in _ROUTES
        ),
        *(bodyless_case(f"host-header-{host}", _MISDIRECTED, versions, host=host) for host in _FOREIGN_HOSTS),
        *(bodyless_case(f"host-header-own-{host}", OK, versions, host=host) for host in _OWN_HOSTS),
        *(
            post_case(f"csrf-webhook-from-{origin}", _FORBIDDEN, body, path="/webhook", origin=origin)
            for origin in _ORIGINS
        ),
        *(
            post_case(
                f"csrf-{path}-as-{kind or 'no-content-type'}",
                _UNSUPPORTED_TYPE,
                body,
                path=f"/{path}",
                content_type=kind,
            )
            for kind, path in product(_CONTENT_TYPES, ("webhook", "predict"))
        ),
    ]


def _unauthenticated() -> list[Case]:
    """Requests without credentials, or with wrong ones."""
    line, length = "POST /predict HTTP/1.1", {"Content-Length": "2"}
    large = head(line, {"Content-Length": str(BODY_BYTES)})
    pages = {"page": "", "versions": "versions", "report": "report/a/", "unknown-path": "nothing"}
    lines = {name: f"GET /{path}" for name, path in pages.items()} | {name: f"POST /{name}" for name in _ROUTES}
    return [
        request_case("authorization-missing", _UNAUTHORIZED, head(line, length) + b"{}"),
        *(
            request_case(f"authorization-{name}", _UNAUTHORIZED, head(line, {"Authorization": value, **length}) + b"{}")
            for name, value in _CREDENTIALS.items()
        ),
        *(
            request_case(f"unauthenticated-{name}", _UNAUTHORIZED, head(f"{start} HTTP/1.1", {"Content-Length": "0"}))
            for name, start in lines.items()
        ),
        request_case(
            "unauthenticated-body-of-32-mb",
            ExpectedReply({0, 401}, "unauthorized"),
            lambda _: large + b" " * BODY_BYTES,
        ),
        request_case("webhook-secret-wrong", _UNAUTHORIZED, lambda site: _bearer(site, "/webhook", "guess")),
        request_case(
            "webhook-secret-on-predict", _UNAUTHORIZED, lambda site: _bearer(site, "/predict", site.secrets.webhook)
        ),
        request_case("webhook-secret-right", OK, lambda site: _bearer(site, "/webhook", site.secrets.webhook)),
    ]


def _bearer(site: Site, path: str, secret: str) -> bytes:
    return post(site, path, b'{"action": "ANNOTATION_CREATED"}', authorization=f"Bearer {secret}")
