"""Class folders: which images lie in which, and what else lies there, by why it is none.

An image counts for the class in whose folder it lies. One that lies deeper is left out and named: it may be of that
class, but as well of a class of its own in a folder that stands for something else, such as train and val. Works on
folders and on those in a zip. Opens no file.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

IMAGE_SUFFIXES: Final = frozenset(
    {".apng", ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
"""What a file in a class folder must end with, in either case, to be taken for an image."""

NOT_AN_IMAGE: Final = "file without an image suffix"
NOT_IN_A_CLASS: Final = "file outside a class folder"
NESTED: Final = "image in a folder below a class folder"
BROKEN_LINK: Final = "broken link"
UNREADABLE: Final = "folder or file that must not be read"

_OF_SYSTEMS: Final = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "desktop.ini", "lost+found", "system volume information"}
    | {"thumbs.db", "ehthumbs.db", "__pycache__"}
)
"""Folders and files that systems leave everywhere, in lower case; those whose names begin with a dot are others."""


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in a folder of class folders."""

    images: Mapping[str, Sequence[Path]]
    """By class, all sorted by name; a folder without an image of its own is no class."""
    left_out: Mapping[str, Sequence[str]]
    """Paths below the folder, by why they are no images of a class."""
    emptied: tuple[str, ...]
    """Class folders that have no image of their own, but some in folders below."""


def find_images(root: Path) -> Found:
    """Look through a folder of class folders.

    What systems and people hide is passed over without a word. Links are followed.
    """
    left_out = defaultdict[str, list[str]](list)
    classes: dict[str, _Class] = {}
    top = _look(root)
    for folder in top.folders:
        classes[folder.name] = _look_into(folder)
    for reason, entries in ((NOT_IN_A_CLASS, top.files), *top.faults.items()):
        left_out[reason] += _named(entries, root)
    for each in classes.values():
        for reason, entries in each.left_out.items():
            left_out[reason] += _named(entries, root)
    return Found(
        images={name: each.images for name, each in classes.items() if each.images},
        left_out={reason: paths for reason, paths in left_out.items() if paths},
        emptied=tuple(name for name, each in classes.items() if not each.images and NESTED in each.left_out),
    )


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or something that systems leave behind."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def as_text(path: str) -> str:
    """Return a path as logs and reports may hold it: names of files may be of other bytes than UTF-8."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _named(entries: Sequence[Path], root: Path) -> list[str]:
    start = f"{str(root).rstrip('/')}/"
    return [as_text(str(entry).removeprefix(start)) for entry in entries]


@dataclass(frozen=True, slots=True)
class _Class:
    """What lies in a class folder and below."""

    images: Sequence[Path]
    left_out: Mapping[str, Sequence[Path]]


@dataclass(frozen=True, slots=True)
class _Content:
    """What lies in a folder, sorted by name; hidden files left out."""

    folders: Sequence[Path]
    files: Sequence[Path]
    faults: Mapping[str, Sequence[Path]]
    """What is neither, by reason."""


def _look_into(folder: Path) -> _Class:
    content = _look(folder)
    left_out = defaultdict[str, list[Path]](list, {reason: list(found) for reason, found in content.faults.items()})
    left_out[NOT_AN_IMAGE] += [file for file in content.files if not _is_image(file)]
    waiting, seen = list(reversed(content.folders)), {os.path.realpath(str(folder))}
    while waiting:
        below = waiting.pop()
        place = os.path.realpath(str(below))
        if place in seen:  # by a link that leads back
            continue
        seen.add(place)
        content_below = _look(below)
        left_out[NESTED] += [file for file in content_below.files if _is_image(file)]
        for reason, found in content_below.faults.items():
            left_out[reason] += found
        waiting += reversed(content_below.folders)
    images = [file for file in content.files if _is_image(file)]
    return _Class(images, {reason: found for reason, found in left_out.items() if found})


def _look(folder: Path) -> _Content:
    folders: list[Path] = []
    files: list[Path] = []
    faults = defaultdict[str, list[Path]](list)
    try:
        entries = sorted(
            (each for each in folder.iterdir() if not is_passed_over(each.name)), key=lambda each: each.name
        )
    except OSError:
        return _Content([], [], {UNREADABLE: [folder]})
    for entry in entries:
        try:
            if entry.is_dir():
                folders.append(entry)
            elif entry.is_file():
                files.append(entry)
            else:
                faults[BROKEN_LINK if entry.is_symlink() else NOT_AN_IMAGE].append(entry)
        except OSError:
            faults[UNREADABLE].append(entry)
    return _Content(folders, files, faults)
