"""What is asked, by kind, drawn by chance that is the same for the same seed; of which images; and how it is sent."""

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
"""The large one is a PNG of three quarters of a megabyte."""
_MOST_TASKS, _MOST_SMALL = 20, 4
_CONFIG = label_config(LABELS)
_PATIENCE_S = 120.0
"""Label Studio's is 100."""

_ADDRESS = "127.0.0.2"
"""Another host than that of the good images, lest its connections be counted as theirs."""
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
"""What comes under each path that never gives an image, before the connection ends."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that every server can score, in a file."""

    path: Path
    data: bytes

    @property
    def inline(self) -> str:
        """Its data: URI."""
        return data_uri(self.data)


def draw_pictures(folder: Path, *, seed: int) -> tuple[Picture, ...]:
    """Write images of noise into a folder; the last is large."""
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
    """Run a host that breaks in every way, and has the pictures below /slow, in small pieces; give its address."""
    with hosts.host(address=_ADDRESS) as host:
        host.answers |= {f"/{name}": answer for name, answer in BAD_ANSWERS.items()}
        host.serve("/hanging", hosts.silence())
        for picture in pictures:
            host.serve(f"/slow/{picture.path.name}", _answer_slowly(picture.data))
        yield host.url


def _answer_slowly(data: bytes) -> hosts.Answer:
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


class Manner(StrEnum):
    """How a request is sent, and whether the client waits for its answer."""

    PLAIN = "plain"
    SLOWLY = "slowly"
    """The body comes in pieces, over a second or two."""
    LEFT = "left"
    """Whole, and then the client is gone."""
    BROKEN = "broken"
    """Half a body, and then the client is gone."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, and what it must come to."""

    kind: str
    body: bytes
    images: tuple[int | None, ...] = ()
    """Of each task the index of its picture; None where there is no image to be had."""
    manner: Manner = Manner.PLAIN
    valid: bool = True
    """Whether it is to be answered with predictions, else with a 4xx; if the client waits."""
    direct: bool = False
    """Whether it goes to a server itself, past the proxy."""
    method: str = "POST"
    path: str = "/predict"

    def __str__(self) -> str:
        target = "server" if self.direct else "proxy"
        return f"{self.kind}, {self.method} {self.path} to the {target}, {self.body[:60]!r}"

    @property
    def waits(self) -> bool:
        """Whether the client is there when the answer comes."""
        return self.manner in (Manner.PLAIN, Manner.SLOWLY)

    def send(self, url: str) -> Reply:
        """Send it to a proxy or server, as far as its manner has it."""
        plain = self.manner is Manner.PLAIN
        body = self.body if plain else self._body()
        return exchange(url + self.path, body, size=len(self.body), method=self.method, timeout_s=_PATIENCE_S)

    def _body(self) -> Iterator[bytes]:
        if self.manner is Manner.SLOWLY:
            yield from _in_pieces(self.body, count=8, pause_s=0.2)
        else:
            yield self.body[: len(self.body) // 2] if self.manner is Manner.BROKEN else self.body
            raise ConnectionAbortedError("the client leaves")


_LOST = (
    *BAD_ANSWERS,
    "http://127.0.0.3:1/refused.png",  # also not among the allowed origins
    *("data:image/png;base64,bm8gaW1hZ2U=", "data:image/png;base64,???", "file:///etc/passwd", "nonsense"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request, by where its images are."""

    share: float
    """Of all requests, in per cent."""
    places: tuple[str, ...] = ()
    """As of `Sampler.place`; none sends what no Label Studio does."""
    several: bool = False
    """Whether they are repeated: most requests are small, as Label Studio's are; one in eight is not."""
    lost: bool = False
    """Whether there are images among them that cannot be had."""
    manner: Manner = Manner.PLAIN


KINDS: Mapping[str, Kind] = {
    "by URL": Kind(45, ("good",), several=True),
    "inline": Kind(20, ("inline",), several=True),
    "1 MB": Kind(1, ("large", "good")),
    "some images lost": Kind(10, ("good",), several=True, lost=True),
    "slow host": Kind(2, ("slow",)),
    "hanging host": Kind(1, ("hanging", "good")),
    "slow client": Kind(2, ("inline",), manner=Manner.SLOWLY),
    "client gone after asking": Kind(5, ("good",), several=True, manner=Manner.LEFT),
    "client gone while asking": Kind(4, ("inline",), manner=Manner.BROKEN),
    "bad body": Kind(10),
}


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws requests: number n of a seed is always the same one."""

    pictures: Sequence[Picture]
    good: str
    """The address of the host that has the pictures."""
    bad: str
    """That of the host that breaks."""
    seed: int

    def draw(self, number: int) -> Request:
        """Return request `number`."""
        rng = random.Random(f"{self.seed}/{number}")  # noqa: S311  # no secret
        (name,) = rng.choices(list(KINDS), [kind.share for kind in KINDS.values()])
        kind = KINDS[name]
        if not kind.places:
            method, path, body = rng.choice(_BAD)
            direct = rng.random() < 0.3 and len(body) < 10**6
            return Request(name, body, valid=False, method=method, path=path, direct=direct)
        most = (_MOST_TASKS if rng.random() < 0.125 else _MOST_SMALL) if kind.several else 1
        places = [*kind.places] * rng.randint(1, most)
        for _ in range(rng.randint(1, 3) if kind.lost else 0):
            places.insert(rng.randint(0, len(places)), "lost")
        tasks = [self.place(each, rng) for each in places]
        listed = [{"id": number, "data": {"image": reference}} for number, (reference, _) in enumerate(tasks)]
        body = json.dumps({"tasks": listed, "project": "1.1791188130", "label_config": _CONFIG}).encode()
        direct = kind.manner is not Manner.PLAIN and rng.random() < 0.5
        return Request(name, body, tuple(index for _, index in tasks), kind.manner, direct=direct)

    def place(self, name: str, rng: random.Random) -> tuple[str, int | None]:
        """Return a reference, and the index of its picture; None where there is no image to be had.

        Of one that a host sends at once (good) or in small pieces (slow), that is in the request itself (inline) or
        makes a megabyte of it (large), that never comes (hanging), or cannot be had for another reason (lost).
        """
        index = len(self.pictures) - 1 if name == "large" else rng.randrange(len(self.pictures) - 1)
        file = self.pictures[index].path.name
        lost = rng.choice(_LOST)
        places: dict[str, tuple[str, int | None]] = {
            "good": (f"{self.good}/{file}", index),
            "slow": (f"{self.bad}/slow/{file}", index),
            "hanging": (f"{self.bad}/hanging?{rng.random()}", None),
            "lost": (f"{self.bad}/{lost}" if lost in BAD_ANSWERS else lost, None),
        }
        return places.get(name) or (self.pictures[index].inline, index)


_BAD: Sequence[tuple[str, str, bytes]] = (
    *(("POST", "/predict", body) for body in BODIES.values()),
    ("POST", "/predict", b'{"tasks": [{"id": 1, "data": {"image": "x"}}], "label_config": "<View/>"}'),
    ("POST", "/predict", b" " * (3 * 2**20)),
    ("POST", "/score", json.dumps({"version": "none", "tasks": [], "label_config": _CONFIG}).encode()),
    ("POST", "/webhook", b"[]"),
    ("POST", "/nowhere", b"{}"),
    ("GET", "/predict", b""),
    ("GET", "/report/%2e%2e/%2e%2e/etc/passwd", b""),
)
"""Method, path, body: each is to be answered with a 4xx."""
