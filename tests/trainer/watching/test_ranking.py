"""When a watch ranks without training."""

from functools import partial

import pytest

from tests.trainer.watching.watched import run_watch, stop
from tests.versions import publish
from trainer.watching.backoff import Backoff


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_counts", "reason"),
    [({4: 107, 5: 114, 6: 121}, "21 new tasks: ranked 121 tasks"), ({4: 40, 8: 60}, "20 new tasks: ranked 60 tasks")],
    ids=["upload in parts", "upload after a deletion"],
)
def test_new_tasks_are_ranked_after_the_upload(studio, caplog, task_counts, reason):
    studio.label(30)
    studio.events |= {poll: partial(studio.resize, count) for poll, count in task_counts.items()} | {20: stop}
    _, commands, log = run_watch(studio, caplog)
    assert commands == ["run", "rank", "rank"]
    assert log[-2].startswith(reason)


def test_an_empty_project_is_polled_with_two_small_requests(studio, caplog):
    studio.resize(0)
    studio.events = {20: stop}
    assert run_watch(studio, caplog)[1] == []
    assert 40 <= len(studio.requests) <= 45


@pytest.mark.slow
def test_unscored_images_are_retried_without_new_labels(studio, caplog, monkeypatch):
    monkeypatch.setattr("trainer.watching.watcher._RESCORE_S", 0.001)
    delays = []
    fail = Backoff.fail
    monkeypatch.setattr("trainer.watching.backoff.Backoff.fail", lambda self: delays.append(fail(self)) or delays[-1])
    studio.outcomes = {"rank": [{"failed": failed} for failed in (7, 7, 7, 3, 3)]}
    _, commands, log = run_watch(studio, caplog, labels=1000)
    assert commands == ["rank"] * 6
    assert delays == [0.001, 0.002, 0.004, 0.001, 0.002]
    assert log[2].startswith("7 images that could not be scored: ranked 100 tasks by margin; 7 images could not be")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["labels", "config"])
def test_a_version_with_other_labels_ranks_once(studio, caplog, change):
    """The project is ranked again after a training on its own labels, or a change of its labelling config."""
    publish(studio.repository, b"of another project")
    studio.outcomes = {"rank": [(3, "expected the labels of version 1")]}
    studio.events |= {30: lambda: studio.label(20) if change == "labels" else studio.set_labels("a", "b"), 45: stop}
    _, commands, log = run_watch(studio, caplog)
    assert commands == (["rank", "run", "rank"] if change == "labels" else ["rank", "rank"])
    assert log[1] == (
        "the watch has started; ranking failed: expected the labels of version 1; "
        "waiting for a version with these labels"
    )
