import json
import socket
import time

import numpy as np
import pytest

from bench.hostile import hosts, pictures
from bench.hostile.case import Case, Kind, Refused
from bench.hostile.requests import Answered, Reply, head
from bench.hostile.runner import run
from bench.hostile.site import Escaped, Mark, _serves_images
from bench.hostile.table import CASES
from contract.images.preprocess import decode_image
from contract.versions.manifest import InputSpec

SCORED = {"task": 1, "probabilities": [0.2, 0.3, 0.5]}
REFUSED = {"task": 1, "error": {"code": "fetch", "detail": "a.png answered 404, expected 200"}}


def test_every_case_has_a_name_of_its_own_and_says_what_it_is():
    """There are well over eighty, of each kind."""
    assert len({case.name for case in CASES}) == len(CASES) >= 80
    assert {case.kind for case in CASES} == set(Kind)
    assert all(case.sent and case.must and case.seconds > 0 for case in CASES)


def test_no_turn_of_the_picture_is_the_same():
    """Else an orientation that is left alone would not be noticed."""
    turns = [np.rot90(side, times) for side in (pictures.pixels(), pictures.pixels()[:, ::-1]) for times in range(4)]
    assert len({turn.tobytes() for turn in turns}) == 8


def test_files_made_by_hand_are_what_they_are_said_to_be():
    """A PNG and a TIFF that are written here byte by byte hold the picture."""
    data = pictures.pixels().tobytes()
    tags = {**pictures.tiff_tags(64, 64, bits=[8, 8, 8]), 279: (pictures.LONG, [len(data)])}
    for file in (pictures.plain(), pictures.tiff(tags, data)):
        np.testing.assert_array_equal(decode_image(file, InputSpec(64, 64)), pictures.pixels())


def test_an_image_that_is_scored_is_not_refused():
    """Nor is one that is refused for another reason."""
    Refused("fetch", "answered 404").check(None, REFUSED)
    with pytest.raises(Escaped, match="was scored"):
        Refused("fetch", "").check(None, SCORED)
    with pytest.raises(Escaped, match="expected a decode error"):
        Refused("decode", "").check(None, REFUSED)
    with pytest.raises(Escaped, match="'public internet'"):
        Refused("fetch", "public internet").check(None, REFUSED)


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (500, {"error": "internal", "detail": "", "request_id": ""}),
        (400, {"error": "internal", "detail": "", "request_id": ""}),
        (400, {"error": "bad_request"}),
        (400, "no JSON of ours"),
    ],
)
def test_another_answer_than_expected_is_an_escape(status, content):
    """The status counts, and that the body is the application's."""
    outcome = Answered({400}, "bad_request")
    outcome.check(Reply(400, {}, json.dumps({"error": "bad_request", "detail": "", "request_id": ""}).encode()))
    with pytest.raises(Escaped):
        outcome.check(Reply(status, {}, json.dumps(content).encode()))


@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("/data/upload/1/a.png", True),
        ("/tasks/2/resolve/?fileuri=Li4v", True),
        ("/api/projects/", False),
        ("/data/upload/../../api/projects/", False),
        ("/data/upload/%2e%2e/api", False),
        ("/data/upload/%252e%252e/api", False),
    ],
)
def test_the_token_is_expected_where_images_are_served(path, may):
    """Anywhere else it is a leak."""
    assert _serves_images(path) is may


class Unharmed:
    """A site at which nothing happens."""

    def mark(self):
        return Mark(0, 0, 0, ())

    def check_unharmed(self, before):
        pass


def test_verdicts_name_what_escaped_and_what_was_late():
    """A case that raises, and one that takes too long, are not contained."""

    def escape():
        raise Escaped("the image was scored")

    made = [
        Case(name, Kind.IMAGE, "", "", lambda _, attack=attack: attack, seconds)
        for name, attack, seconds in (
            ("good", lambda: None, 5),
            ("bad", escape, 5),
            ("late", lambda: time.sleep(0.01), 0),
        )
    ]
    verdicts = {verdict.case.name: verdict.escape for verdict in run(Unharmed(), made)}
    assert verdicts["good"] is None
    assert verdicts["bad"] == "Escaped: the image was scored"
    assert "at most 0" in verdicts["late"]


def ask(host, path="/"):
    with socket.create_connection(("127.0.0.1", host.port), timeout=10) as connection:
        connection.sendall(head(f"GET {path} HTTP/1.1", {"X-Secret": "1"}))
        return connection.makefile("rb").read()


@pytest.mark.parametrize("everywhere", [False, True])
def test_hosts_answer_as_told_and_remember_who_asked(everywhere):
    """By path without its query; a contact is counted even if nothing is asked."""
    with hosts.host(everywhere=everywhere) as host:
        host.serve("/a.png", hosts.body(b"picture", etag='"1"'))
        assert ask(host, "/a.png?x=1").endswith(b'Etag: "1"\r\n\r\npicture')
        assert ask(host).startswith(b"HTTP/1.1 404")
        assert [asked.path for asked in host.asked] == ["/a.png?x=1", "/"]
        assert "X-Secret: 1" in host.asked[0].head
        assert host.contacts == 2


def test_a_host_that_trickles_does_so_until_it_closes():
    """A byte now and then comes, and the end of the block ends it."""
    with hosts.host() as host:
        host.serve("/slow", hosts.trickle(b"HTTP/1.1 200 OK\r\n\r\n", every_s=0.01))
        with socket.create_connection(("127.0.0.1", host.port), timeout=10) as connection:
            connection.sendall(head("GET /slow HTTP/1.1", {}))
            received = b""
            while len(received) < 25:
                received += connection.recv(100)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n\r\naaa")
