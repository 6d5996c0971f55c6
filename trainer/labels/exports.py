"""Reads exports of Label Studio in the format JSON, and recognises its other formats."""

import json
from pathlib import Path

from contract.errors import LabelError
from trainer.labels.annotations import Task


def read_export(path: Path) -> list[Task]:
    """Return the tasks of an export; raise LabelError if it cannot be read, has no tasks, or is in another format."""
    try:
        content = path.read_bytes()
    except OSError as err:
        raise LabelError(
            f"cannot read the export {path}: {err.strerror}; check that it exists and is readable"
        ) from err
    try:
        tasks = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise _wrong_format(path, _guess_text_format(content)) from err
    if tasks == []:
        raise LabelError(f"expected a Label Studio export with tasks, {path} has none; label some and export again")
    if not isinstance(tasks, list) or not all(_is_task(task) for task in tasks):
        raise _wrong_format(path, _guess_json_format(tasks))
    if any("completions" in task for task in tasks):
        raise _wrong_format(path, "from Label Studio before 1.0", "export it with a newer Label Studio")
    return tasks


def _is_task(task: object) -> bool:
    return isinstance(task, dict) and isinstance(task.get("data"), dict)


def _wrong_format(path: Path, actual: str, remedy: str = "choose JSON in the project's Export dialog") -> LabelError:
    return LabelError(f"expected a Label Studio export in the format JSON, {path} is {actual}; {remedy}")


def _guess_text_format(content: bytes) -> str:
    """Guess the format of an export that is not JSON."""
    if content.startswith(b"PK"):
        return "a ZIP archive (YOLO, COCO with images or Pascal VOC)"
    if content.lstrip()[:1] in {b"[", b"{"}:
        return "broken JSON"
    first, _, more = content.partition(b"\n")
    for separator, name in ((b"\t", "TSV"), (b",", "CSV")):
        if separator in first and more:
            return f"a table ({name})"
    return "not JSON"


def _guess_json_format(document: object) -> str:
    """Guess the format of an export that is JSON, but not a list of tasks."""
    if isinstance(document, dict) and {"images", "annotations", "categories"} <= document.keys():
        return "COCO"
    if not isinstance(document, list):
        return "not a list of tasks"
    return "a list of objects without 'data' (JSON-MIN)"
