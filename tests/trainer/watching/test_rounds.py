from datetime import UTC, datetime

import pytest
from pydantic import TypeAdapter

from contract.errors import RepositoryUnreachable
from contract.labelconfig import parse_label_config
from contract.versions.repository import Repository
from contract.versions.results import TrainingRecord
from tests import versions
from tests.trainer.studio import label_config
from trainer.watching.rounds import Changes, Trained, WatchedProject, WatchOptions, read_trained, why_train

UPDATED_AT = "2026-11-23T05:00:00.000000Z"
NONE = Changes()
TRAINED = Trained("v1", ("cat", "dog"), "label", 40, UPDATED_AT, datetime(2026, 11, 23, 5, tzinfo=UTC))
PROJECTS = (WatchedProject(5),)
EVERY_20, EVERY_HOUR = WatchOptions(PROJECTS, labels=20), WatchOptions(PROJECTS, minutes=60)


def why(options, changes=NONE, *, trained=TRAINED, labels=("cat", "dog"), idle_s=0.0):
    return why_train(options, trained, changes, controls=parse_label_config(label_config(*labels)), idle_s=idle_s)


@pytest.mark.parametrize(
    ("options", "changes", "idle_s", "reason"),
    [
        (EVERY_20, Changes(new=19), 0, None),
        (EVERY_20, Changes(new=20), 0, "20 new labels (20 asked for)"),
        (EVERY_20, Changes(edited=20), 0, "20 edited labels (20 asked for)"),
        (EVERY_20, Changes(deleted=21), 0, "21 deleted labels (20 asked for)"),
        (EVERY_20, Changes(new=1, edited=18, deleted=1), 0, "1 new label, 18 edited, 1 deleted (20 asked for)"),
        (EVERY_HOUR, NONE, 7200, None),
        (EVERY_HOUR, Changes(new=1), 3599, None),
        (EVERY_HOUR, Changes(new=1), 3600, "1 new label in 60 min (60 asked for)"),
        (EVERY_HOUR, Changes(deleted=1), 3600, "1 deleted label in 60 min (60 asked for)"),
    ],
)
@pytest.mark.parametrize("trained", [TRAINED, None], ids=["trained", "first"])
def test_enough_changed_labels_or_any_after_some_time_are_a_reason(options, changes, idle_s, reason, trained):
    assert why(options, changes, trained=trained, idle_s=idle_s) == reason


def test_what_was_made_and_is_not_there_was_deleted():
    """What counters alone say is believed: Label Studio does not date every annotation anew that it makes."""
    assert Changes.count(3, made=5, edited=2) == Changes(new=5, edited=2, deleted=2)
    assert Changes.count(0) == Changes()
    assert Changes.count(7) == Changes(new=7)
    assert Changes.count(7, made=3, edited=1) == Changes(new=7, edited=1)
    assert Changes.count(-7) == Changes(deleted=7)
    assert (str(Changes()), Changes().total) == ("0 new labels", 0)


def test_other_classes_are_a_reason():
    assert why(EVERY_20, labels=("cat", "dog", "cow")) == "the labelling config has changed (new: cow)"
    assert why(EVERY_20, labels=("cat", "hound")) == "the labelling config has changed (new: hound, gone: dog)"
    assert why(EVERY_20, labels=("cat", "dog", *"abcde")).endswith("(new: a, b, c and 2 more)")
    assert why(EVERY_20, labels=("dog", "cat")) is None


def publish(repository, project=None, **fields):
    training = TypeAdapter(TrainingRecord).validate_python({} if project is None else {"project": project})
    return versions.publish(repository, b"x", training=training, **fields).name


SEEN = {"id": 3, "annotations": 40, "updated_at": UPDATED_AT}


def test_the_newest_version_of_the_project_counts_whichever_is_in_use(tmp_path):
    """Even if it was removed. Those of other projects, of folders, and those that do not say what was seen do not."""
    repository = Repository(tmp_path)
    assert read_trained(repository, 3) is None
    older = publish(repository, SEEN)
    newest = publish(repository, {**SEEN, "annotations": 60}, created_at="2026-11-23T05:00:00")
    publish(repository, {**SEEN, "id": 4})
    publish(repository)
    publish(repository, SEEN, created_at="yesterday")
    for broken in ({"id": 3}, {**SEEN, "annotations": None}, {**SEEN, "annotations": "many"}, [3], "3"):
        publish(repository, broken)
    (repository.folder / publish(repository, SEEN) / "manifest.json").write_text("{")
    repository.set_current(older)
    repository.retire(newest)
    trained = read_trained(repository, 3)
    assert (trained.version, trained.annotations, trained.labels) == (newest, 60, ("cat", "dog"))
    assert trained.at == datetime(2026, 11, 23, 5, tzinfo=UTC)


def test_a_schedule_reads_as_a_sentence():
    assert (
        WatchOptions(PROJECTS, labels=1, minutes=30).describe()
        == "after 1 new or changed label or 30 minutes after the last if labels have changed"
    )


def test_a_bucket_that_does_not_answer_is_not_one_without_versions(monkeypatch, tmp_path):
    """Otherwise the same labels would be trained on once more."""
    repository = Repository(tmp_path)
    publish(repository)

    def fail(name):
        raise RepositoryUnreachable("no answer")

    monkeypatch.setattr(repository, "read_manifest", fail)
    with pytest.raises(RepositoryUnreachable):
        read_trained(repository, 3)
