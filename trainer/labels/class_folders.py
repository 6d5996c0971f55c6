"""Lists the images of class folders, and the files that are left out, with the reason.

An image's class is the name of its folder. Images in nested folders are left out and reported, since the outer folder
may not be a class, as with train and val. Works on folders and inside zip archives, and opens no file.
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
"""File suffixes of images, in lower case; upper case is accepted too."""

NOT_AN_IMAGE: Final = "file without a supported image suffix"
NOT_IN_A_CLASS: Final = "file outside a class folder"
NESTED: Final = "image in a nested folder"
BROKEN_LINK: Final = "broken link"
UNREADABLE: Final = "unreadable folder or file"
EMPTY_FOLDER: Final = "folder without an image"

_FOLDER: Final = "folder"
_IMAGE: Final = "image"
_SYSTEM_NAMES: Final = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "desktop.ini", "lost+found", "system volume information"}
    | {"thumbs.db", "ehthumbs.db", "__pycache__"}
)
"""Folders and files created by operating systems, in lower case; names that begin with a dot are ignored too."""


def find_images(root: Path) -> tuple[Mapping[str, Sequence[Path]], Mapping[str, Sequence[str]]]:
    """Return the images by class, sorted by name, and the other paths below `root` by the reason they are left out.

    Hidden and system files are ignored; links are followed. A folder without an image of its own is no class. Class
    names are normalised to NFC, since macOS stores accented letters decomposed.
    """
    images, left_out = defaultdict[str, list[Path]](list), defaultdict[str, list[str]](list)
    start = f"{str(root).rstrip('/')}/"

    def leave_out(reason: str, entry: Path) -> None:
        left_out[reason].append(as_text(str(entry).removeprefix(start)))

    for root_kind, folder in _list_entries(root):
        if root_kind != _FOLDER:
            leave_out(NOT_IN_A_CLASS if root_kind in {_IMAGE, NOT_AN_IMAGE} else root_kind, folder)
            continue
        content = _list_entries(folder)
        for kind, entry in content:
            if kind == _IMAGE:
                images[to_nfc(folder.name)].append(entry)
            elif kind != _FOLDER:
                leave_out(kind, entry)
        below = list(_walk_below(content, {os.path.realpath(str(folder))}))
        if all(kind == NOT_AN_IMAGE for kind, _ in below) and all(kind == _FOLDER for kind, _ in content):
            leave_out(EMPTY_FOLDER, folder)
        for kind, entry in below:
            if kind != NOT_AN_IMAGE:
                leave_out(NESTED if kind == _IMAGE else kind, entry)
    return dict(sorted(images.items())), dict(left_out)


def is_ignored(name: str) -> bool:
    """Return whether a file or folder is hidden or created by an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def to_nfc(name: str) -> str:
    """Normalise a class name to composed characters."""
    return unicodedata.normalize("NFC", name)


def as_text(path: str) -> str:
    """Return a path as valid UTF-8, for logs and reports; other bytes in file names are replaced."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _walk_below(content: Sequence[tuple[str, Path]], seen: set[str]) -> Iterator[tuple[str, Path]]:
    """Yield the files in the folders of `content`, at any depth; each folder once, in case of cyclic links."""
    for kind, entry in content:
        if kind == _FOLDER and (resolved := os.path.realpath(str(entry))) not in seen:
            seen.add(resolved)
            below = _list_entries(entry)
            yield from (each for each in below if each[0] != _FOLDER)
            yield from _walk_below(below, seen)


def _list_entries(folder: Path) -> list[tuple[str, Path]]:
    """Return the entries of a folder, sorted by name, each with its kind or the reason to leave it out."""
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
