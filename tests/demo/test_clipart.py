from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from demo import clipart
from demo.clipart import CLASSES, provide_drawings
from demo.packages import PackageError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package with ten different drawings of each class."""
    root = tmp_path / "system" / "openclipart"
    for shade, folder in enumerate(CLASSES.values()):
        for number in range(10):
            drawing = Image.new("RGBA", (400, 100))
            ImageDraw.Draw(drawing).rectangle((100, 10, 120 + number, 60), fill=(shade * 20, number * 20, 90, 255))
            path = root / folder / "deeper" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing.save(path)
    monkeypatch.setattr(clipart, "_FOLDER", root)
    return root


@pytest.mark.usefixtures("package")
def test_drawings_are_flattened_onto_white_and_scaled_down(tmp_path: Path):
    provide_drawings(tmp_path / "drawings")
    paths = sorted((tmp_path / "drawings").glob("*/*.png"))
    assert [path.parent.name for path in paths] == [label for label in CLASSES for _ in range(10)]
    with Image.open(paths[0]) as drawing:
        assert (drawing.mode, drawing.size) == ("RGB", (320, 80))
        assert (drawing.getpixel((0, 0)), drawing.getpixel((88, 20))) == ((255, 255, 255), (0, 0, 90))


def test_duplicate_ambiguous_and_empty_drawings_are_left_out(package: Path, tmp_path: Path):
    """A drawing in the folders of two classes is ambiguous."""
    fish, birds = package / CLASSES["fish"], package / CLASSES["bird"]
    for number, name in enumerate(("trout", "whale")):
        picture = Image.new("RGB", (9, 9), "navy")
        picture.putpixel((4, number), (255, 0, 0))
        picture.save(fish / f"{name}.png")
    (fish / "trout again.png").symlink_to(fish / "trout.png")
    (birds / "whale.png").symlink_to(fish / "whale.png")
    Image.new("RGBA", (9, 9)).save(birds / "nothing.png")
    provide_drawings(tmp_path / "drawings")
    counts = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "drawings").iterdir()}
    assert counts == dict.fromkeys(CLASSES, 10) | {"fish": 11}


@pytest.mark.usefixtures("package")
def test_existing_drawings_are_kept(tmp_path: Path):
    (tmp_path / "drawings").mkdir()
    provide_drawings(tmp_path / "drawings")
    assert list((tmp_path / "drawings").iterdir()) == []


def test_a_package_with_too_few_drawings_is_refused(package: Path, tmp_path: Path):
    """No files are left."""
    for path in (package / CLASSES["fish"]).rglob("*.png"):
        path.unlink()
    with pytest.raises(
        PackageError, match=r"expected at least 10 drawings of each class in openclipart-png, found 0 of fish"
    ):
        provide_drawings(tmp_path / "drawings")
    assert not (tmp_path / "drawings").exists()


def test_the_error_names_the_missing_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clipart, "_FOLDER", Path("nowhere"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match="cannot download openclipart-png: apt-get or dpkg-deb is not installed"):
        provide_drawings(tmp_path / "drawings")
