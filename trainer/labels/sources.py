"""Labelled images from a project, an export or class folders. Opens no image.

Classes are in the order of the labelling config, so that the order is the same in each round.
"""

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
from trainer.labels.exports import read_export
from trainer.labelstudio.client import ProjectClient
from trainer.labelstudio.task_lists import list_annotated

logger = logging.getLogger(__name__)

_REFERENCE_STARTS: Final = tuple(
    ["http://", "https://", "data:", "/data/", "/storage-data/", "s3://", "gs://", "azure-blob://"]
)


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image and its labels."""

    reference: str
    """A path, or the image reference of the task."""
    labels: tuple[int, ...]
    """Ascending indices into the pool's labels: one, or any number if the pool is `multiple`."""
    task_id: int | None = None


@dataclass(frozen=True, slots=True)
class LabelledPool:
    """All labelled images, and the tasks or files that were left out."""

    labels: tuple[str, ...]
    """The stored value of each class, in the order of the config; a class may have no image yet."""
    images: tuple[LabelledImage, ...]
    control: str | None
    """Name of the `<Choices>` control; None for class folders."""
    origin: str
    """Description of the source and of the labels' order, for logs."""
    left_out: Mapping[str, Sequence[int | str | None]]
    """Task IDs (None for a task without one) or file paths, by reason."""
    multiple: bool = False
    """Whether an image may have several labels, or none."""
    lost_labels: Mapping[str, Sequence[int | None]] = field(default_factory=dict)
    """Task IDs that were left out, by the label that the labelling config no longer has."""
    image_key: str = ""
    """Key of the image reference in a task's data; empty for class folders."""
    confirmed: Mapping[int, str] = field(default_factory=dict)
    """Image references of the tasks confirmed in bulk, by task ID."""


def describe_left_out(pool: LabelledPool) -> list[str]:
    """Describe tasks or files that were left out, one phrase per reason."""
    by_count = sorted(pool.lost_labels.items(), key=lambda item: -len(item[1]))
    lost = _some([f"{label!r} in {len(tasks)}{_format_names(tasks)}" for label, tasks in by_count])
    examples = {reason: _format_names(names) for reason, names in pool.left_out.items()}
    examples[annotations.OUTDATED] = f": {lost}"
    return [f"{len(names)} {reason}{examples[reason]}" for reason, names in pool.left_out.items()]


def _format_names(names: Sequence[int | str | None]) -> str:
    known = [str(each) for each in names if each is not None]
    if not known:
        return ""
    kind = "" if isinstance(names[0], str) else "task " if len(known) == 1 else "tasks "
    return f" ({kind}{_some(known)})"


_some = partial(name_some, limit=5)
"""List at most five names, and count the others."""

_WITHOUT_CHOICE: Final = (annotations.EMPTY, annotations.NO_CHOICE)
NO_IMAGE: Final = "no image reference in the task, or several"


def from_folder(root: Path) -> LabelledPool:
    """Return the images of class folders; labels are the folder names, sorted.

    Raises:
        LabelError: if `root` is not a folder, fewer than two folders have images, or a name is not in UTF-8.
    """
    if not root.is_dir():
        raise LabelError(f"expected a folder of class folders, {root} is not a folder; check the path")
    paths, left_out = find_images(root)
    labels = tuple(paths)
    nested = {to_nfc(path.partition("/")[0]) for path in left_out.get(NESTED, ())}
    if empty := sorted(nested - set(labels)):
        logger.warning("not used as classes, since all their images are in nested folders: %s", _some(empty))
    images = [LabelledImage(str(path), (label,)) for label, name in enumerate(labels) for path in paths[name]]
    return _check(LabelledPool(labels, tuple(images), None, f"the class folders of {root}, sorted by name", left_out))


def from_export(path: Path, label_config: str | None = None, control: str | None = None) -> LabelledPool:
    """Return the labelled images of a Label Studio export in the format JSON.

    Without the XML of the labelling config, the labels are those in the export, sorted, and `control` is required if
    there are several `<Choices>`.

    Raises:
        LabelError: if the file is not such an export, or fewer than two classes have images.
        ConfigError: if the labelling config has no control for images, or none of this name.
    """
    tasks = read_export(path)
    if label_config is not None:
        chosen = _choose_control(label_config, control, tasks)
        return _build_pool(tasks, chosen, f"{path}, labels in the order of the labelling config")
    guessed = _guess_control(tasks, control)
    logger.warning("%s without --label-config: using the labels in the export, sorted", path)
    origin = f"{path}, labels sorted, since there is no --label-config"
    return _build_pool(tasks, guessed, origin)


def from_project(client: ProjectClient, control: str | None = None, *, cache: Path) -> LabelledPool:
    """Return the labelled images of a Label Studio project.

    `control` defaults to the `<Choices>` with the most annotations; `cache` is the folder of the project's task lists.

    Raises:
        LabelError: if fewer than two classes have images.
        ConfigError: if Label Studio does not answer, or the labelling config has no control for images, or none of
            this name.
    """
    project = labelstudio.read_project(client)
    tasks = list_annotated(client, cache)
    chosen = _choose_control(project.label_config, control, tasks)
    origin = f"{client.what} ({project.title}), labels in the order of its labelling config"
    return _build_pool(tasks, chosen, origin)


# ---- controls and image keys


def _choose_control(label_config: str, name: str | None, tasks: Sequence[Task]) -> ChoicesControl:
    controls = parse_label_config(label_config, name)
    names = [control.from_name for control in controls]
    annotations_by_control = Counter(control for choices in find_choices(tasks) for control in choices)
    if name is None and any(annotations_by_control[each] for each in names):
        name = max(names, key=lambda each: annotations_by_control[each])  # the first of ties
    chosen = choose_control(controls, name=name, labels=())
    if len(controls) > 1:
        logger.info("training on <Choices name=%r>, one of %s", chosen.from_name, ", ".join(names))
    return chosen


def _guess_control(tasks: Sequence[Task], control: str | None) -> ChoicesControl:
    """Derive a control from the annotations, for an export without labelling config."""
    annotated = find_choices(tasks)
    names = sorted({name for choices in annotated for name in choices})
    if control is None and len(names) > 1:
        raise LabelError(f"expected annotations of one <Choices>, got {', '.join(names)}; select one with --control")
    if not names or (control is not None and control not in names):
        raise LabelError(
            f"expected annotations of {control or 'a <Choices>'}, got those of {', '.join(names) or 'none'} (choices "
            "for regions do not count); label some tasks, or select another <Choices> with --control"
        )
    name = control or names[0]
    label_sets = [choices[name] for choices in annotated if name in choices]
    labels = tuple(map(Choice, sorted(frozenset().union(*label_sets))))
    multiple = any(len(each) > 1 for each in label_sets)
    return ChoicesControl(name, to_name="", value_key=_guess_key(tasks), choices=labels, multiple=multiple)


def _guess_key(tasks: Sequence[Task]) -> str:
    keys = sorted({key for task in tasks for key in _image_keys(_data(task))})
    if len(keys) != 1:
        raise LabelError(
            f"expected one key with an image in the tasks' data, got {_some(keys) or 'none'}; add --label-config"
        )
    return keys[0]


def _image_keys(data: object, key: str = "", depth: int = 0) -> Iterator[str]:
    """Yield the keys of all values that look like image references, in the syntax of `find_reference`."""
    if isinstance(data, str):
        if data.startswith(_REFERENCE_STARTS) or Path(data.partition("?")[0]).suffix.lower() in IMAGE_SUFFIXES:
            yield key
    elif depth < _MAX_DEPTH:
        named = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
        for name, value in named:
            step = f"[{name}]" if isinstance(data, list) else f".{name}" if key else name
            yield from _image_keys(value, f"{key}{step}", depth + 1)


_MAX_DEPTH: Final = 5


# ---- from tasks to a pool


def _build_pool(tasks: Iterable[Task], control: ChoicesControl, origin: str) -> LabelledPool:
    index = {label: number for number, label in enumerate(control.labels)}
    images, confirmed = list[LabelledImage](), dict[int, str]()
    left_out = defaultdict[str, list[int | str | None]](list)
    lost_labels = defaultdict[str, list[int | None]](list)
    for task in tasks:
        number = task["id"] if isinstance(task.get("id"), int) else None
        try:
            chosen = aggregate(task, control.from_name, index, multiple=control.multiple)
            labels = tuple(sorted(index[label] for label in chosen))
            reference = find_reference(_data(task), control.value_key)
            if reference is None:
                raise LeftOut(NO_IMAGE)
            if is_confirmed(task):
                if number is not None:
                    confirmed[number] = reference
                raise LeftOut(CONFIRMED)
            images.append(LabelledImage(reference, labels, number))
        except LeftOut as reason:
            left_out[str(reason)].append(number)
            for label in sorted(reason.lost):
                lost_labels[label].append(number)
    if control.multiple and (without := sum(len(left_out.get(reason, ())) for reason in _WITHOUT_CHOICE)):
        logger.warning("left out %d tasks without a choice; mark them as ground truth if no label applies", without)
    named, multiple, key = control.from_name, control.multiple, control.value_key
    return _check(
        LabelledPool(control.labels, tuple(images), named, origin, left_out, multiple, lost_labels, key, confirmed)
    )


def _data(task: Task) -> Mapping[str, Any]:
    data = task.get("data")
    return data if isinstance(data, Mapping) else {}


def _check(pool: LabelledPool) -> LabelledPool:
    """Return the pool; raise LabelError if it has fewer than two classes, or a label that is not valid UTF-8."""
    for label in pool.labels:  # Python decodes other bytes in folder names to lone surrogates
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
        f"left out: {reasons}; {_suggest_fix(pool)}"
    )


def _suggest_fix(pool: LabelledPool) -> str:
    """Suggest a remedy for a pool of fewer than two classes."""
    if nested := pool.left_out.get(NESTED):
        folder = Path(str(nested[0])).parent.parent
        return f"the images are one folder deeper: use the folder that contains the class folders, perhaps {folder}"
    if class_folders.BROKEN_LINK in pool.left_out:
        return "copy or mount the targets of the broken links"
    if class_folders.UNREADABLE in pool.left_out:
        return "allow the user of this process to read them"
    if not pool.images and class_folders.NOT_AN_IMAGE in pool.left_out:
        return f"save images as JPEG or PNG; supported suffixes are {', '.join(sorted(IMAGE_SUFFIXES))}"
    if not pool.images and class_folders.NOT_IN_A_CLASS in pool.left_out:
        return "put each image into a folder named after its class"
    return "label images of another class"
