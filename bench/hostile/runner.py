"""Runs cases against one server, and says which of them had an effect."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.hostile.case import Attack, Case
from bench.hostile.site import Escaped, Mark, Site

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a case."""

    case: Case
    seconds: float
    escape: str | None
    """What it did that it must not; None if it was contained."""


def run(site: Site, cases: Sequence[Case]) -> Iterator[Verdict]:
    """Run cases one after the other, and after each see that the server is unharmed; the patient ones come last."""
    for case in cases:
        if not case.patient:
            attack, before = case.prepare(site), site.mark()
            verdict = _attack(case, attack)
            yield _with_harm(verdict, _harm(site, before))
    patient = [case for case in cases if case.patient]
    attacks = [case.prepare(site) for case in patient]
    before = site.mark()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        verdicts = list(pool.map(_attack, patient, attacks))
    harm = _harm(site, before) if patient else None
    yield from (_with_harm(verdict, harm) for verdict in verdicts)


def _attack(case: Case, attack: Attack) -> Verdict:
    started = time.perf_counter()
    try:
        attack()
    except (Escaped, OSError, ValueError) as err:
        return Verdict(case, time.perf_counter() - started, f"{type(err).__name__}: {err}")
    seconds = time.perf_counter() - started
    late = f"it took {seconds:.1f} s, at most {case.seconds:.0f} may be" if seconds > case.seconds else None
    return Verdict(case, seconds, late)


def _harm(site: Site, before: Mark) -> str | None:
    try:
        site.check_unharmed(before)
    except Escaped as err:
        return f"afterwards: {err}"
    return None


def _with_harm(verdict: Verdict, harm: str | None) -> Verdict:
    found = "; ".join(part for part in (verdict.escape, harm) if part)
    return Verdict(verdict.case, verdict.seconds, found or None)
