"""Public-domain drawings of the Open Clip Art Library in class folders, from Debian's package.

The package is not installed; it is unpacked into a temporary folder.
"""

import hashlib
import os
import struct
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from demo.packages import PackageError, unpack

PACKAGE = "openclipart-png"
ORIGIN = "drawings from the Open Clip Art Library, public domain"

CLASSES = {
    "bird": "animals/birds",
    "bug": "animals/bugs",
    "dinosaur": "animals/dinosaurs",
    "fish": "animals/fish",
    "flower": "plants/flowers",
    "food": "food",
    "mammal": "animals/mammals",
    "vehicle": "transportation/vehicles",
}
"""The package's folder of each class."""

_MIN_IMAGES = 10  # of each class; fewer mean that the layout of the package has changed
_FOLDER = Path("usr/share/openclipart/png")
_SIDE_PX = 320
_MAX_PIXELS = 10_000_000  # eleven drawings have 17 times as many and would take longer than all others together


def provide_drawings(root: Path) -> None:
    """Write the drawings into class folders below `root` unless it exists: RGB on white, at most 320 pixels a side.

    Identical drawings are written once; those in folders of two classes are left out. Raises PackageError if the
    package cannot be downloaded, or its drawings are not as expected.
    """
    if root.exists():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{root.name}-", dir=root.parent) as scratch:
        source = Path("/") / _FOLDER  # if the package is installed
        if not source.is_dir():
            source = unpack([PACKAGE], Path(scratch) / "content") / PACKAGE / _FOLDER
        made = Path(scratch) / "made"
        _write(_choose(source), made)
        made.rename(root)


def _choose(source: Path) -> Mapping[str, Sequence[Path]]:
    """Return the distinct drawings of each class, without those that are too large to decode quickly."""
    copies: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for label, folder in CLASSES.items():
        for path in sorted((source / folder).rglob("*.png")):
            content = path.read_bytes()
            width, height = struct.unpack(">II", content[16:24])  # of the IHDR chunk, which comes first
            if width * height <= _MAX_PIXELS:
                copies[hashlib.sha256(content).hexdigest()].append((label, path))
    chosen: dict[str, list[Path]] = {label: [] for label in CLASSES}
    for same in copies.values():
        if len({label for label, _ in same}) == 1:
            label, path = same[0]
            chosen[label].append(path)
    if few := [f"{len(paths)} of {label}" for label, paths in chosen.items() if len(paths) < _MIN_IMAGES]:
        raise PackageError(
            f"expected at least {_MIN_IMAGES} drawings of each class in {PACKAGE}, found {', '.join(few)}"
        )
    return chosen


def _write(chosen: Mapping[str, Sequence[Path]], root: Path) -> None:
    for label in chosen:
        (root / label).mkdir(parents=True)
    numbered = chain.from_iterable(
        ((path, root / label / f"{number:03}.png") for number, path in enumerate(paths))
        for label, paths in chosen.items()
    )
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(lambda pair: _draw(*pair), numbered):
            pass


def _draw(source: Path, target: Path) -> None:
    """Save a drawing on a white background, unless it is blank."""
    try:
        with Image.open(source) as opened:
            drawing = opened.convert("RGBA")
    except (UnidentifiedImageError, OSError) as err:
        raise PackageError(f"cannot read {source.name} of {PACKAGE}: {err}") from err
    drawing.thumbnail((_SIDE_PX, _SIDE_PX), reducing_gap=2.0)
    paper = Image.new("RGB", drawing.size, "white")
    paper.paste(drawing, mask=drawing)
    if paper.getcolors(maxcolors=1) is None:  # None: more than one colour
        paper.save(target)
