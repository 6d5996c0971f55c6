"""When a watch trains, and how it follows changes of labels."""

import pytest

from contract.versions.training_requests import find_requests, submit_request
from tests.trainer.watching.watched import make_environment, refuse, run_watch, stop
from tests.versions import publish
from trainer.__main__ import COMMANDS
from trainer.ranking.options import RankOptions
from trainer.settings import Source, Training


def test_trains_and_ranks_after_enough_labels(studio, caplog):
    studio.label(9)
    studio.events |= {5: lambda: studio.label(1), 8: lambda: studio.label(10)}
    status, commands, log = run_watch(studio, caplog, rounds=1, labels=20)
    assert (status, commands) == (0, ["rank", "run", "rank"])
    (source, training), [ranking] = (COMMANDS[name].values(options) for name, options in studio.commands[1:])
    assert (source, training) == (Source(5, control="-x"), Training(epochs=3))
    assert ranking == RankOptions(5, batch_size=50)
    version = studio.repository.current()
    assert log[1].startswith("nothing is published yet: ranked 100 tasks by margin; ")
    assert log[-1].startswith(
        f"20 new labels (threshold 20): trained {version} on 20 labels, macro-F1 0.71; ranked 100 tasks by margin; "
        "too early to say; "
    )
    assert len(log) == 3


def test_prepares_commands_when_half_of_the_labels_have_arrived(studio, caplog):
    studio.label(9)
    studio.events |= {5: lambda: studio.label(1), 8: lambda: studio.label(10)}
    run_watch(studio, caplog, rounds=1, labels=20)
    assert set(studio.prepared) == {("run", 1), ("rank", 1)}
    assert studio.prepared[-1] == ("rank", 1)
    assert 1 <= studio.prepared.count(("run", 1)) <= 3


def test_minutes_train_after_any_change_of_a_label(trained, caplog):
    trained.open_labelled_task()
    trained.events = {trained.polls + 10: lambda: trained.edit_labels(1)}
    _, commands, log = run_watch(trained, caplog, rounds=1, minutes=1e-4)
    assert commands == ["run", "rank", "rank", "run", "rank"]
    assert "1 edited label in 0 min" in log[-1]
    assert trained.polls > 10


def test_edited_and_deleted_labels_count_like_new_ones(trained, caplog):
    annotation_lists = []

    def change_19():
        trained.edit_labels(19)
        trained.edit_labels(19)
        trained.label(1)
        trained.tasks[31]["annotations"].clear()

    def change_one_more():
        annotation_lists.append(trained.annotation_lists)
        trained.delete_labels(4)
        trained.label(1)

    steps = (trained.open_labelled_task, change_19, change_one_more)
    trained.events = {trained.polls + 4 * number: step for number, step in enumerate(steps, 1)}
    _, commands, log = run_watch(trained, caplog, rounds=1, labels=20)
    assert commands == ["run", "rank", "rank", "run", "rank"]
    assert log[-1].startswith("1 new label, 15 edited, 4 deleted (threshold 20)")
    assert annotation_lists == [2]


@pytest.mark.slow
def test_a_restarted_watch_trains_only_after_new_labels(trained, caplog):
    trained.label(19)
    trained.events = {trained.polls + 20: stop}
    _, commands, log = run_watch(trained, caplog, rounds=1)
    assert commands == ["run", "rank", "rank"]  # the former watch may have been stopped before it ranked
    assert log[-2].startswith("the watch has started: ranked 100 tasks")
    trained.label(1)
    _, commands, _ = run_watch(trained, caplog, rounds=1)
    assert commands[3:] == ["run", "rank"]


def test_a_rollback_is_ranked_and_not_trained_again(trained, caplog):
    first = trained.repository.current()
    trained.label(20)
    run_watch(trained, caplog, rounds=1)
    trained.repository.rollback(first)
    trained.events = {trained.polls + 10: stop}
    _, commands, _ = run_watch(trained, caplog)
    assert commands[4:] == ["rank"]
    assert trained.project["model_version"] == first


def test_a_request_trains_without_new_labels(trained, caplog):
    for project in (5, 6, None):
        submit_request(trained.repository, project)
    _, commands, log = run_watch(trained, caplog, rounds=1)
    assert commands == ["run", "rank", "run", "rank"]
    assert log[-1].startswith("Start Training was pressed: trained")
    assert [request.project for request in find_requests(trained.repository)] == [6]


def test_a_new_class_trains_without_new_labels(trained, caplog):
    trained.set_labels("cat", "dog", "cow")
    _, commands, log = run_watch(trained, caplog, rounds=1)
    assert commands == ["run", "rank", "run", "rank"]
    assert log[-1].startswith("the labelling config has changed (new: cow): trained")


@pytest.mark.parametrize("keep", [None, 2, "all"])
def test_old_versions_are_pruned_after_each_round(studio, caplog, keep):
    for _ in range(11):
        publish(studio.repository, b"1")
    studio.label(30)
    _, commands, _ = run_watch(studio, caplog, rounds=1, **({"keep": keep} if keep else {}))
    kept = {None: 10, 2: 2, "all": 12}[keep]
    assert studio.repository.versions() == studio.repository.history()[-kept:]
    assert commands[-1] == ("rank" if keep == "all" else "prune")


def test_webhook_secret_is_set_once_webhooks_are_accessible(studio, caplog):
    """Training does not wait for it, and the error is logged once."""
    studio.label(30)
    studio.before = lambda request: refuse(403) if request.path.startswith("/api/webhooks") else None

    def allow_webhooks():
        studio.before = lambda request: None
        studio.webhooks[10] = {**studio.webhooks[9], "id": 10, "headers": {}}

    studio.events |= {10: allow_webhooks, 13: stop}
    environment = make_environment(studio, webhook_secret="hush", server="http://localhost:9090")
    _, commands, log = run_watch(studio, caplog, environment=environment)
    assert commands == ["run", "rank"]
    assert sum("cannot set the secret of the webhooks of project 5" in line for line in log) == 1
    assert [webhook["headers"] for webhook in studio.webhooks.values()] == [{"Authorization": "Bearer hush"}] * 2
    assert "hush" not in "".join(log)
