"""Whether a project asks for what a model has learnt: the labels of one against those of the other.

A labelling config may change after a training. Labels that were added get no probability, and images predicted as one
that was lost get no label; both are no reason to stop. A project of another subject is.
"""

from collections.abc import Sequence
from typing import Final

from contract.errors import ConfigError, LabelMismatch, name_some
from contract.labelconfig import ChoicesControl

_ENOUGH: Final = 0.5
"""The share of the shorter list of labels that both have to have."""
_LISTS: Final = 3
"""Controls whose labels are named."""
_NAMED: Final = 10
"""Labels of a list that are named; the rest are counted."""
_LONGEST: Final = 60
"""Characters of a label that are shown."""


def match_control(
    controls: Sequence[ChoicesControl], *, version: str, name: str | None, labels: Sequence[str]
) -> ChoicesControl:
    """Pick the control that a version answers for, among those whose labels it knows; LabelMismatch if there is none.

    It knows them if both share at least half of the labels of whichever has fewer, stored or displayed.
    """
    known = [control for control in controls if _matches(control, labels)]
    if not known:
        raise LabelMismatch(
            f"expected a project with the labels of version {version} ({format_labels(labels)}), its labelling config "
            f"has others ({format_controls(controls)}); train a version on this project, or set LABELNEXT_MODEL to the "
            "model that was trained on it"
        )
    return choose_control(known, name=name, labels=labels)


def matches_any(controls: Sequence[ChoicesControl], labels: Sequence[str]) -> bool:
    """Say whether a model of these labels answers for one of the controls."""
    return any(_matches(control, labels) for control in controls)


def format_labels(labels: Sequence[str]) -> str:
    """Return labels as messages name them: many are counted, long ones cut."""
    named = [label if len(label) <= _LONGEST else f"{label[: _LONGEST - 3]}..." for label in labels]
    return name_some(named, most=_NAMED)


def format_controls(controls: Sequence[ChoicesControl]) -> str:
    """Return controls as messages name them, with their labels."""
    return "; ".join(f"{control.from_name}: {format_labels(control.labels)}" for control in controls[:_LISTS])


def choose_control(controls: Sequence[ChoicesControl], *, name: str | None, labels: Sequence[str]) -> ChoicesControl:
    """Pick the control named `name` if it is there, else the one sharing most labels, the first of equals."""
    if not controls:
        raise ConfigError("expected at least one <Choices> for an <Image>, got none; check the labelling config")
    named = [control for control in controls if control.from_name == name]
    return named[0] if named else max(controls, key=lambda control: _count_shared(control, labels))


def _matches(control: ChoicesControl, labels: Sequence[str]) -> bool:
    shared = _count_shared(control, labels)
    return shared > 0 and shared >= _ENOUGH * min(len(control.choices), len(labels))


def _count_shared(control: ChoicesControl, labels: Sequence[str]) -> int:
    wanted = set(labels)
    return sum(choice.stored in wanted or choice.shown in wanted for choice in control.choices)
