"""Runs cases against one server, and says which of them had an effect."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from urllib3.exceptions import HTTPError

from bench.hostile import answers, bodies, bombs, clients, heads, images, references
from bench.hostile.case import Case
from bench.hostile.site import Escaped, Site

CASES = tuple(case for each in (bombs, images, references, answers, bodies, heads, clients) for case in each.cases())

_AT_ONCE = 16


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
    before = site.baseline()
    with ThreadPoolExecutor(at_once) as pool:
        verdicts = list(pool.map(lambda case: _attack(case, site), cases))
    try:
        site.check_unharmed(before)
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
