"""The subject of benchmarks: a version made by the trainer, and photos it was not trained on.

Versions are cached in .cache/bench by their arguments and a digest of the trainer's source code. Photos come from the
developers' shared folder next to the checkout, or else are scikit-learn's handwritten digits.
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

from bench.subjects.photos import pink_noise
from contract.errors import NothingPublished
from contract.versions.repository import Repository
from contract.versions.version import Version
from demo.pool import write_digits
from demo.product import CHECKOUT

CACHE = CHECKOUT / ".cache" / "bench"

SHARED = CHECKOUT.parent / "shared"
"""The developers' folder of photos and weights next to the checkout, which may not exist."""
_TRASHNET = SHARED / "data" / "trashnet"
WEIGHTS = SHARED / "weights" / "vgg16_features.pth"
"""Weights of VGG-16's convolutions, pretrained on ImageNet."""
DIGITS_PER_CLASS = 170
_SEED = 20_261_123
"""Seed of the order of the photos, so that subjects with more labels include those with fewer."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained version, and photos for it."""

    version: Version
    root: Path
    """Root of a repository that contains this version only."""
    photos: tuple[Path, ...]
    """Photos the version was not trained on, in a fixed order."""
    source: str
    """Description of the photos."""


@dataclass(frozen=True, slots=True)
class Photos:
    """Labelled photos, and the initial weights of networks trained on them."""

    files: tuple[tuple[Path, str], ...]
    name: str
    description: str
    """Description of photos and weights."""
    weights: str


def train_subject(*, image_size: int = 224, labels: int = 400, precision: Literal["auto", "fp32"] = "auto") -> Subject:
    """Return a version of VGG-16 published by the trainer, from the cache if possible; logs to stderr.

    Its head is trained on the first `labels` photos, whatever the other arguments. Versions with equal image sizes
    share a backbone.
    """
    photos = labelled_photos()
    if not 0 < labels < len(photos.files):
        highest = len(photos.files) - 1
        raise ValueError(f"expected labels between 1 and {highest}, so that photos remain; got {labels}")
    arguments = f"{photos.name}-{image_size}px-{labels}-{precision}"
    folder = CACHE / f"{arguments}-{_digest_of_sources()}"
    repository = Repository(folder / "models")
    with suppress(NothingPublished):
        return _open_subject(repository, photos, labels)
    for stale in CACHE.glob(f"{arguments}-*"):
        shutil.rmtree(stale)
    for path, label in photos.files[:labels]:
        (folder / "labelled" / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / "labelled" / label / path.name)
    print(f"training once, cached in {folder.relative_to(CHECKOUT)}", file=sys.stderr)
    command = [sys.executable, "-m", "trainer", "run", f"--images={folder / 'labelled'}", f"--image-size={image_size}"]
    command += [f"--precision={precision}", "--train=classifier", f"--weights={photos.weights}"]
    environment = clean_environment(LABELNEXT_MODELS=str(folder / "models"))
    subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=sys.stderr, check=True)
    return _open_subject(repository, photos, labels)


def labelled_photos() -> Photos:
    """Return all photos, in the order of `train_subject`."""
    if _TRASHNET.is_dir() and WEIGHTS.is_file():
        name, weights, description = "trashnet", str(WEIGHTS), "trashnet photos, VGG-16 from shared weights"
        with (_TRASHNET / "manifest.csv").open(encoding="utf-8", newline="") as file:
            files = [(_TRASHNET / row["path"], row["label"]) for row in csv.DictReader(file)]
    else:
        name, weights, description = "digits", "none", "digits"
        folder = CACHE / "digits"
        write_digits(folder, (DIGITS_PER_CLASS,) * 10)
        files = [(path, path.parent.name) for path in sorted(folder.glob("*/*.png"))]
    files = random.Random(_SEED).sample(files, len(files))  # noqa: S311  # an order, not a secret
    return Photos(tuple(files), name, description, weights)


def clean_environment(**settings: str) -> dict[str, str]:
    """Return this process's environment, with these LABELNEXT_ variables only."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LABELNEXT_")}
    return {**kept, **settings}


def small_images(count: int) -> list[Path]:
    """Return the paths of distinct small images with the texture of photos, cached."""
    folder = CACHE / "small-images"
    paths = [folder / f"{number}.png" for number in range(count)]
    if not paths[-1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        for path, pixels in zip(paths, pink_noise(count, size=32), strict=True):
            Image.fromarray(pixels).save(path)
    return paths


@contextmanager
def working_folder(*versions: Version) -> Iterator[Path]:
    """Context manager for a temporary folder whose repository `models` links to the versions, the first one current.

    Their files have been read once, so that they are in the page cache.
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


def _open_subject(repository: Repository, photos: Photos, labels: int) -> Subject:
    version = repository.open(repository.current())
    return Subject(version, repository.root, tuple(path for path, _ in photos.files[labels:]), photos.description)
