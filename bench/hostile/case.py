"""What a case is: something hostile, and what must come of it; and how cases are run against one server."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

from urllib3.exceptions import HTTPError

from bench.hostile import pictures
from bench.hostile.site import SAME, Escaped, Site

MEBIBYTE = 1 << 20

_AT_ONCE = 16

Result = Mapping[str, Any]
"""What /score says of one image."""


class Kind(StrEnum):
    """What is hostile."""

    IMAGE = "image"
    ADDRESS = "address"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that an attacker sends."""

    name: str
    kind: Kind
    attack: Callable[[Site, Any], None]
    """Sends what was made; raises Escaped if anything else comes than must."""
    make: Callable[[Site], Any] = lambda _: None
    """Sets up what is sent, which counts for nothing."""
    seconds: float = 10.0
    """The longest that the attack may take."""
    patient: bool = False
    """Whether it mostly waits, so that it may be run beside others that do."""
    outcome: "Outcome | None" = None
    """Of a file, what must come of it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The image gets no prediction, for this reason."""

    code: str
    reason: str
    """A regular expression that is found in the error's text."""

    def check(self, _: Site, result: Result) -> None:
        """Raise Escaped if the result is another."""
        error = result.get("error")
        if error is None:
            raise Escaped("the image was scored")
        if not re.fullmatch(self.code, error["code"]) or not re.search(self.reason, error["detail"]):
            raise Escaped(f"expected a {self.code} error with {self.reason!r}, got {error}")


@dataclass(frozen=True, slots=True)
class Scored:
    """The image is scored, by the pixels of another one."""

    like: Callable[[], bytes]
    """Makes a harmless file of the same picture."""
    within: float = SAME
    """How far probabilities may lie apart; more than this only where a codec loses something."""

    def check(self, site: Site, result: Result) -> None:
        """Raise Escaped if the result is another."""
        if "error" in result:
            raise Escaped(f"expected a score, got {result['error']}")
        expected = site.probabilities(self.like())
        apart = max(abs(one - other) for one, other in zip(result["probabilities"], expected, strict=True))
        if apart > self.within:
            raise Escaped(f"probabilities are {apart:.2g} from those of its pixels, at most {self.within:.2g} may be")


Outcome = Refused | Scored

PLAIN = Scored(pictures.plain)
LOSSY = 0.05
"""Of a probability, which a mirror image moves by more."""
ALIKE = Scored(pictures.plain, within=LOSSY)

refused_fetch = partial(Refused, "fetch")
"""The outcome of a reference that must not or cannot be fetched, with the reason."""
refused_decode = partial(Refused, "decode")
"""The outcome of bytes that must not or cannot be decoded."""


def of(colour: str) -> Scored:
    """The outcome of an image of one colour."""
    return Scored(partial(pictures.flat, colour))


def hosted(
    name: str, outcome: Outcome, make: Callable[[], bytes], *, content_type: str = "image/png", seconds: float = 10
) -> Case:
    """A file from a host that may be asked, and what must come of it."""

    def attack(site: Site, data: bytes) -> None:
        address = site.images.serve(f"/{name}", data, content_type=content_type, connection="close")
        outcome.check(site, site.score_among_good(address))

    return Case(name, Kind.IMAGE, attack, lambda _: make(), seconds, outcome=outcome)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a case."""

    case: Case
    seconds: float
    escape: str | None
    """What it, or one of its batch, did that it must not; None if it was contained."""


def run(site: Site, cases: Sequence[Case], *, batch: int = 20) -> Iterator[Verdict]:
    """Run cases one after the other, and after each batch see that the server is unharmed.

    Harm is held against every case of a batch: run them again in batches of 1 to learn whose it is. Those that mostly
    wait come last, beside each other.
    """
    swift, patient = ([case for case in cases if case.patient is waits] for waits in (False, True))
    for start in range(0, len(swift), batch):
        yield from _run_batch(site, swift[start : start + batch], at_once=1)
    if patient:
        yield from _run_batch(site, patient, at_once=_AT_ONCE)


def _run_batch(site: Site, cases: Sequence[Case], *, at_once: int) -> list[Verdict]:
    verdicts: list[Verdict] = []
    try:
        with site.unharmed(), ThreadPoolExecutor(at_once) as pool:
            verdicts += pool.map(lambda case: _attack(case, site), cases)
    except Escaped as err:
        harm = f"after a batch of {len(cases)}: {err}"
        return [replace(each, escape="; ".join(filter(None, (each.escape, harm)))) for each in verdicts]
    return verdicts


def _attack(case: Case, site: Site) -> Verdict:
    made = case.make(site)
    escape: str | None = None
    started = time.perf_counter()
    try:
        case.attack(site, made)
    except (Escaped, OSError, ValueError, HTTPError) as err:
        escape = f"{type(err).__name__}: {err}"
    seconds = time.perf_counter() - started
    if escape is None and seconds > case.seconds:
        escape = f"it took {seconds:.1f} s, at most {case.seconds:.0f} may be"
    return Verdict(case, seconds, escape)
