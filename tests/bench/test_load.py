import json
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.hosts import Host, host, reply
from bench.load import (
    Client,
    Reply,
    images_per_s,
    label_config,
    latencies,
    overlapping,
    percentile,
    send,
    sending,
    split,
)
from contract.labelconfig import parse_label_config
from contract.matching import choose_control
from server.http.labelstudio import parse_predict

seconds = st.floats(0, 1e6)


def make_reply(started, ended, scores=(0.5,), versions=("v",)):
    return Reply(started, ended, tuple(scores), frozenset(versions))


def answer_all(loopback: Host, *, statuses=(), result=None):
    """Answer /predict with one result per task; the first requests get `statuses` instead of 200."""
    numbers = count()
    result = {"score": 0.25, "model_version": "v"} if result is None else result

    def answer(handler, request):
        number = next(numbers)
        status = statuses[number] if number < len(statuses) else 200
        results = [result for _ in json.loads(request.body)["tasks"]]
        reply(json.dumps({"results": results}).encode(), status=status)(handler, request)

    loopback.answers["/predict"] = answer


@pytest.fixture
def loopback():
    with host() as running:
        yield running


@pytest.fixture
def client(loopback):
    return Client(loopback.url, ("ant", "bee"))


@given(st.lists(seconds, min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_least_value_that_covers_its_share(values, share):
    """At least the share lies at or below it, and at no smaller value."""
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9
    assert found in values


def test_percentiles_of_a_hundred_values():
    """p50 and p99 of 1 to 100 are 50 and 99."""
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1)) == (50, 99, 100)


@given(st.lists(st.integers()), st.integers(1, 20))
def test_splitting_loses_nothing(references, size):
    """The requests joined are the references, and only the last is smaller than asked."""
    requests = split(references, size)
    assert [reference for request in requests for reference in request] == references
    assert all(len(request) == size for request in requests[:-1])


def test_the_rate_counts_scored_images_from_the_first_start_to_the_last_end():
    """Requests at the same time do not add their seconds, and an image without a score does not count."""
    replies = [make_reply(10, 12, (0.1, 0.2)), make_reply(11, 14, (0.3, None))]
    assert images_per_s(replies) == pytest.approx(3 / 4)


def test_latencies_say_of_how_many_requests_they_are():
    """A p99 is worth little without its number of requests."""
    assert latencies([make_reply(0, n) for n in range(1, 101)]) == {"requests": 100, "p50_s": 50, "p99_s": 99}


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
    """The body is what the server reads of Label Studio, task by task."""
    answer_all(loopback)
    client.ask(["http://host/a.jpg", "http://host/b.jpg"])
    request = parse_predict(json.loads(loopback.requests[0].body))
    assert [task.data["image"] for task in request.tasks] == ["http://host/a.jpg", "http://host/b.jpg"]
    control = choose_control(parse_label_config(request.label_config), name=None, labels=("ant", "bee"))
    assert control.labels == ("ant", "bee")


def test_labels_are_quoted():
    """A class may be called what it likes."""
    control = choose_control(parse_label_config(label_config(['a"<b>&c'])), name=None, labels=())
    assert control.labels == ('a"<b>&c',)


def test_replies_come_in_the_order_of_the_requests(client, loopback):
    """However many clients there are, a reply stands where its request stood."""
    answer_all(loopback)
    replies = send(client, [["a"] * size for size in (3, 1, 2)], clients=3)
    assert [len(reply.scores) for reply in replies] == [3, 1, 2]
    assert [reply.failed for reply in replies] == [0, 0, 0]
    assert {score for reply in replies for score in reply.scores} == {0.25}


def test_what_fails_is_counted_and_told(client, loopback, capsys):
    """A request that is refused has failed with all its tasks."""
    answer_all(loopback, statuses=(503,))
    replies = send(client, [["a", "b"], ["c"]], clients=1)
    assert [reply.failed for reply in replies] == [2, 0]
    assert "answered 503" in capsys.readouterr().err


def test_an_image_without_a_prediction_has_failed(client, loopback):
    """An empty result is Labelnext's way to say that an image has no score."""
    answer_all(loopback, result={})
    assert client.ask(["a"]).failed == 1


def test_a_server_that_is_gone_is_a_failure_and_no_error():
    """The load goes on, so that all failures are counted."""
    with host() as gone:
        client = Client(gone.url, ("ant", "bee"))
    assert client.ask(["a"]).failed == 1


def test_sending_goes_on_until_the_block_ends(client, loopback):
    """Requests are sent again and again, by several clients, and each is answered."""
    answer_all(loopback)
    with sending(client, [["a"], ["b", "c"]], clients=2) as replies:
        while len(replies) < 10:
            pass
    assert len(replies) == len(loopback.requests)
    assert all(reply.failed == 0 for reply in replies)
