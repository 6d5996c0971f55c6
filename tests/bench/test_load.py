import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.hosts import host, reply
from bench.harness.load import (
    Client,
    Reply,
    images_per_s,
    overlapping,
    percentile,
    send,
    sending,
)
from contract.labelconfig import parse_label_config
from contract.matching import choose_control
from server.http.labelstudio import parse_predict

LABELS = ('a"<b>&c', "bee")


def make_reply(started, ended, scores=(0.5,), versions=("v",)):
    return Reply(started, ended, tuple(scores), frozenset(versions))


@pytest.fixture
def loopback():
    """Answers /predict with one result per task, but for one task with 503."""

    def answer(handler, request):
        results = [{"score": 0.25, "model_version": "v"} for _ in json.loads(request.body)["tasks"]]
        status = 503 if len(results) == 1 else 200
        reply(json.dumps({"results": results}).encode(), status=status)(handler, request)

    with host() as running:
        running.serve("/predict", answer)
        yield running


@pytest.fixture
def client(loopback):
    return Client(loopback.url, LABELS)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_least_value_that_covers_its_share(values, share):
    """At least the share lies at or below it, and at no smaller value."""
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9
    assert found in values


def test_the_rate_counts_scored_images_from_the_first_start_to_the_last_end():
    """Requests at the same time do not add their seconds, and an image without a score does not count."""
    replies = [make_reply(10, 12, (0.1, 0.2)), make_reply(11, 14, (0.3, None))]
    assert images_per_s(replies) == pytest.approx(3 / 4)


@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9), st.integers(1, 9))
def test_a_request_overlaps_a_window_that_shares_a_moment_with_it(started, length, opened, width):
    """Whole seconds tell: it does if one of its seconds is one of the window's."""
    found = overlapping([make_reply(started, started + length)], [(opened, opened + width)])
    shared = set(range(started, started + length)) & set(range(opened, opened + width))
    assert bool(found) == bool(shared)


def test_a_reply_of_two_versions_has_failed():
    """No request may mix versions."""
    assert make_reply(0, 1, (0.1, 0.2), ("v", "w")).failed == 2
    assert make_reply(0, 1, (0.1, None)).failed == 1


def test_the_server_understands_a_request(client, loopback):
    """The body is what the server reads of Label Studio, task by task; a class may be called what it likes."""
    client.ask(["http://host/a.jpg", "http://host/b.jpg"])
    request = parse_predict(json.loads(loopback.requests[0].body))
    assert [task.data["image"] for task in request.tasks] == ["http://host/a.jpg", "http://host/b.jpg"]
    control = choose_control(parse_label_config(request.label_config), name=None, labels=())
    assert control.labels == LABELS


def test_what_fails_is_counted_and_told(client, capsys):
    """A request that is refused has failed with all its tasks; replies stand where their requests stood."""
    replies = send(client, [["a"] * size for size in (3, 1, 2)], clients=3)
    assert [len(reply.scores) for reply in replies] == [3, 1, 2]
    assert [reply.failed for reply in replies] == [0, 1, 0]
    assert "answered 503" in capsys.readouterr().err


def test_a_server_that_is_gone_is_a_failure_and_no_error():
    """The load goes on, so that all failures are counted."""
    with host() as gone:
        client = Client(gone.url, LABELS)
    assert client.ask(["a"]).failed == 1


def test_sending_goes_on_until_the_block_ends(client, loopback):
    """Requests are sent again and again, by several clients, and each is answered."""
    with sending(client, [["a", "b"], ["b", "c"]], clients=2) as replies:
        while len(replies) < 10:
            pass
    assert len(replies) == len(loopback.requests)
    assert all(reply.failed == 0 for reply in replies)
