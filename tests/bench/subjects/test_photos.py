import hashlib

import numpy as np
from PIL import Image

from bench.subjects.photos import make_variations


def test_variations_are_distinct_and_deterministic(tmp_path):
    """Each has the class of its photo."""
    photos = []
    for number, label in enumerate("ab"):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{label}.png")
        photos.append((tmp_path / f"{label}.png", label))
    variations = make_variations(photos, 9, folder=tmp_path / "one")
    assert [label for _, label in variations] == list("ababababa")
    contents = [hashlib.sha256(path.read_bytes()).digest() for path, _ in variations]
    assert len(set(contents)) == 9
    again = make_variations(photos, 9, folder=tmp_path / "other")
    assert [hashlib.sha256(path.read_bytes()).digest() for path, _ in again] == contents
    assert sorted(tmp_path.glob("one/*")) == sorted(path for path, _ in variations)
