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
    monkeypatch.setattr(sets, "_TEST_IMAGES_PER_CLASS", 5)


def read(images):
    with images["manifest"].open(newline="") as file:
        return list(csv.DictReader(file))


def count_images(rows):
    return Counter((row["label"], row["split"]) for row in rows)


def test_cifar_selects_the_requested_counts(shared):
    """A smaller set is a subset of a larger one."""
    rows, larger_rows = (read(sets.cifar(f"{n}", {"cat": n, "frog": 3})) for n in (30, 50))
    assert count_images(rows) == {("cat", "pool"): 30, ("frog", "pool"): 3, ("cat", "test"): 5, ("frog", "test"): 5}
    assert all(row["path"].startswith(f"{row['split']}/{row['label']}/") for row in rows)
    paths, larger = ({row["path"] for row in each} for each in (rows, larger_rows))
    assert len(paths) == len(rows)
    assert paths < larger


def test_long_tail_follows_the_class_order(shared):
    """Class sizes fall geometrically; all test images remain."""
    counts = count_images(read(sets.trashnet("tail", ["frog", "automobile", "cat"], 36)))
    assert [counts[each, "pool"] for each in ("frog", "automobile", "cat")] == [60, 10, 2]
    assert {counts[each, "test"] for each in CLASSES} == {20}


def test_clipart_classes_are_subfolders(monkeypatch, tmp_path):
    root = tmp_path / "packages" / "openclipart-png" / "openclipart-png" / "usr" / "share" / "openclipart" / "png"
    for subject, many in (("food/fruit", 90), ("food", 30), ("tools", 3), ("unsorted/x", 50)):
        (root / subject).mkdir(parents=True, exist_ok=True)
        for n in range(many):
            Image.new("RGBA", (90, 50), (n, 0, 0, 0)).save(root / subject / f"{n}.png")
    folder = sets.clipart()["images"]
    assert {each.name: len(list(each.iterdir())) for each in folder.iterdir()} == {"food_fruit": 72, "food": 30}
    image = Image.open(next(folder.glob("*/*")))
    assert (image.mode, image.size, image.getextrema()) == ("RGB", (64, 64), ((255, 255),) * 3)
