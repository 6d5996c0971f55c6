import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from contract.errors import RepositoryUnreachable
from contract.labelconfig import parse_label_config
from contract.repository import Repository
from tests.versions import manifest, write_files
from trainer.labelstudio import State
from trainer.watching.rounds import Schedule, Trained, read_trained, why_train

STATE = State(
    tasks=100,
    total_annotations=40,
    useful_annotations=40,
    skipped_annotations=0,
    ground_truth=0,
    newest_updated_at="2026-11-23T05:00:00.000000Z",
    label_config="digest",
)
TRAINED = Trained("v1", ("cat", "dog"), "label", 40, STATE.newest_updated_at, datetime(2026, 11, 23, 5, tzinfo=UTC))
EVERY_20, EVERY_HOUR = Schedule(labels=20, minutes=None), Schedule(labels=None, minutes=60)


def controls(*labels):
    choices = "".join(f'<Choice value="{label}"/>' for label in labels)
    return parse_label_config(
        f'<View><Image name="i" value="$image"/><Choices name="label" toName="i">{choices}</Choices></View>'
    )


def why(schedule, *, trained=TRAINED, labels=("cat", "dog"), idle_s=0.0, **changes):
    return why_train(schedule, trained, replace(STATE, **changes), controls=controls(*labels), idle_s=idle_s)


@pytest.mark.parametrize(
    ("total", "trained", "reason"),
    [
        (59, TRAINED, None),
        (60, TRAINED, "20 new labels (20 asked for)"),
        (65, TRAINED, "25 new labels (20 asked for)"),
        (30, TRAINED, None),
        (19, None, None),
        (20, None, "20 new labels (20 asked for)"),
    ],
)
def test_enough_new_labels_are_a_reason(total, trained, reason):
    """New since the newest version; all of them where there is none."""
    assert why(EVERY_20, trained=trained, total_annotations=total) == reason


def test_after_some_time_any_change_is_a_reason():
    """New labels, edited ones, deleted ones; and none before the time is over."""
    later = "2026-11-23T05:30:00.000000Z"
    assert why(EVERY_HOUR, idle_s=7200) is None
    assert why(EVERY_HOUR, idle_s=3599, total_annotations=41) is None
    assert why(EVERY_HOUR, idle_s=3600, total_annotations=41) == "1 new label in 60 min (60 asked for)"
    assert why(EVERY_HOUR, idle_s=3600, newest_updated_at=later) == "labels edited or deleted in 60 min (60 asked for)"
    assert why(EVERY_HOUR, idle_s=3600, total_annotations=39).startswith("labels edited or deleted")
    assert why(EVERY_HOUR, idle_s=3600, trained=None) == "40 new labels in 60 min (60 asked for)"
    assert why(EVERY_HOUR, idle_s=3600, trained=None, total_annotations=0, newest_updated_at="") is None


def test_other_classes_are_a_reason():
    """Named; another look of the same ones is none."""
    assert why(EVERY_20, labels=("cat", "dog", "cow")) == "the labelling config has changed (new: cow)"
    assert why(EVERY_20, labels=("cat", "hound")) == "the labelling config has changed (new: hound, gone: dog)"
    assert why(EVERY_20, labels=("cat", "dog", *"abcde")).endswith("(new: a, b, c and 2 more)")
    assert why(EVERY_20, label_config="another digest") is None


def publish(repository, project=None, **fields):
    training = {} if project is None else {"project": project}
    with repository.stage(datetime.now(UTC)) as staged:
        write_files(staged.path, b"x")
        return staged.publish(replace(manifest(staged.version), training=training, **fields)).name


SEEN = {"id": 3, "annotations": 40, "updated_at": STATE.newest_updated_at}


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
    assert str(Schedule(20, None)) == "after 20 new labels"
    assert str(Schedule(1, 30)) == "after 1 new label or 30 minutes after the last if labels have changed"


def test_a_bucket_that_does_not_answer_is_not_one_without_versions(monkeypatch, tmp_path):
    """Otherwise the same labels would be trained on once more."""
    repository = Repository(tmp_path)
    with repository.stage(datetime.now(UTC)) as staged:
        write_files(staged.path, b"x")
        staged.publish(manifest(staged.version))

    def fail(name):
        raise RepositoryUnreachable("no answer")

    monkeypatch.setattr(repository, "read_manifest", fail)
    with pytest.raises(RepositoryUnreachable):
        read_trained(repository, 3)
