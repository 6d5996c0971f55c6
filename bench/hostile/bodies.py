"""Request bodies that are malformed, too large, or of wrong types; and odd but valid ones, which are scored."""

import gzip
import json
from collections.abc import Callable

from bench.hostile import pictures
from bench.hostile.case import MEBIBYTE, Case, Kind, printable
from bench.hostile.exchange import BAD, BODY_BYTES, OK_OR_BAD, ExpectedReply, chunked_head, post_case, request_case
from bench.hostile.site import Escaped, Site, data_uri, predict_body
from demo.project import label_config

_BAD_CONFIG = ExpectedReply({400, 413}, "bad_config|bad_request|request_entity_too_large")
_CONFLICT = ExpectedReply({409})
_TOO_LARGE = ExpectedReply({413}, "request_entity_too_large|content_too_large")
_SCORED = ExpectedReply({200}, scored=[True])
_NOT_SCORED = ExpectedReply({200}, scored=[False])

BODIES = {
    "empty": b"",
    "cut-short": b'{"tasks": [',
    "plain-text": b"tasks",
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
_NOT_STRINGS: tuple[object, ...] = (None, 1, [], {})
_TASKS: tuple[object, ...] = (
    *(None, True, 1, 1.5, "text", {}),
    *([1], [None], [[]], [{}], [{"id": 1, "data": []}], [{"data": None}]),
)
_PROJECT_IDS: tuple[object, ...] = (
    *("1e400", "../../../etc/cron.d/a", "\0", "9" * 400, "\ud800", "1.\r\n"),
    *(-1, 1.5, {}, [], None),
)
_ODD_VALUES: dict[str, tuple[object, ...]] = {
    "task-id": (None, True, -1, 2**63, 10**4_000, 1.5, 1e308, "text", [], {}, "\ud800"),
    "project": (None, 1, [], {}, "x", "\ud800", "1.a", "9" * 5_000),
    "params": (None, 1, [], "x"),
}
"""Odd values by field; images are scored nevertheless."""


def cases() -> list[Case]:
    """Return the cases of this module."""
    return [*_bodies(), *_fields(), *_odd_but_scored(), *_configs(), *_sizes()]


def _bodies() -> list[Case]:
    elsewhere = [(name, path) for name in ("empty", "100000-lists") for path in ("/score", "/webhook", "/setup")]
    return [
        *(post_case(f"body-{name}", BAD, content) for name, content in BODIES.items()),
        *(post_case(f"body-{name}-to-{path[1:]}", BAD, BODIES[name], path=path) for name, path in elsewhere),
        post_case(
            "body-with-content-encoding", BAD, lambda: gzip.compress(bytes(200 * MEBIBYTE)), content_encoding="gzip"
        ),
    ]


def _fields() -> list[Case]:
    """JSON with wrong types or values."""
    good = predict_body(["data:,a"])
    of_score = {**good, "version": "a"}
    wrong: tuple[tuple[str, str, Callable[[object], object], tuple[object, ...]], ...] = (
        ("tasks", "/predict", lambda value: {**good, "tasks": value}, _TASKS),
        ("label-config", "/predict", lambda value: {**good, "label_config": value}, (None, True, 1, [], {})),
        ("body", "/predict", lambda value: value, (None, "text", 1, [], [[]])),
        ("score-version", "/score", lambda value: {**of_score, "version": value}, (None, 5, {})),
        ("score-embeddings", "/score", lambda value: {**of_score, "embeddings": value}, ("yes", 1)),
        ("score-passes", "/score", lambda value: {**of_score, "passes": value}, ([],)),
        ("webhook-action", "/webhook", lambda value: {"action": value}, _NOT_STRINGS),
    )
    return [
        *(
            post_case(_field_name(name, value), BAD, body(value), path=path)
            for name, path, body, values in wrong
            for value in values
        ),
        post_case("score-version-of-1-mb", _CONFLICT, {**good, "version": "v" * MEBIBYTE}, path="/score"),
        post_case("score-version-traversal", _CONFLICT, {**good, "version": "../../etc"}, path="/score"),
        *(
            post_case(
                _field_name("setup-schema", value),
                ExpectedReply({200 if value is None else 400}),
                {"schema": value},
                path="/setup",
            )
            for value in _NOT_STRINGS
        ),
        *(
            post_case(
                _field_name("webhook-project", value),
                OK_OR_BAD,
                {"action": "ANNOTATION_CREATED", "project": {"id": value}},
                path="/webhook",
            )
            for value in _PROJECT_IDS
        ),
    ]


def _field_name(field: str, value: object) -> str:
    return f"{field}={printable(json.dumps(value))}"


def _odd_but_scored() -> list[Case]:
    """Odd but harmless bodies: images are scored, and tasks without an image get an empty prediction."""
    good = predict_body([data_uri(pictures.plain())])
    (task,) = good["tasks"]
    odd: list[tuple[str, dict[str, object]]]
    odd = [(_field_name("task-id", value), {"tasks": [{**task, "id": value}]}) for value in _ODD_VALUES["task-id"]]
    odd += [(_field_name(name, value), {name: value}) for name in ("project", "params") for value in _ODD_VALUES[name]]
    duplicate_keys = b'{"tasks": [1, 2, 3],' + json.dumps(good).encode()[1:]
    forged_keys = {'\n{"forged": true}\n': 1, "\ud800": 2, "\x1b[2J": 3}
    without_images = [{"id": number, "data": {}} for number in range(100_000)]
    return [
        *(post_case(name, _SCORED, {**good, **fields}) for name, fields in odd),
        post_case("duplicate-keys", _SCORED, duplicate_keys),
        post_case("task-keys-with-forged-log-line", _NOT_SCORED, {**good, "tasks": [{"id": 1, "data": forged_keys}]}),
        Case("task-keys-of-10-mb", Kind.REQUEST, _send_long_keys),
        post_case(
            "100000-tasks",
            ExpectedReply({200}, scored=[False] * 100_000),
            {**good, "tasks": without_images},
            seconds=30,
        ),
        post_case(
            "2000-broken-images",
            ExpectedReply({200}, scored=[False] * 2_000),
            predict_body(["data:,x"] * 2_000),
            seconds=30,
        ),
    ]


def _send_long_keys(site: Site, _payload: None) -> None:
    """Send 10 MB of keys, which must not be logged in full."""
    log = site.server.process.log
    before = log.stat().st_size
    data = {f"{number}{'a' * MEBIBYTE}": 1 for number in range(10)}
    status, answer = site.post_json("/predict", {**predict_body([]), "tasks": [{"id": 1, "data": data}]})
    if status != 200 or answer["results"] != [{}]:
        raise Escaped(f"expected an empty prediction, got {status} {str(answer)[:200]}")
    if (written := log.stat().st_size - before) > MEBIBYTE:
        raise Escaped(f"{written} bytes were logged")


def _configs() -> list[Case]:
    """Label configs, of /predict and as the schema of /setup."""
    configs = []
    for name, text in _config_texts().items():
        parsable = name in {"100000-levels", "other-encoding"}
        body = predict_body(["data:,a"], label_config=text)
        configs.append(post_case(f"config-{name}", OK_OR_BAD if parsable else _BAD_CONFIG, body))
        configs.append(post_case(f"setup-config-{name}", OK_OR_BAD, {"schema": text}, path="/setup"))
    return configs


def _config_texts() -> dict[str, str]:
    config = label_config(["ant"])
    entities = "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    nested = (
        '<Choices name="a" toName="image">' * 20_000 + "</Choices>" * 20_000
    )  # reading each with its descendants would be quadratic
    return {
        "billion-laughs": f'<!DOCTYPE x [<!ENTITY a "{"lol" * 10}">{entities}]><View>&j;{config}</View>',
        "external-entity": f'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><View>&a;{config}</View>',
        "external-dtd": f'<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">{config}',
        "parameter-entity": f'<!DOCTYPE x [<!ENTITY % a SYSTEM "http://127.0.0.1/x.dtd"> %a;]>{config}',
        "unknown-entity": f"<View>&nothing;{config}</View>",
        "empty": "",
        "not-xml": "choices: ant",
        "without-image": "<View/>",
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
    endless = (b"100000\r\n" + b" " * MEBIBYTE + b"\r\n") * 40
    no_length = ExpectedReply({400, 411, 413})
    not_in_time = ExpectedReply({0, 400, 408, 411, 413}, ours=False)
    return [
        post_case("body-above-limit", _TOO_LARGE, lambda: b" " * (BODY_BYTES + 1), seconds=20),
        post_case("content-length-of-10-tb", _TOO_LARGE, b"{}", content_length=str(10**13)),
        request_case("body-in-endless-chunks", no_length, lambda site: chunked_head(site) + endless, seconds=20),
        request_case(
            "body-in-4-million-chunks",
            not_in_time,
            lambda site: chunked_head(site) + b"1\r\n \r\n" * 4_000_000,
            seconds=40,
        ),
    ]
