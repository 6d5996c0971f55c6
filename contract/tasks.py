"""What lies where in a task of Label Studio: the image in its data, the labels in a result.

All that Label Studio's editor reads is read: tasks and results can be imported, and so be anything.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

MOST_STEPS: Final = 100
"""On the way to a nested choice."""


def path_label(steps: Sequence[str]) -> str:
    """The label that a path of choices is, from the outermost on."""
    return " > ".join(steps)


def labels_in(value: object) -> tuple[str, ...]:
    """The labels that the `value` of a result chooses, each once, in whichever of its forms Label Studio keeps them.

    `choices` is a list of texts, or one text by itself; where choices are nested, each is the list of texts on the way
    to it. A choice of which all below it are chosen is listed beside those, and is no label of its own.
    """
    choices = value.get("choices") if isinstance(value, Mapping) else None
    paths = [_steps_of(choice) for choice in (choices if isinstance(choices, list) else [choices])]
    around = {path[:length] for path in paths for length in range(1, min(len(path), MOST_STEPS))}
    return tuple(dict.fromkeys(path_label(path) for path in paths if any(path) and path not in around))


def _steps_of(choice: object) -> tuple[str, ...]:
    steps = choice if isinstance(choice, list) else [choice]
    return tuple(str(step) for step in steps if isinstance(step, str | int | float))


def find_reference(data: Mapping[str, object], key: str) -> str | None:
    """The image's reference in a task's data, or None if there is no text, nor a list of nothing but one text.

    The key is that of `value="$key"`: one of the data, or else a path such as `image.url` or `images[0]`.
    """
    found = data[key] if key in data else _follow(data, key)
    if isinstance(found, list) and len(found) == 1:  # the editor shows the first of a list, and all of it beside that
        found = found[0]
    return found if isinstance(found, str) and found else None


def _follow(data: object, path: str) -> object:
    """What lies at the end of a path through objects and lists, as the editor finds it; None where it breaks off."""
    for step in re.findall(r"[^.\[\]]+|(?=(?:\.|\[\])(?:\.|\[\]|$))", path):
        if isinstance(data, Mapping):
            data = data.get(step)
        elif isinstance(data, list) and re.fullmatch("0|[1-9][0-9]{0,8}", step) and int(step) < len(data):
            data = data[int(step)]
        else:
            return None
    return data
