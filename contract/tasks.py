"""Images and labels in the JSON of a Label Studio task.

Tasks and results can be imported, and so have any form: every form that Label Studio's editor reads is accepted.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

MAX_DEPTH: Final = 100
"""Levels of nested choices."""


def path_label(steps: Sequence[str]) -> str:
    """Return the label of a path of nested choices, from the outermost to the innermost."""
    return " > ".join(steps)


def labels_in(value: object) -> tuple[str, ...]:
    """Return the distinct labels chosen in the `value` of a result, in each form that Label Studio stores.

    `choices` is a list of texts, or a single text; for nested choices each element is the list of texts on its path. If
    all choices below another are chosen, Label Studio lists that one too; it is not a label.
    """
    choices = value.get("choices") if isinstance(value, Mapping) else None
    paths = [_steps_of(choice) for choice in (choices if isinstance(choices, list) else [choices])]
    parents = {path[:length] for path in paths for length in range(1, min(len(path), MAX_DEPTH))}
    return tuple(dict.fromkeys(path_label(path) for path in paths if any(path) and path not in parents))


def _steps_of(choice: object) -> tuple[str, ...]:
    steps = choice if isinstance(choice, list) else [choice]
    return tuple(str(step) for step in steps if isinstance(step, str | int | float))


def find_reference(data: Mapping[str, object], key: str) -> str | None:
    """Return the reference of the image in a task's data; None unless it is a text, or a list of a single text.

    The key is that of `value="$key"`: a key of the data, or a path such as `image.url` or `images[0]`.
    """
    value = data[key] if key in data else _follow(data, key)
    if isinstance(value, list) and len(value) == 1:  # of a longer list the editor shows further images
        value = value[0]
    return value if isinstance(value, str) and value else None


def _follow(data: object, path: str) -> object:
    """Return the value at a path through objects and lists, as the editor resolves it; None if it does not exist."""
    for step in re.findall(r"[^.\[\]]+|(?=(?:\.|\[\])(?:\.|\[\]|$))", path):
        if isinstance(data, Mapping):
            data = data.get(step)
        elif isinstance(data, list) and re.fullmatch("0|[1-9][0-9]{0,8}", step) and int(step) < len(data):
            data = data[int(step)]
        else:
            return None
    return data
