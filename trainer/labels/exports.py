"""Files that Label Studio's Export dialog writes: those of type JSON are read, the others known by name."""

import json
from pathlib import Path

from contract.errors import LabelError
from trainer.labels.annotations import Task


def read_export(path: Path) -> list[Task]:
    """The tasks in an export of type JSON."""
    try:
        content = path.read_bytes()
    except OSError as err:
        raise LabelError(
            f"the export {path} cannot be read: {err.strerror}; give the file that Label Studio wrote"
        ) from err
    try:
        tasks = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise _other_export(path, _name_text(content)) from err
    if tasks == []:
        raise LabelError(f"expected a Label Studio export with tasks, {path} has none; label some, and export again")
    if not isinstance(tasks, list) or not all(_is_task(task) for task in tasks):
        raise _other_export(path, _name_document(tasks))
    if any("completions" in task for task in tasks):
        raise _other_export(path, "of Label Studio before 1.0", "open the project in a newer one, and export it there")
    return tasks


def _is_task(task: object) -> bool:
    return isinstance(task, dict) and isinstance(task.get("data"), dict)


def _other_export(path: Path, found: str, remedy: str = "choose JSON in the project's Export dialog") -> LabelError:
    return LabelError(f"expected a Label Studio export of type JSON, {path} is {found}; {remedy}")


def _name_text(content: bytes) -> str:
    """What an export is that is no JSON."""
    if content.startswith(b"PK"):
        return "a ZIP archive, as of the types YOLO, COCO with images and Pascal VOC"
    if content.lstrip()[:1] in {b"[", b"{"}:
        return "broken JSON"
    first, _, more = content.partition(b"\n")
    for separator, name in ((b"\t", "TSV"), (b",", "CSV")):
        if separator in first and more:
            return f"a table, as of the type {name}"
    return "no JSON"


def _name_document(document: object) -> str:
    """What an export is that is JSON, but not of tasks."""
    if isinstance(document, dict) and {"images", "annotations", "categories"} <= document.keys():
        return "of the type COCO"
    if not isinstance(document, list):
        return "no list of tasks"
    return "a list of what has no 'data', as of the type JSON-MIN"
