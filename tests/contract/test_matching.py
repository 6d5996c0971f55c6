import pytest

from contract.errors import ConfigError, LabelMismatch
from contract.labelconfig import Choice, ChoicesControl
from contract.matching import choose_control, match_control

VERSION = "20261123T050102123Z-0a1b2c"


def control(*choices, name="kind"):
    return ChoicesControl(name, "image", "image", tuple(Choice(*each.split("=")) for each in choices), multiple=False)


def match(labels, *controls, name=None):
    return match_control(controls, version=VERSION, name=name, labels=labels).from_name


@pytest.mark.parametrize(
    ("labels", "choices"),
    [
        (("cat", "dog"), ("cat", "dog")),
        (("cat", "dog"), ("cat", "dog", "eel", "fox", "gnu")),
        (("cat", "dog", "eel", "fox", "gnu"), ("cat", "dog")),
        (("cat", "dog"), ("cat", "hound")),
        (("cat", "dog", "eel"), ("cat", "dog", "fox", "gnu")),
        (("cat", "dog"), ("Katze=cat", "Hund=dog")),
        (("Katze", "Hund"), ("Katze=cat", "Hund=dog")),
    ],
    ids=["equal", "added", "removed", "half", "removed and added", "stored", "displayed"],
)
def test_added_and_removed_labels_match(labels, choices):
    """If at least half of the shorter list is shared, as stored or displayed."""
    assert match(labels, control(*choices)) == "kind"


@pytest.mark.parametrize(
    ("labels", "choices"),
    [
        (("cat", "dog"), ("car", "bike")),
        (("cat", "dog"), ("Cat", "Dog")),
        (("cat", "dog", "other"), ("car", "bike", "other")),
        (("cat", "dog"), ("car",)),
    ],
    ids=["other", "other spelling", "only one in common", "one"],
)
def test_labels_of_another_subject_do_not_match(labels, choices):
    with pytest.raises(LabelMismatch) as caught:
        match(labels, control(*choices))
    message = str(caught.value)
    assert f"version {VERSION} ({', '.join(labels)})" in message
    assert f"kind: {', '.join(choices)}" in message
    assert "train a version on this project" in message


def test_named_control_is_preferred_to_the_best_match():
    """Unless the labels of the named control do not match."""
    blurred, few, many = control("yes", "no", name="blurred"), control("cat", "no", name="few"), control("cat", "dog")
    assert match(("cat", "dog"), blurred, few, many, name="few") == "few"
    assert match(("cat", "dog"), blurred, few, many, name="blurred") == "kind"
    assert match(("cat", "dog"), blurred, few, many) == "kind"


def test_long_lists_and_labels_are_shortened():
    labels = [f"label {number}" for number in range(1000)]
    controls = [control(*(f"{name} {number} {'x' * 500}" for number in range(500)), name=name) for name in "abcdef"]
    with pytest.raises(LabelMismatch) as caught:
        match(labels, *controls)
    assert "label 9 and 990 more" in str(caught.value)
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize(
    ("name", "labels", "chosen"),
    [
        ("blurred", ["Cat", "Dog"], "blurred"),
        (None, ["Dog", "c"], "kind"),
        ("renamed", ["Cat"], "kind"),
        (None, ["bird"], "blurred"),
    ],
    ids=["named", "stored", "displayed", "nothing shared"],
)
def test_choose_control_by_name_or_labels(name, labels, chosen):
    """The name takes precedence. Of equally good controls the first is chosen."""
    controls = [control("yes", "no", name="blurred"), control("Cat=c", "Dog"), control("c", "Dog", name="again")]
    assert choose_control(controls, name=name, labels=labels).from_name == chosen
    with pytest.raises(ConfigError, match="at least one <Choices>"):
        choose_control([], name=name, labels=labels)
