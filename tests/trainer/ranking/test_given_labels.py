import dataclasses

import pytest

from contract.labelconfig import Choice, ChoicesControl
from tests.versions import manifest
from trainer.ranking.given_labels import GivenLabels

CHOICES = (Choice("Cat", "cat"), Choice("Dog"), Choice("Eel"), Choice("Hen", "hen", ("animal",)))
CONTROL = ChoicesControl("label", "image", "image", CHOICES, multiple=True)


def task(number, labels):
    region = {"from_name": "label", "type": "choices", "value": {"choices": labels}}
    return {"id": number, "data": {}, "annotations": [{"id": 1, "result": [region], "completed_by": 1}]}


@pytest.mark.parametrize(
    ("labels", "multiple", "chosen", "counts"),
    [
        (("Dog", "cat", "Fox"), False, [["Dog"], ["cat"], ["Dog"], ["Eel"], ["Ape"]], [2, 1, 0]),
        (("Cat", "Dog"), False, [["cat"], ["Dog"], ["cat"]], [2, 1]),
        (("animal > Hen", "Dog"), False, [[["animal", "hen"]], ["Dog"], ["Dog"]], [1, 2]),
        (("cat", "Dog"), True, [["cat", "Dog"], ["Dog"]], [1, 2]),
        (("cat", "Dog"), False, [["cat", "Dog"], ["Dog"]], [0, 1]),
    ],
    ids=["aliases", "displayed labels", "nested", "several labels", "several labels for a version with one"],
)
def test_labels_are_counted_by_class_of_the_version(labels, multiple, chosen, counts):
    """Labels unknown to the version or the labelling config do not count; Label Studio stores aliases."""
    version = dataclasses.replace(manifest("20261123T050102123Z-0a1b2c"), labels=labels, multiple=multiple)
    given = GivenLabels.read(map(task, range(9), chosen), "label", CONTROL.labels, multiple=multiple)
    assert given.count_by_class(CONTROL, version) == counts
