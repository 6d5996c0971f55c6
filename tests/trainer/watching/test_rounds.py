from datetime import UTC, datetime

import pytest
from pydantic import TypeAdapter

from contract.errors import RepositoryUnreachable
from contract.labelconfig import parse_label_config
from contract.versions.repository import Repository
from contract.versions.results import TrainingRecord
from tests import versions
from tests.trainer.studio_project import label_config
from trainer.watching.rounds import (
    Changes,
    LastTraining,
    WatchedProject,
    WatchOptions,
    find_last_training,
    reason_to_train,
)

UPDATED_AT = "2026-11-23T05:00:00.000000Z"
NONE = Changes()
LAST = LastTraining("v1", ("cat", "dog"), "label", 40, UPDATED_AT, datetime(2026, 11, 23, 5, tzinfo=UTC))
PROJECTS = (WatchedProject(5),)
EVERY_20, EVERY_HOUR = WatchOptions(PROJECTS, labels=20), WatchOptions(PROJECTS, minutes=60)


def reason(options, changes=NONE, *, last=LAST, labels=("cat", "dog"), idle_s=0.0):
    return reason_to_train(options, last, changes, controls=parse_label_config(label_config(*labels)), idle_s=idle_s)


@pytest.mark.parametrize(
    ("options", "changes", "idle_s", "expected"),
    [
        (EVERY_20, Changes(new=19), 0, None),
        (EVERY_20, Changes(new=20), 0, "20 new labels (threshold 20)"),
        (EVERY_20, Changes(edited=20), 0, "20 edited labels (threshold 20)"),
        (EVERY_20, Changes(deleted=21), 0, "21 deleted labels (threshold 20)"),
        (EVERY_20, Changes(new=1, edited=18, deleted=1), 0, "1 new label, 18 edited, 1 deleted (threshold 20)"),
        (EVERY_HOUR, NONE, 7200, None),
        (EVERY_HOUR, Changes(new=1), 3599, None),
        (EVERY_HOUR, Changes(new=1), 3600, "1 new label in 60 min (threshold 60)"),
        (EVERY_HOUR, Changes(deleted=1), 3600, "1 deleted label in 60 min (threshold 60)"),
    ],
)
@pytest.mark.parametrize("last", [LAST, None], ids=["trained", "first"])
def test_trains_after_enough_changes_or_any_after_some_time(options, changes, idle_s, expected, last):
    assert reason(options, changes, last=last, idle_s=idle_s) == expected


def test_deleted_labels_are_inferred_from_the_total():
    """Growth beyond the created ones counts as new: Label Studio keeps the time of some annotations that it creates."""
    assert Changes.from_counts(3, created=5, edited=2) == Changes(new=5, edited=2, deleted=2)
    assert Changes.from_counts(0) == Changes()
    assert Changes.from_counts(7) == Changes(new=7)
    assert Changes.from_counts(7, created=3, edited=1) == Changes(new=7, edited=1)
    assert Changes.from_counts(-7) == Changes(deleted=7)
    assert (str(Changes()), Changes().total) == ("0 new labels", 0)


def test_trains_when_the_classes_have_changed():
    assert reason(EVERY_20, labels=("cat", "dog", "cow")) == "the labelling config has changed (new: cow)"
    assert reason(EVERY_20, labels=("cat", "hound")) == "the labelling config has changed (new: hound, gone: dog)"
    assert reason(EVERY_20, labels=("cat", "dog", *"abcde")).endswith("(new: a, b, c and 2 more)")
    assert reason(EVERY_20, labels=("dog", "cat")) is None


def publish(repository, project=None, **fields):
    training = TypeAdapter(TrainingRecord).validate_python({} if project is None else {"project": project})
    return versions.publish(repository, b"x", training=training, **fields).name


STATE = {"id": 3, "annotations": 40, "updated_at": UPDATED_AT}


def test_last_training_is_the_newest_version_of_the_project(tmp_path):
    """Even if it is not current and was pruned; versions of other projects or folders and invalid ones are ignored."""
    repository = Repository(tmp_path)
    assert find_last_training(repository, 3) is None
    older = publish(repository, STATE)
    newest = publish(repository, {**STATE, "annotations": 60}, created_at="2026-11-23T05:00:00")
    publish(repository, {**STATE, "id": 4})
    publish(repository)
    publish(repository, STATE, created_at="yesterday")
    for invalid in ({"id": 3}, {**STATE, "annotations": None}, {**STATE, "annotations": "many"}, [3], "3"):
        publish(repository, invalid)
    (repository.folder / publish(repository, STATE) / "manifest.json").write_text("{")
    repository.set_current(older)
    repository.retire(newest)
    last = find_last_training(repository, 3)
    assert (last.version, last.annotations, last.labels) == (newest, 60, ("cat", "dog"))
    assert last.created_at == datetime(2026, 11, 23, 5, tzinfo=UTC)


def test_conditions_are_described_in_words():
    assert (
        WatchOptions(PROJECTS, labels=1, minutes=30).describe()
        == "after 1 new or changed label or 30 minutes after the last if labels have changed"
    )


def test_an_unreachable_repository_does_not_count_as_untrained(monkeypatch, tmp_path):
    """Otherwise the same labels would be trained on again."""
    repository = Repository(tmp_path)
    publish(repository)

    def fail(name):
        raise RepositoryUnreachable("no answer")

    monkeypatch.setattr(repository, "read_manifest", fail)
    with pytest.raises(RepositoryUnreachable):
        find_last_training(repository, 3)
