import pytest

from tests.trainer.small import use_small_backbone, write_folders
from trainer.__main__ import main


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty repository in the environment, and the small network in place of every backbone."""
    monkeypatch.setenv("LABELNEXT_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LABELNEXT_CACHE_DIR", str(tmp_path / "features"))
    use_small_backbone(monkeypatch)
    return tmp_path / "models"


@pytest.fixture
def run_trainer(tmp_path, models):
    """Function that runs `run` on twelve images, with further options, and returns the exit code."""
    folders = write_folders(tmp_path / "images", each=4)
    arguments = ["run", "--images", str(folders), "--weights", "none", "--image-size", "32", "--epochs", "2"]
    return lambda *options: main([*arguments, *options])
