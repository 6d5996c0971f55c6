from pathlib import Path

import pytest

from demo import __main__ as demo
from demo import clipart
from demo.packages import PackageError


def test_digits_replace_drawings_that_are_not_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_root: Path) -> None:
        raise PackageError("apt-get is not installed")

    monkeypatch.setattr(clipart, "provide_drawings", refuse)
    monkeypatch.setattr(demo, "write_digits", lambda root: (root / "3").mkdir(parents=True))
    root, origin = demo._provide_images(tmp_path)
    assert [folder.name for folder in root.iterdir()] == ["3"]
    assert origin == "handwritten digits, because the drawings are not available: apt-get is not installed"
