"""What the benches measure on: a version that the trainer really made, and photos that it has not seen.

A version is trained once for each set of arguments and kept below .cache/bench, under a name that holds a digest of the
sources it was made by; the next bench takes it from there. The photos are real ones where the developers' shared folder
lies beside the checkout, and otherwise scikit-learn's handwritten digits.
"""

import csv
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from bench.subjects.photos import coloured_noise
from contract.errors import NothingPublished
from contract.versions.repository import Repository
from contract.versions.version import Version
from demo.pool import write_digits
from demo.product import CHECKOUT

CACHE = CHECKOUT / ".cache" / "bench"

SHARED = CHECKOUT.parent / "shared"
"""The developers' folder of photos and weights, which lies beside the checkout, or does not."""
_TRASHNET = SHARED / "data" / "trashnet"
WEIGHTS = SHARED / "weights" / "vgg16_features.pth"
"""Of VGG-16's convolutions, made on ImageNet."""
DIGITS_OF_EACH = 170
_ORDER = 20_261_123
"""Seeds the order of the photos: subjects of one source differ in how many they label, not in which."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained version, and photos for it."""

    version: Version
    root: Path
    """Of the repository that holds the version, and no other."""
    photos: tuple[Path, ...]
    """Those that the version was not trained on, in an order that is always the same."""
    source: str
    """The description of the photos."""


@dataclass(frozen=True, slots=True)
class Photos:
    """Labelled photos, and what a network that learns them starts from."""

    files: tuple[tuple[Path, str], ...]
    name: str
    description: str
    """What the photos are and what the network starts from, for people."""
    weights: str


def trained(*, image_size: int = 224, labels: int = 400, precision: Literal["auto", "fp32"] = "auto") -> Subject:
    """Return a head on VGG-16 that the trainer published, trained now unless it was; its progress goes to stderr.

    It is trained on the first `labels` photos of an order that the other arguments do not change. All that are made for
    one size of images have one backbone.
    """
    photos = labelled_photos()
    if not 0 < labels < len(photos.files):
        most = len(photos.files) - 1
        raise ValueError(f"expected labels between 1 and {most}, since photos must be left; got {labels}")
    arguments = f"{photos.name}-{image_size}px-{labels}-{precision}"
    folder = CACHE / f"{arguments}-{_digest_of_sources()}"
    repository = Repository(folder / "models")
    with suppress(NothingPublished):
        return _subject(repository, photos, labels)
    for stale in CACHE.glob(f"{arguments}-*"):
        shutil.rmtree(stale)
    for path, label in photos.files[:labels]:
        (folder / "labelled" / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / "labelled" / label / path.name)
    print(f"training once, kept in {folder.relative_to(CHECKOUT)}", file=sys.stderr)
    command = [sys.executable, "-m", "trainer", "run", f"--images={folder / 'labelled'}", f"--image-size={image_size}"]
    command += [f"--precision={precision}", "--train=classifier", f"--weights={photos.weights}"]
    environment = clean_environment(LABELNEXT_MODELS=str(folder / "models"))
    subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=sys.stderr, check=True)
    return _subject(repository, photos, labels)


def labelled_photos() -> Photos:
    """Return all photos, in the order that `trained` takes them in."""
    if _TRASHNET.is_dir() and WEIGHTS.is_file():
        name, weights, description = "trashnet", str(WEIGHTS), "trashnet photos, VGG-16 from shared weights"
        with (_TRASHNET / "manifest.csv").open(encoding="utf-8", newline="") as file:
            found = [(_TRASHNET / row["path"], row["label"]) for row in csv.DictReader(file)]
    else:
        name, weights, description = "digits", "none", "digits"
        folder = CACHE / "digits"
        write_digits(folder, (DIGITS_OF_EACH,) * 10)
        found = [(path, path.parent.name) for path in sorted(folder.glob("*/*.png"))]
    files = random.Random(_ORDER).sample(found, len(found))  # noqa: S311  # an order, not a secret
    return Photos(tuple(files), name, description, weights)


def clean_environment(**settings: str) -> dict[str, str]:
    """Return this process's environment, with these settings of ours and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LABELNEXT_")}
    return {**kept, **settings}


def small_images(count: int) -> list[Path]:
    """Return different images of few pixels, as rough as photos are, written once."""
    folder = CACHE / "small-images"
    paths = [folder / f"{number}.png" for number in range(count)]
    if not paths[-1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        for path, pixels in zip(paths, coloured_noise(count, size=32), strict=True):
            Image.fromarray(pixels).save(path)
    return paths


@contextmanager
def workplace(*versions: Version) -> Iterator[Path]:
    """Give a folder whose repository `models` has links to the versions, the first one current, until the block ends.

    Their files have been read once, so that none comes from a cold disk afterwards.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".work-") as folder:
        repository = Repository(Path(folder) / "models")
        repository.folder.mkdir(parents=True)
        for version in versions:
            (repository.folder / version.name).symlink_to(version.path, target_is_directory=True)
            version.verify()
        repository.set_current(versions[0].name)
        yield Path(folder)


def _digest_of_sources() -> str:
    sha256 = hashlib.sha256()
    for path in sorted(path for package in ("trainer", "contract") for path in (CHECKOUT / package).rglob("*.py")):
        sha256.update(path.relative_to(CHECKOUT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return sha256.hexdigest()[:12]


def _subject(repository: Repository, photos: Photos, labels: int) -> Subject:
    version = repository.open(repository.current())
    return Subject(version, repository.root, tuple(path for path, _ in photos.files[labels:]), photos.description)
