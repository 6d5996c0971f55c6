import csv
from collections import Counter

import pytest
from PIL import Image

from bench.subjects import sets

CLASSES = ("automobile", "cat", "frog")


@pytest.fixture(autouse=True)
def _folders(monkeypatch, tmp_path):
    monkeypatch.setattr(sets, "_SETS", tmp_path / "sets")
    monkeypatch.setattr(sets, "_PACKAGES", tmp_path / "packages")


@pytest.fixture
def shared(monkeypatch, tmp_path):
    """Three classes with 60 pool and 20 test images each, of which 5 are used."""
    root = tmp_path / "shared"
    for name, file in (("CIFAR", "pool.zip"), ("TRASHNET", "images")):
        (root / name).mkdir(parents=True)
        (root / name / file).touch()
        with (root / name / "manifest.csv").open("w", newline="") as manifest:
            writer = csv.writer(manifest)
            writer.writerow(("path", "label", "split"))
            for split, count in (("pool", 60), ("test", 20)):
                writer.writerows((f"{split}/{each}/{n}.jpg", each, split) for each in CLASSES for n in range(count))
        monkeypatch.setattr(sets, name, root / name)
    monkeypatch.setattr(sets, "_TESTED_EACH", 5)


def read(found):
    with found["manifest"].open(newline="") as file:
        return list(csv.DictReader(file))


def count(rows):
    return Counter((row["label"], row["split"]) for row in rows)


def test_a_set_has_as_many_of_each_class_as_is_said(shared):
    """Equal numbers of test images; a subset of a larger set; classes not named are absent."""
    rows, more = (read(sets.cifar(f"{n}", {"cat": n, "frog": 3})) for n in (30, 50))
    assert count(rows) == {("cat", "pool"): 30, ("frog", "pool"): 3, ("cat", "test"): 5, ("frog", "test"): 5}
    assert all(row["path"].startswith(f"{row['split']}/{row['label']}/") for row in rows)
    paths, larger = ({row["path"] for row in each} for each in (rows, more))
    assert len(paths) == len(rows)
    assert paths < larger


def test_a_tail_falls_in_the_order_that_is_asked_for(shared):
    """By the same factor from class to class, with all test images."""
    found = count(read(sets.trashnet("tail", ["frog", "automobile", "cat"], 36)))
    assert [found[each, "pool"] for each in ("frog", "automobile", "cat")] == [60, 10, 2]
    assert {found[each, "test"] for each in CLASSES} == {20}


def test_drawings_are_classed_by_their_folders(monkeypatch, tmp_path):
    root = tmp_path / "packages" / "openclipart-png" / "openclipart-png" / "usr" / "share" / "openclipart" / "png"
    for subject, many in (("food/fruit", 90), ("food", 30), ("tools", 3), ("unsorted/x", 50)):
        (root / subject).mkdir(parents=True, exist_ok=True)
        for n in range(many):
            Image.new("RGBA", (90, 50), (n, 0, 0, 0)).save(root / subject / f"{n}.png")
    folder = sets.clipart()["images"]
    assert {each.name: len(list(each.iterdir())) for each in folder.iterdir()} == {"food_fruit": 72, "food": 30}
    image = Image.open(next(folder.glob("*/*")))
    assert (image.mode, image.size, image.getextrema()) == ("RGB", (64, 64), ((255, 255),) * 3)
