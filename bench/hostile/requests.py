"""Requests: bodies that are no bodies, heads that two readers read differently, and what strangers send."""

import base64
import gzip
import json
import re
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPResponse
from typing import Any

from bench.hostile import pictures
from bench.hostile.case import Attack, Case, Kind
from bench.hostile.site import Escaped, Site, data_uri, predict_body
from bench.load import label_config

_MEBIBYTE = 1 << 20
_BODY_BYTES = 32 * _MEBIBYTE

Head = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; a connection that was closed without an answer has the status 0."""

    status: int
    headers: Head
    content: bytes

    def json(self) -> Any:
        """Return the body; raises Escaped if it is no JSON."""
        try:
            return json.loads(self.content)
        except ValueError as err:
            raise Escaped(f"{self.status} with a body that is no JSON: {self.content[:100]!r}") from err


@dataclass(frozen=True, slots=True)
class Answered:
    """What must come back."""

    statuses: Collection[int]
    error: str = r"\w+"
    """A regular expression for the code in the body."""
    ours: bool = True
    """Whether the application answers, and not gunicorn, which knows no request that it could not read."""

    def check(self, reply: Reply) -> None:
        """Raise Escaped if it is anything else."""
        if reply.status not in self.statuses:
            raise Escaped(f"expected one of {sorted(self.statuses)}, got {reply.status} {reply.content[:200]!r}")
        if self.ours and reply.status >= 400:
            found = reply.json()
            if not {"error", "detail", "request_id"} <= set(found) or not re.fullmatch(self.error, found["error"]):
                raise Escaped(f"expected an error {self.error!r}, got {found}")
        if b"Traceback" in reply.content:
            raise Escaped("the answer shows a traceback")


_SERVED = Answered({200})
_SERVED_OR_NOT = Answered({200, 400})
_BAD = Answered({400}, "bad_request")
_BAD_CONFIG = Answered({400, 413}, "bad_config|bad_request|request_entity_too_large")
_UNAUTHORIZED = Answered({401}, "unauthorized")
_FORBIDDEN = Answered({403}, "forbidden")
_NOT_FOUND = Answered({404}, "not_found")
_NO_METHOD = Answered({405}, "method_not_allowed")
_CONFLICT = Answered({409})
_TOO_LARGE = Answered({413}, "request_entity_too_large|content_too_large")
_NO_TYPE = Answered({415}, "unsupported_media_type")
_MISDIRECTED = Answered({421}, "misdirected_request")
_REFUSED_HEAD = Answered({0, 400, 405, 414, 431, 501, 505}, ours=False)

_BODIES = {
    "empty": b"",
    "cut-short": b'{"tasks": [',
    "words": b"tasks",
    "html": b"<html></html>",
    "form": b"tasks=1&label_config=2",
    "nan": b'{"tasks": [], "label_config": NaN}',
    "infinity": b'{"tasks": [{"id": -Infinity}]}',
    "number-of-100000-digits": b'{"tasks": [{"id": ' + b"9" * 100_000 + b"}]}",
    "not-utf-8": b'{"tasks": "\xff\xfe"}',
    "utf-8-overlong": b'{"tasks": "\xc0\xaf"}',
    "100000-lists": b"[" * 100_000,
    "100000-closed-lists": b"[" * 100_000 + b"]" * 100_000,
    "100000-objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nul": b"\0" * 100,
    "byte-order-mark-only": b"\xef\xbb\xbf",
    "two-documents": b"{}{}",
    "pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
}
_OBJECTS: tuple[object, ...] = (None, 1, [], {})
_TASKS: tuple[object, ...] = (
    *(None, True, 1, 1.5, "text", {}),
    *([1], [None], [[]], [{}], [{"id": 1, "data": []}], [{"data": None}]),
)
_PROJECT_IDS: tuple[object, ...] = (
    *("1e400", "../../../etc/cron.d/a", "\0", "9" * 400, "\ud800", "1.\r\n"),
    *(-1, 1.5, {}, [], None),
)
_ODD: dict[str, tuple[object, ...]] = {
    "task-id": (None, True, -1, 2**63, 10**4_000, 1.5, 1e308, "text", [], {}, "\ud800"),
    "project": (None, 1, [], {}, "x", "\ud800", "1.a", "9" * 5_000),
    "params": (None, 1, [], "x"),
}
"""By field of a body that is scored nevertheless."""

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
    "header-of-1-mb": "X: " + "a" * _MEBIBYTE,
}
_LINES = {
    "of-1-mb": b"GET /" + b"a" * _MEBIBYTE + b" HTTP/1.1",
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
_PATHS_FOUND = {"debug": _SERVED, "report-redirect-slashes": Answered({308, 404})}
_REQUEST_IDS = {"of-line-breaks": "a%0d%0aX-Injected: 1", "of-60-kb": "a" * 6_000, "of-markup": '"><script>'}

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
_OUR_HOSTS = {
    "localhost": "localhost",
    "127-0-0-1-9090": "127.0.0.1:9090",
    "1-9090": "[::1]:9090",
    "server": "server",
    "host-docker-internal": "host.docker.internal",
    "server-labelnext-svc": "server.labelnext.svc",
}
_ORIGINS = {"another": "https://evil.test", "null": "null", "other-port": "http://labelnext:1"}
_CONTENT_TYPES = {
    "text-plain": "text/plain",
    "application-x-www-form-urlencoded": "application/x-www-form-urlencoded",
    "multipart-form-data-boundary-a": "multipart/form-data; boundary=a",
    "nothing": "",
    "application-jsonp": "application/jsonp",
}


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


def request(name: str, outcome: Answered, make: Callable[[Site], bytes], *, seconds: float = 10) -> Case:
    """Bytes on a connection of its own."""

    def prepare(site: Site) -> Attack:
        data = make(site)
        return lambda: outcome.check(exchange(site, data))

    return Case(name, Kind.REQUEST, prepare, seconds)


def posted(name: str, outcome: Answered, content: object, *, path: str = "/predict") -> Case:
    """A body, JSON or bytes as they are, by somebody who may ask."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return request(name, outcome, lambda site: post(site, path, data))


def asked(name: str, outcome: Answered, line: str, headers: Head | None = None, *, host: str = "labelnext") -> Case:
    """A head without a body, by somebody who may ask; VERSION stands for the version in use."""

    def make(site: Site) -> bytes:
        return head(line.replace("VERSION", site.version), {**site.authorization(), **(headers or {})}, host=host)

    return request(name, outcome, make)


def post(site: Site, path: str, content: bytes, **headers: str) -> bytes:
    """Return a request by somebody who may ask; `x_a="b"` adds or replaces a header."""
    named = {"content_length": str(len(content)), "content_type": "application/json", **headers}
    titled = {name.replace("_", "-").title(): value for name, value in named.items()}
    return head(f"POST {path} HTTP/1.1", {**site.authorization(), **titled}) + content


def head(line: str, headers: Head, *, host: str = "labelnext") -> bytes:
    """Return the head of a request; values may hold any bytes, as characters up to 255."""
    lines = [line, f"Host: {host}", "Connection: close", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def exchange(site: Site, data: bytes, *, timeout_s: float = 150) -> Reply:
    """Send bytes and read the answer, even one that comes before they have been taken."""
    with socket.create_connection(site.address(), timeout=timeout_s) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        return read_reply(connection)


def read_reply(connection: socket.socket) -> Reply:
    """Read an answer, or that there is none."""
    response = HTTPResponse(connection)
    try:
        response.begin()
        return Reply(response.status, dict(response.getheaders()), response.read())
    except (HTTPException, ConnectionError):
        return Reply(0, {}, b"")
    finally:
        response.close()


def cases() -> list[Case]:
    """Every request that is sent at once."""
    return [*_bodies(), *_fields(), *_odd_but_scored(), *_configs(), *_sizes(), *_heads(), *_pages(), *_strangers()]


def _bodies() -> list[Case]:
    elsewhere = [(name, path) for name in ("empty", "100000-lists") for path in ("/score", "/webhook", "/setup")]
    return [
        *(posted(f"body-{name}", _BAD, content) for name, content in _BODIES.items()),
        *(posted(f"body-{name}-{path[1:]}", _BAD, _BODIES[name], path=path) for name, path in elsewhere),
        request("body-gzipped", _BAD, _gzipped),
    ]


def _gzipped(site: Site) -> bytes:
    return post(site, "/predict", gzip.compress(bytes(200 * _MEBIBYTE)), content_encoding="gzip")


def _fields() -> list[Case]:
    """JSON with something else in a field than belongs there."""
    good = predict_body(["data:,a"])
    of_score = {**good, "version": "a"}
    wrong: tuple[tuple[str, str, Callable[[object], object], tuple[object, ...]], ...] = (
        ("tasks", "/predict", lambda value: {**good, "tasks": value}, _TASKS),
        ("label-config", "/predict", lambda value: {**good, "label_config": value}, (None, True, 1, [], {})),
        ("body-of", "/predict", lambda value: value, (None, "text", 1, [], [[]])),
        ("score-version", "/score", lambda value: {**of_score, "version": value}, (None, 5, {})),
        ("score-embeddings", "/score", lambda value: {**of_score, "embeddings": value}, ("yes", 1)),
        ("score-passes", "/score", lambda value: {**of_score, "passes": value}, ([],)),
        ("webhook-action", "/webhook", lambda value: {"action": value}, _OBJECTS),
    )
    projects = {_named(value): {"action": "ANNOTATION_CREATED", "project": {"id": value}} for value in _PROJECT_IDS}
    return [
        *(
            posted(f"{name}-{_named(value)}", _BAD, body(value), path=path)
            for name, path, body, values in wrong
            for value in values
        ),
        posted("score-version-of-1-mb", _CONFLICT, {**good, "version": "v" * _MEBIBYTE}, path="/score"),
        posted("score-version-climbing", _CONFLICT, {**good, "version": "../../etc"}, path="/score"),
        posted("setup-schema-nonetype-null-text", _SERVED, {"schema": None}, path="/setup"),
        *(
            posted(f"setup-schema-{_named(value)}-text", Answered({400}), {"schema": value}, path="/setup")
            for value in _OBJECTS[1:]
        ),
        *(posted(f"webhook-project-{name}", _SERVED_OR_NOT, body, path="/webhook") for name, body in projects.items()),
    ]


def _named(value: object) -> str:
    shown = re.sub(r"[^a-z0-9]+", "-", json.dumps(value).lower()).strip("-")[:16]
    depth = json.dumps(value).count("[")
    return "-".join(part for part in (type(value).__name__.lower() + "s" * (depth - 1), shown) if part)


def _odd_but_scored() -> list[Case]:
    """What is odd and no harm: images are scored, and where there is none the prediction is empty."""
    one = [data_uri(pictures.plain())]
    (task,) = predict_body(one)["tasks"]
    twice = b'{"tasks": [1, 2, 3],' + json.dumps(predict_body(one)).encode()[1:]
    keys = {'\n{"forged": true}\n': 1, "\ud800": 2, "\x1b[2J": 3}
    no_images = [{"id": number, "data": {}} for number in range(100_000)]
    return [
        *(scored(f"task-id-{_named(value)}", {"tasks": [{**task, "id": value}]}) for value in _ODD["task-id"]),
        *(scored(f"{name}-{_named(value)}", {name: value}) for name in ("project", "params") for value in _ODD[name]),
        Case("duplicate-keys", Kind.REQUEST, lambda site: partial(_expect_scored, site, twice)),
        Case("task-keys-forge-log", Kind.REQUEST, lambda site: partial(_expect_empty, site, [{"id": 1, "data": keys}])),
        Case("task-keys-of-10-mb", Kind.REQUEST, _long_keys),
        Case("100000-tasks", Kind.REQUEST, lambda site: partial(_expect_empty, site, no_images), 30),
        Case("2000-broken-images", Kind.REQUEST, _many_broken, 30),
    ]


def scored(name: str, fields: Mapping[str, object]) -> Case:
    """A body of one image with such fields."""
    body = json.dumps({**predict_body([data_uri(pictures.plain())]), **fields}).encode()
    return Case(name, Kind.REQUEST, lambda site: partial(_expect_scored, site, body))


def _expect_scored(site: Site, body: bytes) -> None:
    status, answer = site.ask("/predict", body)
    if status != 200 or len(answer["results"]) != 1 or not all(answer["results"]):
        raise Escaped(f"expected one prediction, got {status} {str(answer)[:200]}")


def _expect_empty(site: Site, tasks: list[dict[str, object]]) -> None:
    status, answer = site.ask("/predict", {**predict_body([]), "tasks": tasks})
    if status != 200 or answer["results"] != [{}] * len(tasks):
        raise Escaped(f"expected {len(tasks)} empty predictions, got {status} {str(answer)[:200]}")


def _many_broken(site: Site) -> Attack:
    return partial(_expect_empty, site, predict_body(["data:,x"] * 2_000)["tasks"])


def _long_keys(site: Site) -> Attack:
    """Keys of 10 MB leave a short line in the log."""

    def attack() -> None:
        before = site.server.process.log.stat().st_size
        _expect_empty(site, [{"id": 1, "data": {f"{number}{'a' * _MEBIBYTE}": 1 for number in range(10)}}])
        if (written := site.server.process.log.stat().st_size - before) > _MEBIBYTE:
            raise Escaped(f"{written} bytes were logged")

    return attack


def _configs() -> list[Case]:
    """Labelling configs, of /predict and as the schema of /setup."""
    found = []
    for name, text in _config_texts().items():
        harmless = name in {"100000-levels", "other-encoding"}  # no worse than others, once they have been read
        body = predict_body(["data:,a"], label_config=text)
        found.append(posted(f"config-{name}", _SERVED_OR_NOT if harmless else _BAD_CONFIG, body))
        found.append(posted(f"setup-{name}", _SERVED_OR_NOT, {"schema": text}, path="/setup"))
    return found


def _config_texts() -> dict[str, str]:
    config = label_config(["ant"])
    entities = "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    nested = '<Choices name="a" toName="image">' * 20_000 + "</Choices>" * 20_000  # each is read with all that it holds
    return {
        "billion-laughs": f'<!DOCTYPE x [<!ENTITY a "{"lol" * 10}">{entities}]><View>&j;{config}</View>',
        "external-entity": f'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><View>&a;{config}</View>',
        "external-dtd": f'<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">{config}',
        "parameter-entity": f'<!DOCTYPE x [<!ENTITY % a SYSTEM "http://127.0.0.1/x.dtd"> %a;]>{config}',
        "unknown-entity": f"<View>&nothing;{config}</View>",
        "empty": "",
        "no-xml": "choices: ant",
        "no-image": "<View/>",
        "cut-short": config[:-10],
        "nul": f"<View>\0{config}</View>",
        "surrogate": f"<View>\ud800{config}</View>",
        "other-encoding": f'<?xml version="1.0" encoding="UTF-7"?>{config}',
        "100000-levels": "<View>" * 100_000 + config + "</View>" * 100_000,
        "16-mb": f"<View>{config}{'<!-- -->' * 2_000_000}</View>",
        "20000-nested-choices": f'<View><Image name="image" value="$image"/>{nested}</View>',
        "200000-attributes": "<View " + " ".join(f'a{i}="1"' for i in range(200_000)) + "/>",
    }


def _sizes() -> list[Case]:
    endless = (b"100000\r\n" + b" " * _MEBIBYTE + b"\r\n") * 40
    return [
        request(
            "body-larger-than-may-be",
            _TOO_LARGE,
            lambda site: post(site, "/predict", b" " * (_BODY_BYTES + 1)),
            seconds=20,
        ),
        request("length-of-10-tb", _TOO_LARGE, lambda site: post(site, "/predict", b"{}", content_length=str(10**13))),
        request(
            "body-in-endless-chunks", Answered({400, 411, 413}), lambda site: in_chunks(site) + endless, seconds=20
        ),
        request("body-in-40-million-chunks", Answered({0, 400, 408, 411, 413}, ours=False), _tiny_chunks, seconds=40),
    ]


def in_chunks(site: Site) -> bytes:
    """Return the head of a request whose body comes in chunks."""
    return head("POST /predict HTTP/1.1", {**site.authorization(), "Transfer-Encoding": "chunked"})


def _tiny_chunks(site: Site) -> bytes:
    return in_chunks(site) + b"1\r\n \r\n" * 4_000_000


def _heads() -> list[Case]:
    """Heads that two readers may read differently, paths that lead astray, request ids and methods."""
    smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    close = b"Host: a\r\nConnection: close\r\n"
    begun = b"POST /predict HTTP/1.1\r\n" + close
    return [
        *(
            raw(f"smuggled-{name}", _REFUSED_HEAD, begun + headers.encode("latin-1") + b"\r\n\r\n" + smuggled)
            for name, headers in _HEADERS.items()
        ),
        *(raw(f"line-{name}", _REFUSED_HEAD, line + b"\r\n" + close + b"\r\n") for name, line in _LINES.items()),
        *(
            asked(f"path-of-{name}", _PATHS_FOUND.get(name, _NOT_FOUND), f"GET {path} HTTP/1.1")
            for name, path in _PATHS.items()
        ),
        *(
            Case(f"request-id-{name}", Kind.REQUEST, partial(_offer_id, offered))
            for name, offered in _REQUEST_IDS.items()
        ),
        *(
            asked(f"method-{method.lower()}", _NO_METHOD, f"{method} /predict HTTP/1.1", {"Content-Length": "0"})
            for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "FOO", "PROPFIND")
        ),
        request("method-connect", Answered({0, 400, 404, 405}, ours=False), partial(_through, "CONNECT {} HTTP/1.1")),
        request(
            "method-absolute", Answered({0, 400, 404}, ours=False), partial(_through, "GET http://{}/a.png HTTP/1.1")
        ),
        raw(
            "head-of-70-kb-that-stops",
            Answered({431}, "request_header_fields_too_large"),
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: abc\r\n" * 9_000,
        ),
    ]


def raw(name: str, outcome: Answered, data: bytes) -> Case:
    """Bytes that do not depend on the site."""
    return request(name, outcome, lambda _: data)


def _through(line: str, site: Site) -> bytes:
    return head(line.format(f"127.0.0.1:{site.canary.port}"), site.authorization())


def _offer_id(offered: str, site: Site) -> Attack:
    """Offer a request id that is not harmless; the answer must have another one."""

    def attack() -> None:
        reply = exchange(site, head("GET /health HTTP/1.1", {"X-Request-Id": offered}))
        given = reply.headers.get("X-Request-Id", "")
        if reply.status != 200 or given == offered or not re.fullmatch(r"[\w-]{1,64}", given):
            raise Escaped(f"the answer {reply.status} has the request id {given[:100]!r}")

    return attack


def _pages() -> list[Case]:
    """What a web page can have the browser of somebody send who can reach the server."""
    routes = ("/predict", "/score", "/setup", "/webhook")
    versions = "GET /versions HTTP/1.1"
    return [
        *(
            asked(f"rebound-{name}", _MISDIRECTED, f"GET {path} HTTP/1.1", host="evil.test")
            for name, path in _PAGES.items()
        ),
        *(
            sent(f"rebound-{path[1:]}", _MISDIRECTED, path, origin="http://evil.test", host="evil.test")
            for path in routes
        ),
        *(asked(f"host-{name}", _MISDIRECTED, versions, host=host) for name, host in _FOREIGN_HOSTS.items()),
        *(asked(f"host-ours-{name}", _SERVED, versions, host=host) for name, host in _OUR_HOSTS.items()),
        *(
            sent(f"page-of-{name}-starts-training", _FORBIDDEN, "/webhook", origin=origin)
            for name, origin in _ORIGINS.items()
        ),
        *(
            sent(f"page-sends-{path}-as-{name}", _NO_TYPE, f"/{path}", kind=kind)
            for name, kind in _CONTENT_TYPES.items()
            for path in ("webhook", "predict")
        ),
    ]


def sent(
    name: str,
    outcome: Answered,
    path: str,
    *,
    kind: str = "application/json",
    origin: str | None = None,
    host: str = "labelnext",
) -> Case:
    """What pages send: it carries the password where the browser knows it."""
    content = b'{"action": "START_TRAINING", "project": {"id": 1}}'
    named = {**({"Content-Type": kind} if kind else {}), **({"Origin": origin} if origin else {})}

    def make(site: Site) -> bytes:
        headers = {**site.authorization(), **named, "Content-Length": str(len(content))}
        return head(f"POST {path} HTTP/1.1", headers, host=host) + content

    return request(name, outcome, make)


def _strangers() -> list[Case]:
    """Who has no password, or another one."""
    empty = {"Content-Length": "2"}
    post_head, large = "POST /predict HTTP/1.1", head("POST /predict HTTP/1.1", {"Content-Length": str(_BODY_BYTES)})
    got = {"page": "/", "versions": "/versions", "report-a": "/report/a/", "nothing": "/nothing"}
    lines = {
        **{name: f"GET {path} HTTP/1.1" for name, path in got.items()},
        **{name: f"POST /{name} HTTP/1.1" for name in ("predict", "score", "setup", "webhook")},
    }
    return [
        raw("password-absent", _UNAUTHORIZED, head(post_head, empty) + b"{}"),
        *(
            raw(f"password-{name}", _UNAUTHORIZED, head(post_head, {"Authorization": value, **empty}) + b"{}")
            for name, value in _CREDENTIALS.items()
        ),
        *(
            raw(f"stranger-asks-{name}", _UNAUTHORIZED, head(line, {"Content-Length": "0"}))
            for name, line in lines.items()
        ),
        request("stranger-sends-32-mb", Answered({0, 401}, "unauthorized"), lambda _: large + b" " * _BODY_BYTES),
        request("webhook-secret-wrong", _UNAUTHORIZED, lambda _: _bearer("/webhook", "guess")),
        request("webhook-secret-on-predict", _UNAUTHORIZED, lambda site: _bearer("/predict", site.secrets.webhook)),
        request("webhook-secret-right", _SERVED, lambda site: _bearer("/webhook", site.secrets.webhook)),
    ]


def _bearer(path: str, secret: str) -> bytes:
    content = b'{"action": "ANNOTATION_CREATED"}'
    headers = {"Authorization": f"Bearer {secret}", "Content-Length": str(len(content))}
    return head(f"POST {path} HTTP/1.1", {**headers, "Content-Type": "application/json"}) + content
