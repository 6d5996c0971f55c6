"""Mutations of JSON that leave it JSON: what parses a document's fields never sees bytes that are none."""

import copy
import json
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "\ud800", "\0", "a" * 300, "../x", "/etc/passwd", "a/b", "é" * 200, "$", "$key", "<View/>", "0" * 64),
    *([], {}, [[]], [None], {"": None}, [{}], {"id": None}),
)
"""What stands in fields where something else is expected."""


def mutate_json(text, seed):
    """Return JSON with one to four edits, or None if the text is none."""
    try:
        document = [json.loads(text)]
    except (ValueError, RecursionError):
        return None
    rng = Random(seed)  # noqa: S311 - not for secrets
    for _ in range(rng.randint(1, 4)):
        _edit(document, rng)
    return json.dumps(document[0]).encode()


def _edit(document, rng):
    places = list(_places(document))
    parent, key = rng.choice(places)
    edit = rng.choice(["odd", "other", "drop", "add", "rename", "repeat", "nest", "text"])
    if edit == "odd":
        parent[key] = copy.deepcopy(rng.choice(ODD))
    elif edit == "other":
        other, its_key = rng.choice(places)
        parent[key] = copy.deepcopy(other[its_key])
    elif edit == "drop" and parent is not document:
        del parent[key]
    elif edit == "add" and isinstance(parent, dict):
        parent[rng.choice(ODD[14:27])] = parent[key]
    elif edit == "rename" and isinstance(parent, dict):
        parent[str(key)[: rng.randint(0, 8)]] = parent.pop(key)
    elif edit == "repeat" and isinstance(parent, list) and parent is not document:
        parent.extend(copy.deepcopy(parent[:50]))
    elif edit == "nest":
        parent[key] = [parent[key]] if rng.random() < 0.5 else {"id": parent[key]}
    elif edit == "text" and isinstance(parent[key], str):
        parent[key] = _edit_text(parent[key], rng)


def _edit_text(text, rng):
    begin, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
    piece = rng.choice(["", text[begin:end] * 2, rng.choice(ODD[14:27]), chr(rng.randint(0, 0x10FFFF))])
    return text[:begin] + piece + text[end:]


def _places(value):
    """Yield each container with each of its keys, outermost first."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
