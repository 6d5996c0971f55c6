"""Random requests of the chaos test, reproducible by a seed, and their images."""

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from PIL import Image

from bench.harness import hosts
from bench.harness.load import Reply, exchange
from bench.hostile.bodies import BODIES
from bench.hostile.site import data_uri
from bench.subjects.photos import save
from bench.subjects.tiny_model import LABELS
from demo.project import label_config

_PICTURES, _SIDES, _LARGE_SIDE = 48, (8, 64), 512
"""The large picture is a PNG of 0.75 MB."""
_MAX_REPEATS, _MAX_REPEATS_SMALL = 20, 4
_CONFIG = label_config(LABELS)
_TIMEOUT_S = 120.0
"""Label Studio's timeout is 100 s."""

_ADDRESS = "127.0.0.2"
"""The bad host has another address than the good one, because the server limits connections by host."""
_OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: image/png\r\n"

BAD_ANSWERS: Mapping[str, hosts.Answer] = {
    "error": hosts.reply(status=500),
    "missing": hosts.reply(status=404),
    "cut": hosts.raw(_OK + b"Content-Length: 5000\r\n\r\n" + b"\x89PNG\r\n\x1a\n" * 9),
    "garbage": hosts.raw(b"\x00\xff\x00\xffnot HTTP at all\r\n\r\n"),
    "text": hosts.reply(b"<html></html", content_type="image/png"),
    "empty": hosts.reply(content_type="image/png"),
    "silence": hosts.raw(b""),
}
"""Answers without an image, by path."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A valid image, as a file and in memory."""

    path: Path
    data: bytes

    @property
    def inline(self) -> str:
        """The image as a data: URI."""
        return data_uri(self.data)


def draw_pictures(folder: Path, *, seed: int) -> tuple[Picture, ...]:
    """Write images of noise to a folder; the last is large."""
    rng = np.random.default_rng(seed)
    pictures = []
    for number, side in enumerate([*rng.integers(*_SIDES, _PICTURES - 1), _LARGE_SIDE]):
        noise = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
        picture = Picture(folder / f"{number}.png", save(Image.fromarray(noise), "PNG"))
        picture.path.write_bytes(picture.data)
        pictures.append(picture)
    return tuple(pictures)


@contextmanager
def bad_host(pictures: Sequence[Picture]) -> Iterator[str]:
    """Context manager for a host with bad answers, and slow answers below /slow; returns its URL."""
    with hosts.host(address=_ADDRESS) as host:
        host.answers |= {f"/{name}": answer for name, answer in BAD_ANSWERS.items()}
        host.serve("/hanging", hosts.silence())
        for picture in pictures:
            host.serve(f"/slow/{picture.path.name}", _slow_answer(picture.data))
        yield host.url


def _slow_answer(data: bytes) -> hosts.Answer:
    def answer(handler: hosts.Handler, _: hosts.Request) -> None:
        handler.close_connection = True
        handler.wfile.write(_OK + b"Content-Length: %d\r\n\r\n" % len(data))
        for piece in _in_pieces(data, count=10, pause_s=0.1):
            handler.wfile.write(piece)

    return answer


def _in_pieces(data: bytes, *, count: int, pause_s: float) -> Iterator[bytes]:
    size = len(data) // count + 1
    for start in range(0, len(data), size):
        time.sleep(pause_s)
        yield data[start : start + size]


class Behaviour(StrEnum):
    """How a client sends a request, and whether it waits for the answer."""

    NORMAL = "normal"
    SLOW = "slow"
    """Sends the body in pieces within two seconds."""
    LEAVES = "leaves"
    """Sends the whole body, then disconnects."""
    ABORTS = "aborts"
    """Sends half of the body, then disconnects."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request and its expected answer."""

    kind: str
    body: bytes
    images: tuple[int | None, ...] = ()
    """The index of each task's picture; None for images that are not available."""
    client: Behaviour = Behaviour.NORMAL
    valid: bool = True
    """Whether the expected answer is predictions rather than a 4xx."""
    direct: bool = False
    """Whether it bypasses the proxy."""
    method: str = "POST"
    path: str = "/predict"

    def __str__(self) -> str:
        target = "server" if self.direct else "proxy"
        return f"{self.kind}, {self.method} {self.path} to the {target}, {self.body[:60]!r}"

    @property
    def waits(self) -> bool:
        """Whether the client waits for the answer."""
        return self.client in (Behaviour.NORMAL, Behaviour.SLOW)

    def send(self, url: str) -> Reply:
        """Send the request to a proxy or server, according to the client's behaviour."""
        body = self.body if self.client is Behaviour.NORMAL else self._body()
        return exchange(url + self.path, body, size=len(self.body), method=self.method, timeout_s=_TIMEOUT_S)

    def _body(self) -> Iterator[bytes]:
        if self.client is Behaviour.SLOW:
            yield from _in_pieces(self.body, count=8, pause_s=0.2)
        else:
            yield self.body[: len(self.body) // 2] if self.client is Behaviour.ABORTS else self.body
            raise ConnectionAbortedError("the client disconnects")


_UNAVAILABLE = (
    *BAD_ANSWERS,
    "http://127.0.0.3:1/refused.png",  # not an allowed origin
    *("data:image/png;base64,bm8gaW1hZ2U=", "data:image/png;base64,???", "file:///etc/passwd", "nonsense"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request."""

    share: float
    """Percentage of all requests."""
    sources: tuple[str, ...] = ()
    """The sources of its images, see `Sampler.reference`; none for malformed requests."""
    repeated: bool = False
    """Whether the sources are repeated, at most four times in seven of eight requests, like Label Studio's."""
    unavailable: bool = False
    """Whether some images are not available."""
    client: Behaviour = Behaviour.NORMAL


KINDS: Mapping[str, Kind] = {
    "by URL": Kind(45, ("good",), repeated=True),
    "inline": Kind(20, ("inline",), repeated=True),
    "1 MB": Kind(1, ("large", "good")),
    "some unavailable": Kind(10, ("good",), repeated=True, unavailable=True),
    "slow host": Kind(2, ("slow",)),
    "hanging host": Kind(1, ("hanging", "good")),
    "slow client": Kind(2, ("inline",), client=Behaviour.SLOW),
    "client leaves": Kind(5, ("good",), repeated=True, client=Behaviour.LEAVES),
    "client aborts": Kind(4, ("inline",), client=Behaviour.ABORTS),
    "malformed": Kind(10),
}


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws requests. A seed and a number determine a request."""

    pictures: Sequence[Picture]
    good: str
    """The URL of the host that serves the pictures."""
    bad: str
    """The URL of the bad host."""
    seed: int

    def draw(self, number: int) -> Request:
        """Return request `number`."""
        rng = random.Random(f"{self.seed}/{number}")  # noqa: S311  # no secret
        (name,) = rng.choices(list(KINDS), [kind.share for kind in KINDS.values()])
        kind = KINDS[name]
        if not kind.sources:
            method, path, body = rng.choice(_MALFORMED)
            direct = rng.random() < 0.3 and len(body) < 10**6
            return Request(name, body, valid=False, method=method, path=path, direct=direct)
        max_repeats = (_MAX_REPEATS if rng.random() < 0.125 else _MAX_REPEATS_SMALL) if kind.repeated else 1
        sources = [*kind.sources] * rng.randint(1, max_repeats)
        for _ in range(rng.randint(1, 3) if kind.unavailable else 0):
            sources.insert(rng.randint(0, len(sources)), "unavailable")
        images = [self.reference(source, rng) for source in sources]
        tasks = [{"id": number, "data": {"image": reference}} for number, (reference, _) in enumerate(images)]
        body = json.dumps({"tasks": tasks, "project": "1.1791188130", "label_config": _CONFIG}).encode()
        direct = kind.client is not Behaviour.NORMAL and rng.random() < 0.5
        return Request(name, body, tuple(index for _, index in images), kind.client, direct=direct)

    def reference(self, source: str, rng: random.Random) -> tuple[str, int | None]:
        """Draw an image from a source; return its reference, and its picture's index or None if it is not available.

        Sources are "good" (a host that sends images at once), "slow" (in pieces), "hanging" (never), "inline" (a data:
        URI in the request), "large" (a data: URI of a megabyte) and "unavailable" (for another reason).
        """
        index = len(self.pictures) - 1 if source == "large" else rng.randrange(len(self.pictures) - 1)
        file = self.pictures[index].path.name
        unavailable = rng.choice(_UNAVAILABLE)
        references: dict[str, tuple[str, int | None]] = {
            "good": (f"{self.good}/{file}", index),
            "slow": (f"{self.bad}/slow/{file}", index),
            "hanging": (f"{self.bad}/hanging?{rng.random()}", None),
            "unavailable": (f"{self.bad}/{unavailable}" if unavailable in BAD_ANSWERS else unavailable, None),
        }
        return references.get(source) or (self.pictures[index].inline, index)


_MALFORMED: Sequence[tuple[str, str, bytes]] = (
    *(("POST", "/predict", body) for body in BODIES.values()),
    ("POST", "/predict", b'{"tasks": [{"id": 1, "data": {"image": "x"}}], "label_config": "<View/>"}'),
    ("POST", "/predict", b" " * (3 * 2**20)),
    ("POST", "/score", json.dumps({"version": "none", "tasks": [], "label_config": _CONFIG}).encode()),
    ("POST", "/webhook", b"[]"),
    ("POST", "/nowhere", b"{}"),
    ("GET", "/predict", b""),
    ("GET", "/report/%2e%2e/%2e%2e/etc/passwd", b""),
)
"""Method, path and body of malformed requests, which must be answered with a 4xx."""
