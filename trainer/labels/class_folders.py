"""Class folders: which images lie in which, and what else lies there, by why it is none.

An image counts for the class in whose folder it lies. One that lies deeper is left out and named: it may be of that
class, but as well of a class of its own in a folder that stands for something else, such as train and val. Works on
folders and on those in a zip. Opens no file.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

IMAGE_SUFFIXES: Final = frozenset(
    {".apng", ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
"""What a file in a class folder must end with, in either case, to be taken for an image."""

NOT_AN_IMAGE: Final = "file not named as an image that is decoded"
NOT_IN_A_CLASS: Final = "file outside a class folder"
NESTED: Final = "image in a folder below a class folder"
BROKEN_LINK: Final = "broken link"
UNREADABLE: Final = "folder or file that must not be read"
EMPTY_FOLDER: Final = "folder without an image"

_FOLDER: Final = "folder"
_IMAGE: Final = "image"
_OF_SYSTEMS: Final = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "desktop.ini", "lost+found", "system volume information"}
    | {"thumbs.db", "ehthumbs.db", "__pycache__"}
)
"""Folders and files that systems leave everywhere, in lower case; those whose names begin with a dot are others."""


def find_images(root: Path) -> tuple[Mapping[str, Sequence[Path]], Mapping[str, Sequence[str]]]:
    """Return the images by class, all sorted by name, and other paths below `root` by why they are none.

    What systems and people hide is passed over, and links are followed. Names of classes are composed (NFC): macOS
    takes letters apart that people type as one.
    """
    images, left_out = defaultdict[str, list[Path]](list), defaultdict[str, list[str]](list)
    start = f"{str(root).rstrip('/')}/"

    def leave_out(reason: str, entry: Path) -> None:
        left_out[reason].append(as_text(str(entry).removeprefix(start)))

    for place, folder in _look(root):
        if place != _FOLDER:
            leave_out(NOT_IN_A_CLASS if place in {_IMAGE, NOT_AN_IMAGE} else place, folder)
            continue
        content = _look(folder)
        for kind, entry in content:
            if kind == _IMAGE:
                images[to_nfc(folder.name)].append(entry)
            elif kind != _FOLDER:
                leave_out(kind, entry)
        below = list(_look_below(content, {os.path.realpath(str(folder))}))
        if all(kind == NOT_AN_IMAGE for kind, _ in below) and all(kind == _FOLDER for kind, _ in content):
            leave_out(EMPTY_FOLDER, folder)
        for kind, entry in below:
            if kind != NOT_AN_IMAGE:
                leave_out(NESTED if kind == _IMAGE else kind, entry)
    return dict(sorted(images.items())), dict(left_out)


def is_ignored(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or something that systems leave behind."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def to_nfc(name: str) -> str:
    """Return the name of a class as people type it."""
    return unicodedata.normalize("NFC", name)


def as_text(path: str) -> str:
    """Return a path as logs and reports may hold it: names of files may be of other bytes than UTF-8."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _look_below(content: Sequence[tuple[str, Path]], seen: set[str]) -> Iterator[tuple[str, Path]]:
    """What lies in the folders among these, however deep; none is looked into twice, as by a link that leads back."""
    for kind, entry in content:
        if kind == _FOLDER and (place := os.path.realpath(str(entry))) not in seen:
            seen.add(place)
            below = _look(entry)
            yield from (each for each in below if each[0] != _FOLDER)
            yield from _look_below(below, seen)


def _look(folder: Path) -> list[tuple[str, Path]]:
    """What lies in a folder, sorted by name, each with its kind or with why it is none."""
    try:
        entries = [entry for entry in folder.iterdir() if not is_ignored(entry.name)]
    except OSError:
        return [(UNREADABLE, folder)]
    return [(_kind_of(entry), entry) for entry in sorted(entries, key=lambda each: each.name)]


def _kind_of(entry: Path) -> str:
    try:
        if entry.is_dir():
            return _FOLDER
        if entry.is_file():
            return _IMAGE if entry.suffix.lower() in IMAGE_SUFFIXES else NOT_AN_IMAGE
        return BROKEN_LINK if entry.is_symlink() else NOT_AN_IMAGE
    except OSError:
        return UNREADABLE
