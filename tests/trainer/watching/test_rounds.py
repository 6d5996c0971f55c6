import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from contract.errors import RepositoryUnreachable
from contract.labelconfig import parse_label_config
from contract.versions.repository import Repository
from contract.versions.results import TrainingRecord
from tests import versions
from trainer.watching.rounds import Changes, Schedule, Trained, read_trained, why_train

UPDATED_AT = "2026-11-23T05:00:00.000000Z"
NONE = Changes()
TRAINED = Trained("v1", ("cat", "dog"), "label", 40, UPDATED_AT, datetime(2026, 11, 23, 5, tzinfo=UTC))
EVERY_20, EVERY_HOUR = Schedule(labels=20, minutes=None), Schedule(labels=None, minutes=60)


def controls(*labels):
    choices = "".join(f'<Choice value="{label}"/>' for label in labels)
    return parse_label_config(
        f'<View><Image name="i" value="$image"/><Choices name="label" toName="i">{choices}</Choices></View>'
    )


def why(schedule, changes=NONE, *, trained=TRAINED, labels=("cat", "dog"), idle_s=0.0):
    return why_train(schedule, trained, changes, controls=controls(*labels), idle_s=idle_s)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (Changes(new=19), None),
        (Changes(new=20), "20 new labels (20 asked for)"),
        (Changes(new=25), "25 new labels (20 asked for)"),
        (Changes(edited=19), None),
        (Changes(edited=20), "20 edited labels (20 asked for)"),
        (Changes(deleted=21), "21 deleted labels (20 asked for)"),
        (Changes(new=1, edited=18, deleted=1), "1 new label, 18 edited, 1 deleted (20 asked for)"),
    ],
)
def test_enough_changed_labels_are_a_reason(changes, reason):
    """Whatever was changed of them."""
    assert why(EVERY_20, changes) == reason


def test_after_some_time_any_change_is_a_reason():
    """New labels, edited ones, deleted ones; and none before the time is over."""
    assert why(EVERY_HOUR, idle_s=7200) is None
    assert why(EVERY_HOUR, Changes(new=1), idle_s=3599) is None
    assert why(EVERY_HOUR, Changes(new=1), idle_s=3600) == "1 new label in 60 min (60 asked for)"
    assert why(EVERY_HOUR, Changes(edited=2), idle_s=3600) == "2 edited labels in 60 min (60 asked for)"
    assert why(EVERY_HOUR, Changes(deleted=1), idle_s=3600) == "1 deleted label in 60 min (60 asked for)"
    assert why(EVERY_HOUR, Changes(new=40), trained=None, idle_s=3600) == "40 new labels in 60 min (60 asked for)"


@given(st.lists(st.sampled_from(["make", "edit", "delete"])), st.integers(0, 5))
def test_the_count_is_that_of_who_remembers_every_label(steps, before):
    """From how many there are now, and from when those that are there were made and edited, all else follows."""
    at_first = {number: 0 for number in range(before)}
    labels = dict(at_first)
    for moment, step in enumerate(steps, 1):
        if step == "make":
            labels[before + moment] = moment
        elif labels and step == "edit":
            labels[min(labels)] = moment
        elif labels:
            del labels[min(labels)]
    made = sum(number not in at_first for number in labels)
    edited = sum(moment > 0 for number, moment in labels.items() if number in at_first)
    deleted = sum(number not in labels for number in at_first)
    assert Changes.count(len(labels) - before, made=made, edited=edited) == Changes(made, edited, deleted)


def test_what_counters_alone_say_is_believed():
    """Label Studio does not date every annotation anew that it makes."""
    assert Changes.count(7) == Changes(new=7)
    assert Changes.count(7, made=3, edited=1) == Changes(new=7, edited=1)
    assert Changes.count(-7) == Changes(deleted=7)
    assert (str(Changes()), Changes().total) == ("0 new labels", 0)


def test_other_classes_are_a_reason():
    """Named; another look of the same ones is none."""
    assert why(EVERY_20, labels=("cat", "dog", "cow")) == "the labelling config has changed (new: cow)"
    assert why(EVERY_20, labels=("cat", "hound")) == "the labelling config has changed (new: hound, gone: dog)"
    assert why(EVERY_20, labels=("cat", "dog", *"abcde")).endswith("(new: a, b, c and 2 more)")
    assert why(EVERY_20, labels=("dog", "cat")) is None


def publish(repository, project=None, **fields):
    training = TypeAdapter(TrainingRecord).validate_python({} if project is None else {"project": project})
    return versions.publish(repository, b"x", training=training, **fields).name


SEEN = {"id": 3, "annotations": 40, "updated_at": UPDATED_AT}


def test_the_newest_version_of_the_project_counts_whichever_is_in_use(tmp_path):
    """Those of other projects, of folders and those that cannot be read do not."""
    repository = Repository(tmp_path)
    assert read_trained(repository, 3) is None
    older = publish(repository, SEEN)
    newest = publish(repository, {**SEEN, "annotations": 60}, created_at="2026-11-23T05:00:00+00:00")
    publish(repository, {**SEEN, "id": 4})
    publish(repository)
    (repository.folder / publish(repository, SEEN) / "manifest.json").write_text("{")
    repository.point_to(older)
    trained = read_trained(repository, 3)
    assert (trained.version, trained.annotations, trained.labels) == (newest, 60, ("cat", "dog"))
    assert trained.at == datetime(2026, 11, 23, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "broken", [{"id": 3}, {**SEEN, "annotations": None}, {**SEEN, "annotations": "many"}, [3], "3"], ids=json.dumps
)
def test_a_manifest_that_does_not_say_what_was_seen_is_passed_over(tmp_path, broken):
    """As one of another kind."""
    publish(Repository(tmp_path), broken)
    assert read_trained(Repository(tmp_path), 3) is None


def test_a_moment_that_is_none_is_passed_over(tmp_path):
    """And one without a time zone is in UTC."""
    publish(Repository(tmp_path), SEEN, created_at="yesterday")
    assert read_trained(Repository(tmp_path), 3) is None
    publish(Repository(tmp_path), SEEN, created_at="2026-11-23T05:00:00")
    assert read_trained(Repository(tmp_path), 3).at == datetime(2026, 11, 23, 5, tzinfo=UTC)


def test_a_schedule_reads_as_a_sentence():
    """In the first line of a watch."""
    assert str(Schedule(20, None)) == "after 20 new or changed labels"
    assert str(Schedule(1, 30)) == "after 1 new or changed label or 30 minutes after the last if labels have changed"


def test_a_bucket_that_does_not_answer_is_not_one_without_versions(monkeypatch, tmp_path):
    """Otherwise the same labels would be trained on once more."""
    repository = Repository(tmp_path)
    publish(repository)

    def fail(name):
        raise RepositoryUnreachable("no answer")

    monkeypatch.setattr(repository, "read_manifest", fail)
    with pytest.raises(RepositoryUnreachable):
        read_trained(repository, 3)
