import json
import re
import time
from contextlib import contextmanager

import pytest

from bench.hostile import pictures
from bench.hostile.__main__ import CASES
from bench.hostile.case import Case, Kind, Refused, Scored, run
from bench.hostile.exchange import ExpectedReply, Reply
from bench.hostile.site import Escaped

SCORED = {"task": 1, "probabilities": [0.2, 0.3, 0.5]}
REFUSED = {"task": 1, "error": {"code": "fetch", "detail": "a.png answered 404, expected 200"}}


def test_every_case_has_a_unique_printable_name():
    assert len({case.name for case in CASES}) == len(CASES) >= 640
    assert all(re.fullmatch("[ -~]+", case.name) for case in CASES)
    assert {case.kind for case in CASES} == set(Kind)


def test_unexpected_result_is_an_escape():
    Refused("fetch", "answered 404").check(None, REFUSED)
    for expected, found in (
        (Refused("fetch", ""), SCORED),
        (Refused("decode", ""), REFUSED),
        (Refused("fetch", "public internet"), REFUSED),
        (Scored(pictures.plain), REFUSED),
    ):
        with pytest.raises(Escaped):
            expected.check(None, found)


def test_unexpected_reply_is_an_escape():
    bad_request, details = ExpectedReply({400}, "bad_request"), {"detail": "", "request_id": ""}
    ExpectedReply({200}, scored=[True, False]).check(Reply(200, {}, b'{"results": [{"score": 0.5}, {}]}'))
    with pytest.raises(Escaped):
        ExpectedReply({200}, scored=[True, True]).check(Reply(200, {}, b'{"results": [{"score": 0.5}, {}]}'))
    bad_request.check(Reply(400, {}, json.dumps({"error": "bad_request", **details}).encode()))
    for status, content in (
        (500, {"error": "internal", **details}),
        (400, {"error": "internal", **details}),
        (400, {"error": "bad_request"}),
        (400, "not an object"),
    ):
        with pytest.raises(Escaped):
            bad_request.check(Reply(status, {}, json.dumps(content).encode()))


class Site:
    """A site that is harmed by the case named `harmful`."""

    def __init__(self, harmful=None):
        self.harmful, self.harmed = harmful, False

    def attack(self, name):
        self.harmed |= name == self.harmful
        if name == "bad":
            raise Escaped("the image was scored")
        time.sleep(0.01)

    @contextmanager
    def unharmed(self):
        yield
        if self.harmed:
            self.harmed = False
            raise Escaped("the worker ended")


def escapes(site, names, **options):
    cases = [
        Case(name, Kind.IMAGE, Site.attack, lambda _, name=name: name, 0 if name == "late" else 5) for name in names
    ]
    return {verdict.case.name: verdict.escape for verdict in run(site, cases, **options)}


def test_verdict_explains_an_escape_or_a_timeout():
    result = escapes(Site(), ["good", "bad", "late"])
    assert (result["good"], result["bad"]) == (None, "Escaped: the image was scored")
    assert "at most 0" in result["late"]


def test_harm_is_attributed_to_the_whole_batch():
    names = ["a", "b", "c", "d", "e"]
    assert [name for name, escape in escapes(Site("c"), names, batch=2).items() if escape] == ["c", "d"]
    result = escapes(Site("c"), names, batch=1)
    assert [name for name, escape in result.items() if escape] == ["c"]
    assert "the worker ended" in result["c"]
