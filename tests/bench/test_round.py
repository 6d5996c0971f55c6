import hashlib

import numpy as np
from PIL import Image

from bench.round import Round
from bench.subjects.photos import make_variations
from trainer.watching.watcher import _describe_stages


def test_a_round_is_parsed_from_the_log_of_the_watch():
    """With any prefix, with or without deleted predictions; a ranking alone is no round."""
    training, ranking = {"labels": 1.0, "fit": 2.5}, {"score": 4.5, "clear": 30.0}
    text = _describe_stages(training, ranking, seconds=47.5)
    stages = {"start": 9.5, "labels": 1.0, "fit": 2.5, "score": 4.5}
    assert Round.parse(f"50 new labels: trained v1 on 550 labels; ranked 9 tasks; {text}") == Round(17.5, stages, 30.0)
    text = _describe_stages(training, {"score": 4.5}, seconds=17.5)
    assert Round.parse(f"50 new labels: trained v1; {text}") == Round(17.5, stages, 0.0)
    for line in ("", "watching project 5: a round after 20 new labels", "x: ranked 9 tasks; 12 s"):
        assert Round.parse(line) is None


def test_photos_are_varied_into_as_many_files_as_are_asked_for(tmp_path):
    """All distinct, with the class of their photo, and deterministic."""
    photos = []
    for number, label in enumerate("ab"):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{label}.png")
        photos.append((tmp_path / f"{label}.png", label))
    made = make_variations(photos, 9, folder=tmp_path / "one")
    assert [label for _, label in made] == list("ababababa")
    contents = [hashlib.sha256(path.read_bytes()).digest() for path, _ in made]
    assert len(set(contents)) == 9
    again = make_variations(photos, 9, folder=tmp_path / "other")
    assert [hashlib.sha256(path.read_bytes()).digest() for path, _ in again] == contents
    assert sorted(tmp_path.glob("one/*")) == sorted(path for path, _ in made)
