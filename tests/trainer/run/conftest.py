import pytest

from tests.trainer.run.training import environment_in
from tests.trainer.small import use_small_backbone, write_folders
from trainer.model.frozen import FrozenBackbone


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """Cache of the exported small backbone."""
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture
def environment(tmp_path, monkeypatch, backbones):
    """Empty folders, and the small network in place of every backbone."""
    use_small_backbone(monkeypatch)
    settings = environment_in(tmp_path)
    settings.cache_dir.mkdir()
    (settings.cache_dir / "backbones").symlink_to(backbones)
    return settings


@pytest.fixture
def folders(tmp_path):
    """Three class folders of ten images each."""
    return write_folders(tmp_path / "images", each=10)


@pytest.fixture
def computed(monkeypatch):
    """Batch sizes of the computed features, except those for validation."""
    counts, compute = [], FrozenBackbone.compute

    def count(self, images, *, title="features"):
        if title == "features":
            counts.append(len(images))
        return compute(self, images, title=title)

    monkeypatch.setattr(FrozenBackbone, "compute", count)
    return counts
