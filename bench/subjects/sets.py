"""Sets of labelled images for studies, deterministic and cached in .cache/bench.

From the developers' shared folder: CIFAR-10 and TrashNet, with long tails of several ratios and orders, and without.
From Debian packages: drawings of several dozen subjects (openclipart-png, public domain), and letters of many fonts.
"""

import csv
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bench.subjects.model import CACHE, DIGITS_PER_CLASS, SHARED
from demo.clipart import PACKAGE
from demo.packages import unpack
from demo.pool import write_digits

CIFAR: Final = SHARED / "data" / "cifar10-lt"
TRASHNET: Final = SHARED / "data" / "trashnet"
_SETS: Final = CACHE / "sets"
_PACKAGES: Final = CACHE / "packages"
_TEST_IMAGES_PER_CLASS: Final = 200
"""Of CIFAR-10."""

_MIN_DRAWINGS, _MAX_DRAWINGS = 24, 72
_DRAWING_PX: Final = 64

_FONTS: Final = (
    "fonts-adf-accanthis", "fonts-adf-berenis", "fonts-adf-gillius", "fonts-adf-ikarius", "fonts-adf-libris",
    "fonts-adf-mekanus", "fonts-adf-oldania", "fonts-adf-romande", "fonts-adf-tribun", "fonts-adf-universalis",
    "fonts-comic-neue", "fonts-dustin", "fonts-fantasque-sans", "fonts-lato", "fonts-open-sans", "fonts-tuffy",
)  # fmt: skip
"""Debian packages of Latin fonts."""
_STYLES_PER_PACKAGE: Final = 8
_LETTERS: Final = string.digits + string.ascii_uppercase + "abdefghnqrt"
"""EMNIST's 47 classes: letters with similar upper and lower case are one class."""
_LETTER_PX: Final = 32

Images = Mapping[str, Path]
"""Options of `simulate` by name: the path of the images and, unless they are in class folders, their manifest."""
_Row = Mapping[str, str]


def long_tail(order: Sequence[str], largest: int, ratio: float) -> dict[str, int]:
    """Return numbers of images that fall geometrically from `largest` to `largest / ratio`, by class in this order."""
    return {label: round(largest * ratio ** (-place / (len(order) - 1))) for place, label in enumerate(order)}


def cifar(name: str, counts: Mapping[str, int]) -> Images:
    """Return CIFAR-10 with these numbers of images of each class in the pool; other classes are left out."""
    rows = _read(CIFAR / "manifest.csv")
    test_rows = _choose(rows, dict.fromkeys(counts, _TEST_IMAGES_PER_CLASS), test=True)
    return {"images": CIFAR / "pool.zip", "manifest": _write(name, [*_choose(rows, counts, test=False), *test_rows])}


def trashnet(name: str = "", order: Sequence[str] = (), ratio: float = 1) -> Images:
    """Return TrashNet, optionally with a long tail in which the first class is `ratio` times as large as the last."""
    manifest = TRASHNET / "manifest.csv"
    if order:
        rows = _read(manifest)
        largest = sum(row["label"] == order[0] and row["split"] == "pool" for row in rows)
        test_rows = [row for row in rows if row["split"] == "test"]
        manifest = _write(name, [*_choose(rows, long_tail(order, largest, ratio), test=False), *test_rows])
    return {"images": TRASHNET, "manifest": manifest}


def digits() -> Images:
    """Return scikit-learn's handwritten digits."""
    folder = _SETS / "digits"
    write_digits(folder, (DIGITS_PER_CLASS,) * 10)
    return {"images": folder}


def clipart() -> Images:
    """Return drawings by subject: small images of several dozen classes, the smallest a third of the largest."""
    folder = _SETS / "clipart"
    if not folder.exists():
        root = unpack([PACKAGE], _PACKAGES / PACKAGE) / PACKAGE / "usr" / "share" / "openclipart" / "png"
        draft = folder.with_suffix(".draft")
        for subject in sorted(each for each in root.glob("**/") if each != root):
            drawings = sorted(subject.glob("*.png"))
            if {"special", "unsorted"} & {*subject.parts} or len(drawings) < _MIN_DRAWINGS:
                continue
            label = draft / "_".join(subject.relative_to(root).parts)
            label.mkdir(parents=True)
            for each in np.random.default_rng(len(drawings)).permutation(len(drawings))[:_MAX_DRAWINGS]:
                _write_drawing(drawings[each], label)
        draft.rename(folder)
    return {"images": folder}


def letters() -> Images:
    """Return letters and digits in many fonts: small images of 47 classes, in a random order with a tail of 6:1."""
    folder = _SETS / "letters"
    if not folder.exists():
        draft = folder.with_suffix(".draft")
        fonts = list(_find_fonts())
        places = np.random.default_rng(0).permutation(len(_LETTERS)) / (len(_LETTERS) - 1)
        for letter, place in zip(_LETTERS, places, strict=True):
            label = draft / (f"small_{letter}" if letter.islower() else letter)
            label.mkdir(parents=True)
            rng = np.random.default_rng(ord(letter))
            for each in rng.permutation(len(fonts))[: round(len(fonts) * 6.0**-place)]:
                _write_letter(letter, fonts[each], label / f"{each}.png", rng)
        draft.rename(folder)
    return {"images": folder}


# ---- manifests


def _read(path: Path) -> list[_Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{**row, "split": "test" if row["split"] == "test" else "pool"} for row in csv.DictReader(file)]


def _choose(rows: Sequence[_Row], counts: Mapping[str, int], *, test: bool) -> list[_Row]:
    """Return `counts` rows of each class; a smaller number selects a subset of the rows of a larger one."""
    chosen = []
    for label, count in counts.items():
        members = [row for row in rows if row["label"] == label and (row["split"] == "test") is test]
        order = np.random.default_rng([0, *label.encode()]).permutation(len(members))
        chosen += [members[each] for each in sorted(order[:count])]
    return chosen


def _write(name: str, rows: Sequence[_Row]) -> Path:
    path = _SETS / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("path", "label", "split"), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


# ---- Debian packages


def _write_drawing(source: Path, folder: Path) -> None:
    with Image.open(source) as opened:
        image = opened.convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    paper.convert("RGB").resize((_DRAWING_PX, _DRAWING_PX), Image.Resampling.BOX).save(folder / source.name)


def _find_fonts() -> Iterator[Path]:
    for package in sorted(unpack(_FONTS, _PACKAGES / "fonts").iterdir()):
        files = sorted(each for each in package.rglob("*") if each.suffix.lower() in (".ttf", ".otf"))
        yield from [each for each in files if _has_letters(each)][:_STYLES_PER_PACKAGE]


def _has_letters(path: Path) -> bool:
    try:
        font = ImageFont.truetype(path, _LETTER_PX)
        drawn = {bytes(font.getmask(letter)) for letter in _LETTERS}
    except OSError:
        return False
    return len(drawn) == len(_LETTERS)


def _write_letter(letter: str, path: Path, file: Path, rng: np.random.Generator) -> None:
    """Draw a letter of random size, position and grey on a random grey, with noise."""
    font = ImageFont.truetype(path, int(rng.integers(16, 27)))
    left, top, right, bottom = font.getbbox(letter)
    grey = int(rng.integers(0, 256))
    image = Image.new("L", (_LETTER_PX, _LETTER_PX), grey)
    x, y = (_LETTER_PX - (right - left)) * rng.random(), (_LETTER_PX - (bottom - top)) * rng.random()
    ImageDraw.Draw(image).text((x - left, y - top), letter, fill=(grey + int(rng.integers(80, 177))) % 256, font=font)
    noisy = np.asarray(image) + rng.normal(0, 12, (_LETTER_PX, _LETTER_PX))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file)
