"""Requests: bodies that are no bodies, heads that two readers read differently, and clients that take their time."""

import base64
import gzip
import json
import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException, HTTPResponse
from typing import Any

from bench.hostile import pictures
from bench.hostile.case import Attack, Case, Kind, Scored
from bench.hostile.site import LIVE_S, Escaped, Site, data_uri, predict_body
from bench.load import label_config
from bench.serving import serving

_SLOW_CLIENTS = 2000
_SLOW_FOR_S = 4.0
_READ_S = 30.0
"""In which a client must take an answer."""
_GOOD_S = 10.0
_LIMIT_S = 60.0
_MEBIBYTE = 1 << 20
_BODY_BYTES = 32 * _MEBIBYTE
_HALF_BODY = _BODY_BYTES // 2

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

    @property
    def must(self) -> str:
        """For people."""
        shown = "closed" if 0 in self.statuses else None
        return " or ".join([*(str(status) for status in sorted(self.statuses) if status), *([shown] if shown else [])])

    def check(self, reply: Reply) -> None:
        """Raise Escaped if it is anything else."""
        if reply.status not in self.statuses:
            raise Escaped(f"expected {self.must}, got {reply.status} {reply.content[:200]!r}")
        if self.ours and reply.status >= 400:
            found = reply.json()
            if not {"error", "detail", "request_id"} <= set(found) or not re.fullmatch(self.error, found["error"]):
                raise Escaped(f"expected an error {self.error!r}, got {found}")
        if b"Traceback" in reply.content:
            raise Escaped("the answer shows a traceback")


_BAD = Answered({400}, "bad_request")
_CONFIG = Answered({400}, "bad_config|bad_request")
_UNAUTHORIZED = Answered({401}, "unauthorized")
_FORBIDDEN_METHOD = Answered({405}, "method_not_allowed")
_TOO_LARGE = Answered({413}, "request_entity_too_large|content_too_large")
_REFUSED_HEAD = Answered({0, 400, 405, 414, 431, 501, 505}, ours=False)
_NOT_FOUND = Answered({404}, "not_found")
_MISDIRECTED = Answered({421}, "misdirected_request")


def cases() -> list[Case]:
    """Every request."""
    return [
        *_no_json(),
        *_wrong_fields(),
        *_configs(),
        *_sizes(),
        *_heads(),
        *_pages_of_others(),
        *_credentials(),
        *_methods(),
        *_clients(),
    ]


def request(name: str, sent: str, outcome: Answered, make: Callable[[Site], bytes], *, seconds: float = 10) -> Case:
    """Bytes on a connection of its own."""

    def prepare(site: Site) -> Attack:
        data = make(site)
        return lambda: outcome.check(exchange(site, data))

    return Case(name, Kind.REQUEST, sent, outcome.must, prepare, seconds)


def posted(
    name: str,
    sent: str,
    outcome: Answered,
    make: Callable[[Site], object],
    *,
    path: str = "/predict",
    seconds: float = 10,
) -> Case:
    """A body, JSON or bytes as they are, by somebody who may ask."""

    def prepare(site: Site) -> bytes:
        content = make(site)
        return post(site, path, content if isinstance(content, bytes) else json.dumps(content).encode())

    return request(name, sent, outcome, prepare, seconds=seconds)


def post(site: Site, path: str, content: bytes, **headers: str) -> bytes:
    """Return a request by somebody who may ask; `x_a="b"` adds or replaces a header."""
    named = {"content_length": str(len(content)), "content_type": "application/json", **headers}
    return head(f"POST {path} HTTP/1.1", {**site.authorization(), **_titled(named)}) + content


def head(line: str, headers: Head) -> bytes:
    """Return the head of a request; values may hold any bytes, as characters up to 255."""
    lines = [line, "Host: labelnext", "Connection: close", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def exchange(site: Site, data: bytes, *, timeout_s: float = 150) -> Reply:
    """Send bytes and read the answer, even one that comes before they have been taken."""
    with socket.create_connection(site.address(), timeout=timeout_s) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        return _read(connection)


def _read(connection: socket.socket) -> Reply:
    response = HTTPResponse(connection)
    try:
        response.begin()
        return Reply(response.status, dict(response.getheaders()), response.read())
    except (HTTPException, ConnectionError):
        return Reply(0, {}, b"")
    finally:
        response.close()


def _titled(headers: Head) -> Head:
    return {name.replace("_", "-").title(): value for name, value in headers.items()}


def _raw(data: bytes, _: Site) -> bytes:
    return data


def _json_of(content: object, _: Site) -> object:
    return content


def _no_json() -> Iterator[Case]:
    for name, content in {
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
    }.items():
        for path in (
            ("/predict", "/score", "/webhook", "/setup") if name in {"empty", "100000-lists"} else ("/predict",)
        ):
            label = name if path == "/predict" else f"{name}-{path[1:]}"
            yield posted(f"body-{label}", f"{content[:24]!r}", _BAD, partial(_json_of, content), path=path)
    yield request("body-gzipped", "JSON, gzipped", _BAD, _gzipped)


def _gzipped(site: Site) -> bytes:
    return post(site, "/predict", gzip.compress(bytes(200 * _MEBIBYTE)), content_encoding="gzip")


def _wrong_fields() -> Iterator[Case]:
    good: dict[str, object] = predict_body(["data:,a"])
    value: object
    for value in (None, True, 1, 1.5, "text", {}, [1], [None], [[]], [{}], [{"id": 1, "data": []}], [{"data": None}]):
        yield posted(f"tasks-{_named(value)}", f"tasks: {value}", _BAD, partial(_json_of, {**good, "tasks": value}))
    for value in (None, True, 1, [], {}):
        yield posted(
            f"label-config-{_named(value)}",
            f"label_config: {value}",
            _BAD,
            partial(_json_of, {**good, "label_config": value}),
        )
    for value in (None, "text", 1, [], [[]]):
        yield posted(f"body-of-{_named(value)}", f"{value}", _BAD, partial(_json_of, value))
    fields: tuple[tuple[str, object], ...] = (
        ("version", None),
        ("version", 5),
        ("version", {}),
        ("embeddings", "yes"),
        ("embeddings", 1),
        ("passes", []),
    )
    for field, wrong in fields:
        body = {**good, "version": "a", field: wrong}
        yield posted(
            f"score-{field}-{_named(wrong)}", f"{field}: {wrong}", _BAD, partial(_json_of, body), path="/score"
        )
    yield posted(
        "score-version-of-1-mb",
        "a version's name of 1 MB",
        Answered({409}),
        partial(_json_of, {**good, "version": "v" * _MEBIBYTE}),
        path="/score",
    )
    yield posted(
        "score-version-climbing",
        "a version called ../..",
        Answered({409}),
        partial(_json_of, {**good, "version": "../../etc"}),
        path="/score",
    )
    for value in (None, 1, [], {}):
        yield posted(
            f"webhook-action-{_named(value)}",
            f"action: {value}",
            _BAD,
            partial(_json_of, {"action": value}),
            path="/webhook",
        )
        yield posted(
            f"setup-schema-{_named(value)}-text",
            f"schema: {value}",
            Answered({200} if value is None else {400}),
            partial(_json_of, {"schema": value}),
            path="/setup",
        )
    texts = ("1e400", "../../../etc/cron.d/a", "\0", "9" * 400, "\ud800", "1.\r\n")
    for value in (*texts, -1, 1.5, {}, [], None):
        project: object = {"id": value}
        yield posted(
            f"webhook-project-{_named(value)}",
            f"project: {str(value)[:30]!r}",
            Answered({200, 400}),
            partial(_json_of, {"action": "ANNOTATION_CREATED", "project": project}),
            path="/webhook",
        )
    for value in (None, True, -1, 2**63, 10**4_000, 1.5, 1e308, "text", [], {}, "\ud800"):
        yield Case(
            f"task-id-{_named(value)}",
            Kind.REQUEST,
            f"a task whose id is {str(value)[:30]!r}",
            "scored",
            partial(_odd_id, value),
        )
    for value in (None, 1, [], {}, "x", "\ud800", "1.a", "9" * 5_000):
        yield Case(
            f"project-{_named(value)}",
            Kind.REQUEST,
            f"project: {str(value)[:30]!r}",
            "scored",
            partial(_odd_field, "project", value),
        )
    for value in (None, 1, [], "x"):
        yield Case(
            f"params-{_named(value)}", Kind.REQUEST, f"params: {value}", "scored", partial(_odd_field, "params", value)
        )
    yield Case("duplicate-keys", Kind.REQUEST, "tasks twice", "one prediction for each of the last", _duplicate_keys)
    yield Case(
        "task-keys-forge-log",
        Kind.REQUEST,
        "keys of a task that look like a line of a log",
        "no prediction",
        _forging_keys,
    )
    yield Case(
        "task-keys-of-10-mb",
        Kind.REQUEST,
        "a task whose keys are 10 MB",
        "no prediction, and a short line in the log",
        _long_keys,
    )


def _named(value: object) -> str:
    shown = re.sub(r"[^a-z0-9]+", "-", json.dumps(value).lower()).strip("-")[:16]
    depth = json.dumps(value).count("[")
    return "-".join(part for part in (type(value).__name__.lower() + "s" * (depth - 1), shown) if part)


def _odd_id(value: object, site: Site) -> Attack:
    body = predict_body([data_uri(pictures.plain())])
    tasks: Any = body["tasks"]
    tasks[0]["id"] = value
    return partial(_expect_scored, site, json.dumps(body).encode(), 1)


def _odd_field(field: str, value: object, site: Site) -> Attack:
    return partial(
        _expect_scored, site, json.dumps(predict_body([data_uri(pictures.plain())], **{field: value})).encode(), 1
    )


def _expect_scored(site: Site, body: bytes, count: int) -> None:
    status, answer = site.ask("/predict", body)
    if status != 200 or len(answer["results"]) != count or not all(answer["results"]):
        raise Escaped(f"expected {count} predictions, got {status} {str(answer)[:200]}")


def _duplicate_keys(site: Site) -> Attack:
    body = json.dumps(predict_body([data_uri(pictures.plain())])).encode()
    return partial(_expect_scored, site, b'{"tasks": [1, 2, 3],' + body[1:], 1)


def _forging_keys(site: Site) -> Attack:
    return partial(_expect_empty, site, {'\n{"forged": true}\n': 1, "\ud800": 2, "\x1b[2J": 3})


def _long_keys(site: Site) -> Attack:
    def attack() -> None:
        before = site.server.process.log.stat().st_size
        _expect_empty(site, {f"{number}{'a' * _MEBIBYTE}": 1 for number in range(10)})
        if (written := site.server.process.log.stat().st_size - before) > _MEBIBYTE:
            raise Escaped(f"{written} bytes were logged")

    return attack


def _expect_empty(site: Site, data: Mapping[str, object]) -> None:
    status, answer = site.ask("/predict", {**predict_body([]), "tasks": [{"id": 1, "data": data}]})
    if (status, answer.get("results")) != (200, [{}]):
        raise Escaped(f"expected an empty prediction, got {status} {str(answer)[:200]}")


def _configs() -> Iterator[Case]:
    lol = (
        '<!ENTITY a "'
        + "lol" * 10
        + '">'
        + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    )
    config = label_config(["ant"])
    for name, text in {
        "billion-laughs": f"<!DOCTYPE x [{lol}]><View>&j;{config}</View>",
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
        "20000-nested-choices": _nested_choices(20_000),
        "200000-attributes": "<View " + " ".join(f'a{i}="1"' for i in range(200_000)) + "/>",
    }.items():
        outcome = Answered({400, 413}, "bad_config|bad_request|request_entity_too_large")
        if name in {"100000-levels", "other-encoding"}:  # no worse than others, once they have been read
            outcome = Answered({200, 400})
        yield posted(f"config-{name}", f"{text[:40]!r}", outcome, partial(_with_config, text))
        yield posted(
            f"setup-{name}",
            f"{text[:40]!r} as a schema",
            Answered({200, 400}),
            partial(_json_of, {"schema": text}),
            path="/setup",
        )


def _nested_choices(count: int) -> str:
    """Each is read with all that it holds."""
    opened = '<Choices name="a" toName="image">' * count
    return f'<View><Image name="image" value="$image"/>{opened}{"</Choices>" * count}</View>'


def _with_config(text: str, _: Site) -> object:
    return predict_body(["data:,a"], label_config=text)


def _sizes() -> Iterator[Case]:
    yield request(
        "body-larger-than-may-be",
        "32 MiB and one byte",
        _TOO_LARGE,
        lambda site: post(site, "/predict", b" " * (_BODY_BYTES + 1)),
        seconds=20,
    )
    yield request(
        "length-of-10-tb",
        "a Content-Length of 10 TB",
        _TOO_LARGE,
        lambda site: post(site, "/predict", b"{}", content_length=str(10**13)),
    )
    yield request(
        "body-in-endless-chunks", "chunks without an end", Answered({400, 411, 413}), _endless_chunks, seconds=20
    )
    yield request(
        "body-in-40-million-chunks",
        "chunks of one byte",
        Answered({0, 400, 408, 411, 413}, ours=False),
        _tiny_chunks,
        seconds=40,
    )
    yield Case(
        "100000-tasks", Kind.REQUEST, "100,000 tasks without an image", "100,000 empty predictions", _many_tasks, 30
    )
    yield Case(
        "2000-broken-images", Kind.REQUEST, "2,000 images that are none", "2,000 empty predictions", _many_broken, 30
    )


def _endless_chunks(site: Site) -> bytes:
    headers = {**site.authorization(), "Transfer-Encoding": "chunked"}
    return head("POST /predict HTTP/1.1", headers) + (b"100000\r\n" + b" " * _MEBIBYTE + b"\r\n") * 40


def _tiny_chunks(site: Site) -> bytes:
    headers = {**site.authorization(), "Transfer-Encoding": "chunked"}
    return head("POST /predict HTTP/1.1", headers) + b"1\r\n \r\n" * 4_000_000


def _many_tasks(site: Site) -> Attack:
    body = json.dumps({**predict_body([]), "tasks": [{"id": number, "data": {}} for number in range(100_000)]}).encode()
    return partial(_expect_all_empty, site, body, 100_000)


def _many_broken(site: Site) -> Attack:
    return partial(_expect_all_empty, site, json.dumps(predict_body(["data:,x"] * 2_000)).encode(), 2_000)


def _expect_all_empty(site: Site, body: bytes, count: int) -> None:
    status, answer = site.ask("/predict", body)
    if status != 200 or answer["results"] != [{}] * count:
        raise Escaped(f"expected {count} empty predictions, got {status} {str(answer)[:200]}")


def _heads() -> Iterator[Case]:
    smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    for name, headers in {
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
    }.items():
        data = (
            b"POST /predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            + headers.encode("latin-1")
            + b"\r\n\r\n"
            + smuggled
        )
        yield request(
            f"smuggled-{name}",
            headers[:50],
            _REFUSED_HEAD,
            partial(_raw, data),
        )
    for name, line in {
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
    }.items():
        yield request(
            f"line-{name}",
            repr(line[:40]),
            _REFUSED_HEAD,
            partial(_raw, line + b"\r\nHost: a\r\nConnection: close\r\n\r\n"),
        )
    for name, path in {
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
    }.items():
        outcome = {"debug": Answered({200}), "report-redirect-slashes": Answered({308, 404})}.get(name, _NOT_FOUND)
        yield request(f"path-of-{name}", path, outcome, partial(_get, path))
    yield Case(
        "request-id-of-line-breaks",
        Kind.REQUEST,
        "a request id that is not harmless",
        "another one",
        partial(_request_id, "a%0d%0aX-Injected: 1"),
    )
    yield Case(
        "request-id-of-60-kb", Kind.REQUEST, "a request id of 60 kB", "another one", partial(_request_id, "a" * 6_000)
    )
    yield Case(
        "request-id-of-markup",
        Kind.REQUEST,
        "a request id with markup",
        "another one",
        partial(_request_id, '"><script>'),
    )


def _get(path: str, site: Site) -> bytes:
    return head(f"GET {path.replace('VERSION', site.version)} HTTP/1.1", site.authorization())


def _request_id(offered: str, site: Site) -> Attack:
    def attack() -> None:
        reply = exchange(site, head("GET /health HTTP/1.1", {"X-Request-Id": offered}))
        given = reply.headers.get("X-Request-Id", "")
        if reply.status != 200 or given == offered or not re.fullmatch(r"[\w-]{1,64}", given):
            raise Escaped(f"the answer {reply.status} has the request id {given[:100]!r}")

    return attack


def _pages_of_others() -> Iterator[Case]:
    """What a web page can have the browser of somebody send who can reach the server."""
    for name, path in {
        "page": "/",
        "versions": "/versions",
        "report": "/report/VERSION/",
        "report-without-slash": "/report/VERSION",
    }.items():
        yield request(
            f"rebound-{name}",
            f"{path} under a name of theirs",
            _MISDIRECTED,
            partial(_at, "evil.test", path),
        )
    for path in ("/predict", "/score", "/setup", "/webhook"):
        yield request(
            f"rebound{path.replace('/', '-')}",
            f"{path} under a name of theirs",
            _MISDIRECTED,
            partial(_sent, path, "application/json", "http://evil.test", "evil.test"),
        )
    for name, host in {
        "with-port": "evil.test:9090",
        "with-dot": "evil.test.",
        "behind-address": "127.0.0.1.evil.test",
        "behind-localhost": "localhost.evil.test",
        "behind-user": "localhost@evil.test",
        "behind-bracket": "[::1].evil.test",
        "of-two": "localhost, evil.test",
    }.items():
        yield request(f"host-{name}", f"Host: {host}", _MISDIRECTED, partial(_at, host, "/versions"))
    for host in ("localhost", "127.0.0.1:9090", "[::1]:9090", "server", "host.docker.internal", "server.labelnext.svc"):
        yield request(
            f"host-ours-{re.sub('[^a-z0-9]+', '-', host).strip('-')}",
            f"Host: {host}",
            Answered({200}),
            partial(_at, host, "/versions"),
        )
    for name, origin in {"another": "https://evil.test", "null": "null", "other-port": "http://labelnext:1"}.items():
        yield request(
            f"page-of-{name}-starts-training",
            f"/webhook from Origin: {origin}",
            Answered({403}, "forbidden"),
            partial(_sent, "/webhook", "application/json", origin, "labelnext"),
        )
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
        "",
        "application/jsonp",
    ):
        for path in ("/webhook", "/predict"):
            yield request(
                f"page-sends{path.replace('/', '-')}-as-{re.sub('[^a-z]+', '-', kind) or 'nothing'}",
                f"{path} as {kind or 'no type'}",
                Answered({415}, "unsupported_media_type"),
                partial(_sent, path, kind, None, "labelnext"),
            )


def _at(host: str, path: str, site: Site) -> bytes:
    return _get(path, site).replace(b"Host: labelnext", f"Host: {host}".encode())


def _sent(path: str, kind: str, origin: str | None, host: str, site: Site) -> bytes:  # noqa: PLR0917  # bound but for the last
    """What pages send carries the password where the browser knows it."""
    named = {**({"Content-Type": kind} if kind else {}), **({"Origin": origin} if origin else {})}
    content = b'{"action": "START_TRAINING", "project": {"id": 1}}'
    headers = {**site.authorization(), **named, "Content-Length": str(len(content))}
    return head(f"POST {path} HTTP/1.1", headers).replace(b"Host: labelnext", f"Host: {host}".encode()) + content


def _credentials() -> Iterator[Case]:
    for name, value in {
        "absent": None,
        "empty": "",
        "of-another": "Basic " + base64.b64encode(b"annotator:guess").decode(),
        "without-password": "Basic " + base64.b64encode(b"annotator:").decode(),
        "without-colon": "Basic " + base64.b64encode(b"annotator").decode(),
        "without-anything": "Basic",
        "of-colon": "Basic Og==",
        "not-base64": "Basic !!!!",
        "not-utf-8": "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        "of-latin-1": "Basic \xe4\xf6",
        "of-utf-8": "Basic " + base64.b64encode("ännotator:pässword".encode()).decode(),
        "of-6-kb": "Basic " + base64.b64encode(b"a:" + b"b" * 4_500).decode(),
        "digest": 'Digest username="annotator", realm="a", nonce="a", uri="/", response="a"',
        "bearer-none": "Bearer none",
        "nul": "Basic " + base64.b64encode(b"annotator\0:a").decode(),
        "of-parameters": "Basic a=b, c=d",
    }.items():
        headers = {} if value is None else {"Authorization": value}
        yield request(
            f"password-{name}",
            f"{value and value[:40]!r}",
            _UNAUTHORIZED,
            partial(_raw, head("POST /predict HTTP/1.1", {**headers, "Content-Length": "2"}) + b"{}"),
        )
    for path in ("/", "/predict", "/score", "/setup", "/webhook", "/versions", "/report/a/", "/nothing"):
        method = "GET" if path in {"/", "/versions", "/report/a/", "/nothing"} else "POST"
        yield request(
            f"stranger-asks-{path.strip('/').replace('/', '-') or 'page'}",
            path,
            _UNAUTHORIZED,
            partial(_raw, head(f"{method} {path} HTTP/1.1", {"Content-Length": "0"})),
        )
    yield request(
        "stranger-sends-32-mb",
        "32 MiB without a password",
        Answered({0, 401}, "unauthorized"),
        lambda _: head("POST /predict HTTP/1.1", {"Content-Length": str(_BODY_BYTES)}) + b" " * _BODY_BYTES,
    )
    yield request(
        "webhook-secret-wrong", "a wrong secret on /webhook", _UNAUTHORIZED, partial(_bearer, "/webhook", "guess")
    )
    yield request(
        "webhook-secret-on-predict",
        "the webhook's secret on /predict",
        _UNAUTHORIZED,
        partial(_bearer, "/predict", None),
    )
    yield request(
        "webhook-secret-right", "the webhook's secret on /webhook", Answered({200}), partial(_bearer, "/webhook", None)
    )


def _bearer(path: str, secret: str | None, site: Site) -> bytes:
    content = b'{"action": "ANNOTATION_CREATED"}'
    headers = {"Authorization": f"Bearer {secret or site.secrets.webhook}", "Content-Length": str(len(content))}
    return head(f"POST {path} HTTP/1.1", {**headers, "Content-Type": "application/json"}) + content


def _methods() -> Iterator[Case]:
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "FOO", "PROPFIND"):
        yield request(f"method-{method.lower()}", f"{method} /predict", _FORBIDDEN_METHOD, partial(_method, method))
    yield request(
        "method-connect",
        "CONNECT to this machine",
        Answered({0, 400, 404, 405}, ours=False),
        lambda site: head(f"CONNECT 127.0.0.1:{site.canary.port} HTTP/1.1", site.authorization()),
    )
    yield request(
        "method-absolute",
        "GET of another host's address",
        Answered({0, 400, 404}, ours=False),
        lambda site: head(f"GET http://127.0.0.1:{site.canary.port}/a.png HTTP/1.1", site.authorization()),
    )


def _method(method: str, site: Site) -> bytes:
    return head(f"{method} /predict HTTP/1.1", {**site.authorization(), "Content-Length": "0"})


def _clients() -> Iterator[Case]:
    """Connections that cost their owner next to nothing: others must not notice them."""
    for kind in (
        Slow("idle", "connections that say nothing", lambda _: b""),
        Slow("slow-heads", "heads that come byte by byte", lambda _: _HALF_A_HEAD),
        Slow("slow-bodies", "bodies that come byte by byte", lambda site: _announced(site, 1000)),
        Slow("slow-bodies-of-strangers", "the same without a password", lambda _: _HEAD_OF_STRANGER),
        Slow(
            "slow-large-bodies",
            "bodies of 20 MB that stop at 60 kB",
            lambda site: _announced(site, 20 * 10**6) + bytes(60_000),
        ),
        Slow("slow-chunks", "chunks that come byte by byte", _chunk),
        Slow(
            "waiting-to-continue",
            "bodies that are announced and never come",
            lambda site: post(site, "/predict", b"", content_length="1000", expect="100-continue"),
        ),
        Slow("that-do-not-close", "requests whose clients do not close when asked to", lambda _: _PROBE),
        Slow(
            "that-stay", "connections that are kept after an answer", lambda _: _PROBE.replace(b"close", b"keep-alive")
        ),
        Slow("that-do-not-read", "clients that read none of twenty pages", _pages, reads=False),
    ):
        yield Case(
            f"{_SLOW_CLIENTS}-{kind.name}",
            Kind.REQUEST,
            f"{_SLOW_CLIENTS} {kind.sent}",
            f"/health/live under {LIVE_S:.0f} s, predictions under {_GOOD_S:.0f} s",
            partial(_slow, [(kind, _SLOW_CLIENTS)]),
            _LIMIT_S,
        )
    yield Case(
        f"{_SLOW_CLIENTS}-of-all-kinds-without-password",
        Kind.REQUEST,
        f"{_SLOW_CLIENTS} slow clients of a server that asks for no password",
        f"/health/live under {LIVE_S:.0f} s",
        _slow_without_password,
        _LIMIT_S,
    )
    yield Case(
        "more-connections-than-may-be",
        Kind.REQUEST,
        "connections that say nothing, more than the server has files for",
        f"/health/live under {LIVE_S:.0f} s, predictions under {_GOOD_S:.0f} s",
        lambda site: _slow([(Slow("", "", lambda _: b""), _too_many())], site),
        _LIMIT_S,
    )
    yield Case(
        "80-bodies-of-16-mb-that-stop",
        Kind.REQUEST,
        "bodies that lack their last byte, more than are held in memory",
        f"/health/live under {LIVE_S:.0f} s, predictions under {_GOOD_S:.0f} s",
        partial(_slow, [(Slow("", "", lambda site: _announced(site, _HALF_BODY) + bytes(_HALF_BODY - 1)), 80)]),
        _LIMIT_S,
    )
    yield request(
        "head-of-70-kb-that-stops",
        "more of a head than is waited for",
        Answered({431}, "request_header_fields_too_large"),
        lambda _: b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: abc\r\n" * 9_000,
    )
    yield Case(
        "slow-body-in-time",
        Kind.REQUEST,
        "a body that takes longer than may be",
        "408",
        _late_body,
        _LIMIT_S,
        patient=True,
    )
    yield Case(
        "slow-head-in-time",
        Kind.REQUEST,
        "a head that takes longer than may be",
        "closed",
        _late_head,
        _LIMIT_S,
        patient=True,
    )
    yield Case(
        "slow-reader-in-time",
        Kind.REQUEST,
        "a client that takes no answer for too long",
        "closed",
        _late_reader,
        _LIMIT_S,
        patient=True,
    )
    yield Case(
        "clients-that-leave",
        Kind.REQUEST,
        "200 requests whose clients do not wait",
        "others are answered again",
        _leavers,
        _LIMIT_S,
    )


@dataclass(frozen=True, slots=True)
class Slow:
    """A kind of client that takes its time."""

    name: str
    sent: str
    make: Callable[[Site], bytes]
    """What each sends at first; then comes a byte now and then."""
    reads: bool = True
    """Whether it takes what is sent to it; else it has next to no room for it."""

    def connect(self, site: Site) -> socket.socket:
        """Open a connection, and send the beginning."""
        client = socket.socket()
        client.settimeout(30)
        if not self.reads:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(site.address())
        with suppress(ConnectionError, TimeoutError):  # who is refused need not be heard out
            client.sendall(self.make(site))
        client.setblocking(False)
        return client


_HALF_A_HEAD = b"GET / HTTP/1.1\r\nX: "
_HEAD_OF_STRANGER = head("POST /predict HTTP/1.1", {"Content-Length": "1000", "Content-Type": "application/json"})
_PROBE = head("GET /health/live HTTP/1.1", {})


def _announced(site: Site, count: int) -> bytes:
    return post(site, "/predict", b"", content_length=str(count))


def _chunk(site: Site) -> bytes:
    return head("POST /predict HTTP/1.1", {**site.authorization(), "Transfer-Encoding": "chunked"}) + b"100\r\n"


def _pages(site: Site) -> bytes:
    return head("GET / HTTP/1.1", site.authorization()).replace(b"close", b"keep-alive") * 20


def _too_many() -> int:
    """As many connections as this process may have, or more than a server takes on a machine that lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(11_000, hard - 256) if hard != resource.RLIM_INFINITY else 11_000


def _slow(kinds: Sequence[tuple[Slow, int]], site: Site) -> Attack:
    """Slow clients, and beside them somebody who looks whether the server lives, and one who wants a prediction."""

    def attack() -> None:
        with ThreadPoolExecutor(2) as other, ExitStack() as stack:  # who was held up is let go before it is waited for
            over = threading.Event()
            stack.callback(over.set)
            worst = other.submit(_watch, site, over)
            clients = [stack.enter_context(kind.connect(site)) for kind, count in kinds for _ in range(count)]
            asked = other.submit(_timed_prediction, site)
            _trickle(clients)
            over.set()
            if (seconds := asked.result()) > _GOOD_S:
                raise Escaped(f"a prediction took {seconds:.1f} s")
            if worst.result() > LIVE_S:
                raise Escaped(f"/health/live took up to {worst.result():.1f} s")

    _allow_files()
    return attack


def _slow_without_password(site: Site) -> Attack:
    kinds = [
        Slow("", "", lambda _: b""),
        Slow("", "", lambda _: _HALF_A_HEAD),
        Slow("", "", lambda _: _HEAD_OF_STRANGER),
        Slow("", "", lambda _: _PROBE),
        Slow("", "", lambda _: head("GET / HTTP/1.1", {}).replace(b"close", b"keep-alive") * 20, reads=False),
    ]

    def attack() -> None:
        models, log = site.files.parent / "models", site.files.parent / "open.log"
        with serving(models, log=log, settings={"LABELNEXT_PROVIDER": "cpu"}) as server:
            _slow([(kind, _SLOW_CLIENTS // len(kinds)) for kind in kinds], replace(site, server=server, known={}))()

    return attack


def _allow_files() -> None:
    """Let this process have as many connections as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _timed_prediction(site: Site) -> float:
    started = time.perf_counter()
    Scored(pictures.plain).check(site, site.score([data_uri(pictures.plain())])[0])
    return time.perf_counter() - started


def _watch(site: Site, over: threading.Event) -> float:
    """Return the slowest answer of /health/live until it is over."""
    worst = site.live_s()
    while not over.wait(0.1):
        worst = max(worst, site.live_s())
    return worst


def _trickle(clients: Collection[socket.socket]) -> None:
    end = time.perf_counter() + _SLOW_FOR_S
    while time.perf_counter() < end:
        for client in clients:
            with suppress(OSError):
                client.send(b"a")
        time.sleep(0.5)


def _late_body(site: Site) -> Attack:
    def attack() -> None:
        with socket.create_connection(site.address(), timeout=_LIMIT_S) as client:
            client.sendall(post(site, "/predict", b'{"tasks"', content_length="1000"))
            Answered({408}, "request_timeout").check(_read(client))

    return attack


def _late_head(site: Site) -> Attack:
    def attack() -> None:
        with socket.create_connection(site.address(), timeout=_LIMIT_S) as client:
            client.sendall(_HALF_A_HEAD)
            if (answer := client.recv(100)) != b"":
                raise Escaped(f"it is answered: {answer!r}")

    return attack


def _late_reader(site: Site) -> Attack:
    """It asks for more than sockets hold, reads nothing for half a minute, and finds the rest gone."""
    asked = 1000  # 11 MB, of which sockets hold 4 at most
    metrics = head("GET /metrics HTTP/1.1", {}).replace(b"close", b"keep-alive") * asked

    def attack() -> None:
        with Slow("", "", lambda _: metrics, reads=False).connect(site) as client:
            time.sleep(_READ_S + 15)  # the first answers have to be made, too
            client.settimeout(10)
            received = b""
            with suppress(ConnectionError):
                while piece := client.recv(1 << 20):
                    received += piece
            if (count := received.count(b"HTTP/1.1 200")) >= asked:
                raise Escaped(f"all {count} answers waited for it")

    return attack


def _leavers(site: Site) -> Attack:
    data = post(site, "/predict", json.dumps(predict_body([data_uri(pictures.plain())] * 20)).encode())

    def attack() -> None:
        for _ in range(200):
            with socket.create_connection(site.address(), timeout=10) as client:
                client.sendall(data)
        while site.ask("/predict", predict_body([data_uri(pictures.plain())]))[0] == 503:
            time.sleep(0.5)

    return attack
