import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.hosts import host
from bench.harness.load import (
    Client,
    Reply,
    images_per_s,
    make_task,
    overlapping,
    percentile,
    predict_body,
    send,
)
from contract.labelconfig import parse_label_config
from contract.matching import choose_control
from demo.project import label_config
from server.http.labelstudio import parse_predict

LABELS = ('a"<b>&c', "bee")


def make_reply(started, ended, scores=(0.5,), versions=("v",)):
    return Reply(started, ended, tuple(scores), frozenset(versions))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_percentile_is_the_smallest_value_covering_its_share(values, share):
    quantile = percentile(values, share)
    assert sum(value <= quantile for value in values) >= share * len(values) - 1e-9
    assert sum(value < quantile for value in values) < share * len(values) + 1e-9
    assert quantile in values


def test_rate_counts_scored_images_per_elapsed_second():
    """From the first start to the last end, since requests are concurrent."""
    replies = [make_reply(10, 12, (0.1, 0.2)), make_reply(11, 14, (0.3, None))]
    assert images_per_s(replies) == pytest.approx(3 / 4)


def test_overlapping_returns_requests_in_flight():
    replies = {started: make_reply(started, started + 2) for started in range(8)}
    assert overlapping(replies.values(), [(3, 5)]) == [replies[2], replies[3], replies[4]]


def test_counts_tasks_without_score_or_with_mixed_versions_as_failed(capsys):
    """The load continues after failed requests, so that all failures are counted."""
    assert make_reply(0, 1, (0.1, 0.2), ("v", "w")).failed == 2
    assert make_reply(0, 1, (0.1, None)).failed == 1
    with host() as server:
        server.serve("/predict", b'{"results": []}')
        replies = send(Client(server.url, LABELS), [["a"] * size for size in (3, 1)], clients=2)
        client = Client(server.url, LABELS)
        server.serve("/predict", b'{"results": [{"score": 0.5, "model_version": "v"}]}', status=500)
        assert client.predict(["a"]).failed == 1
    assert [reply.failed for reply in (*replies, client.predict(["a", "b"]))] == [3, 1, 2]
    assert "answered 0 results to 3 tasks" in capsys.readouterr().err


def test_server_parses_generated_requests():
    """Labels may contain characters that XML escapes."""
    urls = ["http://host/a.jpg", "http://host/b.jpg"]
    request = parse_predict(predict_body([make_task(i, url) for i, url in enumerate(urls)], label_config(LABELS)))
    assert [task.data["image"] for task in request.tasks] == urls
    control = choose_control(parse_label_config(request.label_config), name=None, labels=())
    assert control.labels == LABELS
