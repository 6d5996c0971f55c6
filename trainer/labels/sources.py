"""From what people labelled to the label or labels of each image, whichever of three places it lies in.

The order of the labels comes from the labelling config and not from the labels seen, so that it stays the same from one
round to the next. Opens no image.
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from contract.errors import LabelError, name_some
from contract.labelconfig import Choice, ChoicesControl, parse_label_config
from contract.matching import choose_control
from contract.tasks import find_reference
from trainer import labelstudio
from trainer.labels import annotations, class_folders
from trainer.labels.annotations import CONFIRMED, LeftOut, Task, aggregate, find_choices, is_confirmed
from trainer.labels.class_folders import IMAGE_SUFFIXES, NESTED, find_images, to_nfc
from trainer.labelstudio.client import ProjectClient
from trainer.labelstudio.task_lists import list_annotated

logger = logging.getLogger(__name__)

_REFERENCE_STARTS: Final = tuple(
    ["http://", "https://", "data:", "/data/", "/storage-data/", "s3://", "gs://", "azure-blob://"]
)


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image and what holds of it."""

    reference: str
    """A path, or what the task in Label Studio refers to."""
    labels: tuple[int, ...]
    """Indices into the pool's labels, rising: one, unless several may hold; then any number."""
    task_id: int | None = None


@dataclass(frozen=True, slots=True)
class LabelledPool:
    """Everything that can be trained on."""

    labels: tuple[str, ...]
    """What Label Studio stores for each class, in the config's order; a class may have no image yet."""
    images: tuple[LabelledImage, ...]
    control: str | None
    """The name of the `<Choices>` that the labels come from; None for folders."""
    origin: str
    """Where the labels come from and what decided their order, for people."""
    left_out: Mapping[str, Sequence[int | str | None]]
    """By reason, tasks' numbers, None for one without, or files' paths."""
    multiple: bool = False
    """Whether several labels may hold of an image, and none."""
    lost_labels: Mapping[str, Sequence[int | None]] = field(default_factory=dict)
    """By label that the labelling config no longer has, the tasks left out for it."""
    image_key: str = ""
    """Where tasks have their images' references in their data; empty for folders."""
    confirmed: Mapping[int, str] = field(default_factory=dict)
    """By task left out as confirmed in bulk, its image's reference."""


def describe_left_out(pool: LabelledPool) -> list[str]:
    """What was left out, one sentence for each reason, with the tasks or files and with the labels that are lost."""
    by_count = sorted(pool.lost_labels.items(), key=lambda item: -len(item[1]))
    lost = _some([f"{label!r} in {len(tasks)}{_named(tasks)}" for label, tasks in by_count])
    examples = {reason: _named(those) for reason, those in pool.left_out.items()} | {annotations.OUTDATED: f": {lost}"}
    return [f"{len(those)} {reason}{examples[reason]}" for reason, those in pool.left_out.items()]


def _named(those: Sequence[int | str | None]) -> str:
    known = [str(each) for each in those if each is not None]
    if not known:
        return ""
    kind = "" if isinstance(those[0], str) else "task " if len(known) == 1 else "tasks "
    return f" ({kind}{_some(known)})"


_some = partial(name_some, most=5)
"""Names tasks, labels or keys; the rest are counted."""

_WITHOUT_CHOICE: Final = (annotations.EMPTY, annotations.NO_CHOICE)
NO_IMAGE: Final = "no image reference in the task, or several"


def from_folder(root: Path) -> LabelledPool:
    """Take the label of each image from the folder it lies in; labels are the folders' names, sorted."""
    if not root.is_dir():
        raise LabelError(f"expected a folder of class folders, {root} is no folder; give the folder above the classes")
    found, left_out = find_images(root)
    labels = tuple(found)
    nested = {to_nfc(path.partition("/")[0]) for path in left_out.get(NESTED, ())}
    if emptied := sorted(nested - set(labels)):
        logger.warning("no class, for all images lie in folders below: %s", _some(emptied))
    images = [LabelledImage(str(path), (label,)) for label, name in enumerate(labels) for path in found[name]]
    return _checked(LabelledPool(labels, tuple(images), None, f"the class folders of {root}, sorted by name", left_out))


def from_export(path: Path, label_config: str | None = None, control: str | None = None) -> LabelledPool:
    """Read a Label Studio export of type JSON.

    Without the text of the labelling config, labels are those seen, sorted, and one of several `<Choices>` is named.
    """
    tasks = _read_export(path)
    if label_config is not None:
        chosen = _choose(label_config, control, tasks)
        return _pool(tasks, chosen, f"{path}, labels in the order of the labelling config")
    guessed = _guess(tasks, control)
    logger.warning("no labelling config was given with %s: taking the labels seen, sorted", path)
    origin = f"{path}, labels seen in it, sorted: give the labelling config to keep the order of the project"
    return _pool(tasks, guessed, origin)


def from_project(client: ProjectClient, control: str | None = None, *, kept: Path) -> LabelledPool:
    """Read the annotations of a project of Label Studio, whose lists are `kept` in a folder.

    Without the name of a `<Choices>`, it is the one that most annotations answer.
    """
    project = labelstudio.read_project(client)
    tasks = list_annotated(client, kept)
    chosen = _choose(project.label_config, control, tasks)
    origin = f"{client.what} ({project.title}), labels in the order of its labelling config"
    return _pool(tasks, chosen, origin)


# ---- the files of the Export dialog: those of type JSON are read, the others known by name


def _read_export(path: Path) -> list[Task]:
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


# ---- which control, which key


def _choose(label_config: str, name: str | None, tasks: Sequence[Task]) -> ChoicesControl:
    controls = parse_label_config(label_config, name)
    names = [control.from_name for control in controls]
    answered = Counter(control for answer in find_choices(tasks) for control in answer)
    if name is None and any(answered[each] for each in names):
        name = max(names, key=lambda each: answered[each])  # the first of equals
    chosen = choose_control(controls, name=name, labels=())
    if len(controls) > 1:
        logger.info("training on <Choices name=%r>, one of %s", chosen.from_name, ", ".join(names))
    return chosen


def _guess(tasks: Sequence[Task], control: str | None) -> ChoicesControl:
    """Without a config, what was asked shows only in the answers."""
    answers = find_choices(tasks)
    names = sorted({name for answer in answers for name in answer})
    if control is None and len(names) > 1:
        raise LabelError(f"expected annotations of one <Choices>, got {', '.join(names)}; name one with --control")
    if not names or (control is not None and control not in names):
        raise LabelError(
            f"expected annotations of {control or 'a <Choices>'}, got those of {', '.join(names) or 'none'}; what was "
            "chosen for regions is not learnt from; label some tasks, or name another with --control"
        )
    name = control or names[0]
    chosen = [answer[name] for answer in answers if name in answer]
    choices = tuple(map(Choice, sorted(frozenset().union(*chosen))))
    multiple = any(len(each) > 1 for each in chosen)
    return ChoicesControl(name, to_name="", value_key=_guess_key(tasks), choices=choices, multiple=multiple)


def _guess_key(tasks: Sequence[Task]) -> str:
    keys = sorted({key for task in tasks for key in _image_keys(_data(task))})
    if len(keys) != 1:
        raise LabelError(
            f"expected one key with an image in the tasks' data, got {_some(keys) or 'none'}; "
            "give the labelling config with --label-config"
        )
    return keys[0]


def _image_keys(data: object, key: str = "", depth: int = 0) -> Iterator[str]:
    """Where something lies that looks like an image, as `find_reference` takes it."""
    if isinstance(data, str):
        if data.startswith(_REFERENCE_STARTS) or Path(data.partition("?")[0]).suffix.lower() in IMAGE_SUFFIXES:
            yield key
    elif depth < _DEEPEST_KEY:
        named = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
        for name, value in named:
            step = f"[{name}]" if isinstance(data, list) else f".{name}" if key else name
            yield from _image_keys(value, f"{key}{step}", depth + 1)


_DEEPEST_KEY: Final = 5


# ---- from tasks to a pool


def _pool(tasks: Iterable[Task], control: ChoicesControl, origin: str) -> LabelledPool:
    index = {label: number for number, label in enumerate(control.labels)}
    images, confirmed = list[LabelledImage](), dict[int, str]()
    left_out = defaultdict[str, list[int | str | None]](list)
    lost_labels = defaultdict[str, list[int | None]](list)
    for task in tasks:
        number = task["id"] if isinstance(task.get("id"), int) else None
        try:
            chosen = aggregate(task, control.from_name, index, multiple=control.multiple)
            held = tuple(sorted(index[label] for label in chosen))
            reference = find_reference(_data(task), control.value_key)
            if reference is None:
                raise LeftOut(NO_IMAGE)
            if is_confirmed(task):
                if number is not None:
                    confirmed[number] = reference
                raise LeftOut(CONFIRMED)
            images.append(LabelledImage(reference, held, number))
        except LeftOut as reason:
            left_out[str(reason)].append(number)
            for label in sorted(reason.lost):
                lost_labels[label].append(number)
    if control.multiple and (without := sum(len(left_out.get(reason, ())) for reason in _WITHOUT_CHOICE)):
        logger.warning("%d tasks without a choice are left out; if no label holds, mark them as ground truth", without)
    named, multiple, key = control.from_name, control.multiple, control.value_key
    return _checked(
        LabelledPool(control.labels, tuple(images), named, origin, left_out, multiple, lost_labels, key, confirmed)
    )


def _data(task: Task) -> Mapping[str, Any]:
    data = task.get("data")
    return data if isinstance(data, Mapping) else {}


def _checked(pool: LabelledPool) -> LabelledPool:
    """Refuse what no classifier can learn from, and names that no manifest can hold."""
    for label in pool.labels:  # a folder's name may hold any bytes, which become half characters
        if label.encode(errors="replace").decode() != label:
            raise LabelError(f"expected labels in UTF-8, got {label!a} in {pool.origin!a}; rename it")
    if len({image.labels for image in pool.images}) >= 2:
        return pool
    used = {label for image in pool.images for label in image.labels}
    names = ", ".join(pool.labels[label] for label in sorted(used)) or "none"
    reasons = "; ".join(describe_left_out(pool)) or "nothing"
    expected = "images that differ in a label" if pool.multiple else "labelled images of at least 2 classes"
    raise LabelError(
        f"expected {expected}, got {len(pool.images)} of {len(used)} ({names}) from {pool.origin}; "
        f"left out: {reasons}; {_advise(pool)}"
    )


def _advise(pool: LabelledPool) -> str:
    """What to do about a pool of fewer than two classes."""
    if nested := pool.left_out.get(NESTED):
        folder = Path(str(nested[0])).parent.parent
        return f"the images lie one folder deeper: give a folder whose folders are the classes, as {folder} may be"
    if class_folders.BROKEN_LINK in pool.left_out:
        return "images are broken links: copy what they lead to, or mount it where they say that it is"
    if class_folders.UNREADABLE in pool.left_out:
        return "let the user that the trainer runs as read them"
    if not pool.images and class_folders.NOT_AN_IMAGE in pool.left_out:
        return f"save images as JPEG or PNG; of these suffixes all are read: {', '.join(sorted(IMAGE_SUFFIXES))}"
    if not pool.images and class_folders.NOT_IN_A_CLASS in pool.left_out:
        return "put each image into a folder that is called like its class"
    return "label images of another class"
