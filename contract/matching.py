"""Matches the labels of a model with the controls of a project.

A labelling config may change after a training. Added labels get no probability, and images predicted as a removed label
get no label; neither is an error. A project on another subject is.
"""

from collections.abc import Sequence
from typing import Final

from contract.errors import ConfigError, LabelMismatch, name_some
from contract.labelconfig import ChoicesControl

_MIN_SHARED: Final = 0.5
"""The share of the shorter list of labels that must be in both lists."""
_SHOWN_CONTROLS: Final = 3
"""Controls listed in a message."""
_SHOWN_LABELS: Final = 10
"""Labels listed in a message; the rest are counted."""
_MAX_LABEL_LENGTH: Final = 60
"""Characters of a label in a message."""


def match_control(
    controls: Sequence[ChoicesControl], *, version: str, name: str | None, labels: Sequence[str]
) -> ChoicesControl:
    """Return the control that a version predicts for; LabelMismatch if no control matches its labels.

    A control matches if at least half of the labels of whichever has fewer are shared, as stored or as displayed.
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
    """Return whether any control matches these labels."""
    return any(_matches(control, labels) for control in controls)


def format_labels(labels: Sequence[str]) -> str:
    """Return labels for a message; long lists and labels are shortened."""
    named = [label if len(label) <= _MAX_LABEL_LENGTH else f"{label[: _MAX_LABEL_LENGTH - 3]}..." for label in labels]
    return name_some(named, limit=_SHOWN_LABELS)


def format_controls(controls: Sequence[ChoicesControl]) -> str:
    """Return controls with their labels for a message."""
    return "; ".join(f"{control.from_name}: {format_labels(control.labels)}" for control in controls[:_SHOWN_CONTROLS])


def choose_control(controls: Sequence[ChoicesControl], *, name: str | None, labels: Sequence[str]) -> ChoicesControl:
    """Return the control of this name, else the first of those that share most labels; ConfigError without controls."""
    if not controls:
        raise ConfigError("expected at least one <Choices> for an <Image>, got none; check the labelling config")
    named = [control for control in controls if control.from_name == name]
    return named[0] if named else max(controls, key=lambda control: _count_shared(control, labels))


def _matches(control: ChoicesControl, labels: Sequence[str]) -> bool:
    shared = _count_shared(control, labels)
    return shared > 0 and shared >= _MIN_SHARED * min(len(control.choices), len(labels))


def _count_shared(control: ChoicesControl, labels: Sequence[str]) -> int:
    known = set(labels)
    return sum(choice.stored in known or choice.displayed in known for choice in control.choices)
