"""Heads that two readers read differently, what web pages have browsers send, and what strangers ask for."""

import base64
import re
from functools import partial
from itertools import product

from bench.hostile.case import MEBIBYTE, Case, Kind
from bench.hostile.exchange import BODY_BYTES, SERVED, Answered, asked, exchange, head, post, posted, request, slug
from bench.hostile.site import Escaped, Site

_UNAUTHORIZED = Answered({401}, "unauthorized")
_FORBIDDEN = Answered({403}, "forbidden")
_NOT_FOUND = Answered({404}, "not_found")
_NO_METHOD = Answered({405}, "method_not_allowed")
_NO_TYPE = Answered({415}, "unsupported_media_type")
_MISDIRECTED = Answered({421}, "misdirected_request")
_REFUSED_HEAD = Answered({0, 400, 405, 414, 431, 501, 505}, ours=False)

_HEADERS = {
    "length-and-chunks": "Content-Length: 4\r\nTransfer-Encoding: chunked",
    "chunks-and-length": "Transfer-Encoding: chunked\r\nContent-Length: 4",
    "chunks-twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "chunks-then-identity": "Transfer-Encoding: chunked, identity",
    "chunks-misspelt": "Transfer-Encoding: xchunked",
    "chunks-with-tab": "Transfer-Encoding:\tchunked\r\nContent-Length: 4",
    "chunks-with-space-before-colon": "Transfer-Encoding : chunked",
    "chunks-on-folded-line": "X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 4",
    "lengths-that-differ": "Content-Length: 4\r\nContent-Length: 5",
    "length-with-plus": "Content-Length: +4",
    "length-negative": "Content-Length: -4",
    "length-hexadecimal": "Content-Length: 0x4",
    "length-with-underscore": "Content-Length: 1_0",
    "length-of-other-digits": "Content-Length: \xb2",
    "length-twice-in-one": "Content-Length: 4, 5",
    "header-without-colon": "Content-Length 4",
    "header-without-name": ": 4",
    "header-with-nul": "X: a\0b",
    "header-with-bare-return": "X: a\rContent-Length: 4",
    "headers-10000": "\r\n".join(f"X-{number}: a" for number in range(10_000)),
    "header-of-1-mb": "X: " + "a" * MEBIBYTE,
}
_LINES = {
    "of-1-mb": b"GET /" + b"a" * MEBIBYTE + b" HTTP/1.1",
    "without-version": b"GET /",
    "of-http-9": b"GET / HTTP/9.9",
    "of-http-0-9": b"GET / HTTP/0.9",
    "with-two-spaces": b"GET  / HTTP/1.1",
    "of-nothing": b"",
    "of-noise": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    "in-small-letters": b"get / HTTP/1.1",
    "of-proxy": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2",
    "of-http-2": b"PRI * HTTP/2.0",
}
_PATHS = {
    "passwd": "/../../../../etc/passwd",
    "passwd-escaped": "/%2e%2e/%2e%2e/etc/passwd",
    "report-climbing": "/report/../../manifest.json",
    "report-climbing-escaped": "/report/%2e%2e/manifest.json",
    "report-file-climbing": "/report/VERSION/%2e%2e%2fmanifest.json",
    "report-weights": "/report/VERSION/model.onnx",
    "report-nul": "/report/VERSION/index.html%00",
    "report-redirect": "/report/http:evil.test",
    "report-redirect-slashes": "/report//evil.test",
    "nul": "/%00",
    "forged-line": "/%0a%7b%22forged%22:true%7d",
    "console": "/console",
    "debug": "/?__debugger__=yes&cmd=resource&f=debugger.js",
}
_PATHS_FOUND = {"debug": SERVED, "report-redirect-slashes": Answered({308, 404})}
_REQUEST_IDS = {"of-line-breaks": "a%0d%0aX-Injected: 1", "of-60-kb": "a" * 6_000, "of-markup": '"><script>'}

_ROUTES = ("predict", "score", "setup", "webhook")
_PAGES = {"page": "/", "versions": "/versions", "report": "/report/VERSION/", "report-without-slash": "/report/VERSION"}
_FOREIGN_HOSTS = {
    "with-port": "evil.test:9090",
    "with-dot": "evil.test.",
    "behind-address": "127.0.0.1.evil.test",
    "behind-localhost": "localhost.evil.test",
    "behind-user": "localhost@evil.test",
    "behind-bracket": "[::1].evil.test",
    "of-two": "localhost, evil.test",
}
_OUR_HOSTS = (
    *("localhost", "127.0.0.1:9090", "[::1]:9090"),
    *("server", "host.docker.internal", "server.labelnext.svc"),
)
_ORIGINS = {"another": "https://evil.test", "null": "null", "other-port": "http://labelnext:1"}
_CONTENT_TYPES = (
    *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"),
    *("application/jsonp", ""),
)


def _basic(pair: bytes) -> str:
    return "Basic " + base64.b64encode(pair).decode()


_CREDENTIALS = {
    "empty": "",
    "of-another": _basic(b"annotator:guess"),
    "without-password": _basic(b"annotator:"),
    "without-colon": _basic(b"annotator"),
    "without-anything": "Basic",
    "of-colon": "Basic Og==",
    "not-base64": "Basic !!!!",
    "not-utf-8": _basic(b"\xff\xfe:\xff"),
    "of-latin-1": "Basic \xe4\xf6",
    "of-utf-8": _basic("ännotator:pässword".encode()),
    "of-6-kb": _basic(b"a:" + b"b" * 4_500),
    "digest": 'Digest username="annotator", realm="a", nonce="a", uri="/", response="a"',
    "bearer-none": "Bearer none",
    "nul": _basic(b"annotator\0:a"),
    "of-parameters": "Basic a=b, c=d",
}


def cases() -> list[Case]:
    """Every head."""
    return [*_heads(), *_pages(), *_strangers()]


def _heads() -> list[Case]:
    """Heads that two readers may read differently, paths that lead astray, request ids and methods."""
    smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    close = b"Host: a\r\nConnection: close\r\n"
    begun = b"POST /predict HTTP/1.1\r\n" + close
    to_canary = Answered({0, 400, 404, 405}, ours=False)
    too_long = Answered({431}, "request_header_fields_too_large")
    return [
        *(
            request(f"smuggled-{name}", _REFUSED_HEAD, begun + headers.encode("latin-1") + b"\r\n\r\n" + smuggled)
            for name, headers in _HEADERS.items()
        ),
        *(request(f"line-{name}", _REFUSED_HEAD, line + b"\r\n" + close + b"\r\n") for name, line in _LINES.items()),
        *(
            asked(f"path-of-{name}", _PATHS_FOUND.get(name, _NOT_FOUND), f"GET {path} HTTP/1.1")
            for name, path in _PATHS.items()
        ),
        *(Case(f"request-id-{name}", Kind.REQUEST, partial(_offer_id, id_)) for name, id_ in _REQUEST_IDS.items()),
        *(
            asked(f"method-{method.lower()}", _NO_METHOD, f"{method} /predict HTTP/1.1", {"Content-Length": "0"})
            for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "FOO", "PROPFIND")
        ),
        asked("method-connect", to_canary, "CONNECT CANARY HTTP/1.1"),
        asked("method-absolute", to_canary, "GET http://CANARY/a.png HTTP/1.1"),
        request("head-of-70-kb-that-stops", too_long, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: abc\r\n" * 9_000),
    ]


def _offer_id(offered: str, site: Site, _made: None) -> None:
    """Offer a request id that is not harmless; the answer must have another one."""
    reply = exchange(site, head("GET /health HTTP/1.1", {"X-Request-Id": offered}))
    given = reply.headers.get("X-Request-Id", "")
    if reply.status != 200 or given == offered or not re.fullmatch(r"[\w-]{1,64}", given):
        raise Escaped(f"the answer {reply.status} has the request id {given[:100]!r}")


def _pages() -> list[Case]:
    """What a web page can have the browser of somebody send who can reach the server, and knows the password."""
    body = {"action": "START_TRAINING", "project": {"id": 1}}
    versions = "GET /versions HTTP/1.1"
    return [
        *(
            asked(f"rebound-{name}", _MISDIRECTED, f"GET {path} HTTP/1.1", host="evil.test")
            for name, path in _PAGES.items()
        ),
        *(
            posted(f"rebound-{name}", _MISDIRECTED, body, path=f"/{name}", origin="http://evil.test", host="evil.test")
            for name in _ROUTES
        ),
        *(asked(f"host-{name}", _MISDIRECTED, versions, host=host) for name, host in _FOREIGN_HOSTS.items()),
        *(asked(f"host-ours-{slug(host)}", SERVED, versions, host=host) for host in _OUR_HOSTS),
        *(
            posted(f"page-of-{name}-starts-training", _FORBIDDEN, body, path="/webhook", origin=origin)
            for name, origin in _ORIGINS.items()
        ),
        *(
            posted(
                f"page-sends-{path}-as-{slug(kind) or 'nothing'}", _NO_TYPE, body, path=f"/{path}", content_type=kind
            )
            for kind, path in product(_CONTENT_TYPES, ("webhook", "predict"))
        ),
    ]


def _strangers() -> list[Case]:
    """Who has no password, or another one."""
    line, empty = "POST /predict HTTP/1.1", {"Content-Length": "2"}
    large = head(line, {"Content-Length": str(BODY_BYTES)})
    got = {"page": "", "versions": "versions", "report-a": "report/a/", "nothing": "nothing"}
    lines = {name: f"GET /{path}" for name, path in got.items()} | {name: f"POST /{name}" for name in _ROUTES}
    return [
        request("password-absent", _UNAUTHORIZED, head(line, empty) + b"{}"),
        *(
            request(f"password-{name}", _UNAUTHORIZED, head(line, {"Authorization": value, **empty}) + b"{}")
            for name, value in _CREDENTIALS.items()
        ),
        *(
            request(f"stranger-asks-{name}", _UNAUTHORIZED, head(f"{asked} HTTP/1.1", {"Content-Length": "0"}))
            for name, asked in lines.items()
        ),
        request("stranger-sends-32-mb", Answered({0, 401}, "unauthorized"), lambda _: large + b" " * BODY_BYTES),
        request("webhook-secret-wrong", _UNAUTHORIZED, lambda site: _bearer(site, "/webhook", "guess")),
        request(
            "webhook-secret-on-predict", _UNAUTHORIZED, lambda site: _bearer(site, "/predict", site.secrets.webhook)
        ),
        request("webhook-secret-right", SERVED, lambda site: _bearer(site, "/webhook", site.secrets.webhook)),
    ]


def _bearer(site: Site, path: str, secret: str) -> bytes:
    return post(site, path, b'{"action": "ANNOTATION_CREATED"}', authorization=f"Bearer {secret}")
