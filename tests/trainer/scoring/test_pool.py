import dataclasses

import pytest

from contract.labelconfig import Choice, ChoicesControl
from tests.versions import manifest
from trainer.scoring.pool import count_labels, group_failures
from trainer.scoring.scores import Failure

CONTROL = ChoicesControl("label", "image", "image", (Choice("Cat", "cat"), Choice("Dog"), Choice("Eel")), multiple=True)


def task(*labels, by=1):
    region = {"from_name": "label", "type": "choices", "value": {"choices": list(labels)}}
    return {"id": 1, "data": {}, "annotations": [{"id": 1, "result": [region], "completed_by": by}]}


def count(labels, tasks, *, multiple=False):
    version = dataclasses.replace(manifest("20261123T050102123Z-0a1b2c"), labels=labels, multiple=multiple)
    return count_labels(tasks, CONTROL, version)


def test_labels_are_counted_in_the_order_of_the_version():
    """Those that are none of its classes are not, nor what the labelling config does not know."""
    tasks = [task("Dog"), task("cat"), task("Dog"), task("Eel"), task("Ape")]
    assert count(("Dog", "cat", "Fox"), tasks) == [2, 1, 0]


def test_a_version_trained_on_folders_may_know_a_class_by_what_people_read():
    """Label Studio stores the alias."""
    assert count(("Cat", "Dog"), [task("cat"), task("Dog"), task("cat")]) == [2, 1]


def test_of_several_labels_each_counts():
    """Where the version can tell several; where it cannot, such a task has no label."""
    assert count(("cat", "Dog"), [task("cat", "Dog"), task("Dog")], multiple=True) == [1, 2]
    assert count(("cat", "Dog"), [task("cat", "Dog"), task("Dog")]) == [0, 1]


def test_nested_choices_are_counted_by_their_paths():
    """Whether the version's classes go by what is stored on the way or by what people read."""
    choices = (Choice("Cat", "cat", ("animal",)), Choice("Plain", None, ()))
    control = dataclasses.replace(CONTROL, choices=choices)
    version = dataclasses.replace(manifest("20261123T050102123Z-0a1b2c"), labels=("animal > Cat", "Plain"))
    assert count_labels([task(["animal", "cat"]), task(["Plain"]), task(["Plain"])], control, version) == [1, 2]


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        ("task 5: its data must hold an image", "task 5: its data must hold an image"),
        ("expected an image in task 5", "expected an image in task 5"),
        ("like task 51's", "task 5: like task 51's"),
        ("no such file", "task 5: no such file"),
    ],
)
def test_a_task_without_a_score_is_named_once(detail, said):
    """Also where the server's answer names it; task 5 is not task 51."""
    assert group_failures([Failure(5, "no_image", detail)]) == f"1, such as {said}"
