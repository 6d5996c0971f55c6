"""Mutations of JSON documents that stay valid JSON, for fuzzing the code that reads their fields."""

import copy
import json
from random import Random
from typing import Any

ODD_TEXTS = (
    *("", " ", "\ud800", "\0", "a" * 300, "../x", "/etc/passwd", "a/b", "é" * 200, "$", "$key", "<View/>", "0" * 64),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *ODD_TEXTS,
    *([], {}, [[]], [None], {"": None}, [{}], {"id": None}),
)
"""Unexpected values of fields."""


def mutate_json(text, seed):
    """Return JSON with one to four edits, or None if the text is not JSON."""
    try:
        document = [json.loads(text)]
    except (ValueError, RecursionError):
        return None
    rng = Random(seed)  # noqa: S311 - not for secrets
    for _ in range(rng.randint(1, 4)):
        _edit(document, rng)
    return json.dumps(document[0]).encode()


def _edit(document, rng):
    positions = list(_positions(document))
    parent, key = rng.choice(positions)
    edit = rng.choice(["odd", "other", "drop", "add", "rename", "repeat", "nest", "text"])
    if edit == "odd":
        parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif edit == "other":
        other, other_key = rng.choice(positions)
        parent[key] = copy.deepcopy(other[other_key])
    elif edit == "drop" and parent is not document:
        del parent[key]
    elif edit == "add" and isinstance(parent, dict):
        parent[rng.choice(ODD_TEXTS)] = parent[key]
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
    piece = rng.choice(["", text[begin:end] * 2, rng.choice(ODD_TEXTS), chr(rng.randint(0, 0x10FFFF))])
    return text[:begin] + piece + text[end:]


def _positions(value):
    """Yield pairs of a container and one of its keys, outermost first."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _positions(value[key])
