import dataclasses
import hashlib
import json
import time

import numpy as np
import pytest
from PIL import Image

from contract.scores.embedding import embed
from contract.scores.ranking import load_rankings
from contract.versions.manifest import InputSpec
from contract.versions.repository import Repository
from tests.trainer.ranking.project import TASKS, Killed, held_out, image_data
from trainer.features import open_store
from trainer.ranking import planning
from trainer.scoring import pool


class Colours:
    """A network that embeds images by the mean of each channel; it is killed in one of its batches."""

    def __init__(self, *, size=32, fails_at=None):
        self.spec = InputSpec(size, size)
        self.shapes = []
        self._fails_at = fails_at

    def __call__(self, images, digests):
        assert len(set(digests)) == len(images)
        self.shapes.append(images.shape)
        if len(self.shapes) == self._fails_at:
            raise Killed
        return embed(images.mean(axis=(1, 2)) / 255)


def use_backbone(monkeypatch, make):
    """Replace the network of cold starts by that which `make` returns for their options."""

    def open_backbone(context, _):
        backbone = make(context.options)
        return backbone.spec, backbone

    monkeypatch.setattr(planning, "_open_backbone", open_backbone)


class TestColdStart:
    @pytest.fixture
    def cold(self, project, monkeypatch):
        """A project without a version, and embeddings that depend on the images' colour."""
        use_backbone(monkeypatch, lambda _: Colours())
        project.environment = dataclasses.replace(project.environment, model="birds")
        project.repository = Repository(project.repository.root, "birds")
        return project

    def test_tasks_are_ranked_without_a_version(self, cold):
        summary = cold.rank()
        assert (summary.ranking, summary.version, summary.strategy) == ("cold-start-birds", None, "cold-start")
        cold.check_ranked_by("cold-start-birds")
        scores = sorted(score for [score] in cold.studio.scores("cold-start-birds").values())
        np.testing.assert_allclose(np.diff(scores), 1 / TASKS)
        assert {json.dumps(each["result"]) for each in cold.studio.predictions.values()} == {"[]"}
        assert not cold.server.requests
        [record] = load_rankings(cold.repository)
        assert (record.version, record.mean_bald) == (None, None)
        assert (record.most_uncertain, record.most_confident) == ((), ())
        assert len(record.first) == 12
        assert record.first[0].label is None
        for number in range(100, 110):
            cold.studio.add_task(**image_data(number))
        assert cold.rank().tasks == 10
        cold.check_ranked_by("cold-start-birds")
        cold.publish()
        cold.rank()
        cold.check_ranked_by(cold.version)

    def test_the_first_places_are_not_in_the_random_holdout(self, cold):
        """The first six of 30 tasks with two classes; the same number of 30 later tasks."""
        cold.rank(holdout_share=0.5)
        order = cold.studio.order()
        holdout = held_out(order, 0.5)
        assert [task in holdout for task in order[:8]] == [False] * 6 + [False, True]
        later = [cold.studio.add_task(**image_data(number)) for number in range(100, 130)]
        cold.rank(holdout_share=0.5)
        order = [task for task in cold.studio.order() if task in later]
        holdout = held_out(later, 0.5)
        places = [place for place, task in enumerate(order) if task in holdout]
        assert places[:2] == [6, 8]

    def test_failed_images_are_logged_with_reasons(self, cold, caplog):
        cold.environment = dataclasses.replace(cold.environment, max_megapixels=1)
        broken = {"image": "data:image/png;base64,AAAA"}
        for task, data in enumerate((broken, {"text": "no image"}, image_data(3, size=(1100, 1000))), 1):
            cold.studio.tasks[task]["data"] = data
        assert cold.rank(dry_run=True).failed == 3
        assert "task 2: its data has no image reference under 'image'" in caplog.text
        assert "raise LABELNEXT_MAX_MEGAPIXELS" in caplog.text

    def test_images_are_embedded_at_the_requested_size(self, cold, monkeypatch):
        backbones = []
        use_backbone(monkeypatch, lambda options: backbones.append(Colours(size=options.image_size)) or backbones[-1])
        for size in (96, 32):
            cold.rank(image_size=size, dry_run=True)
        assert [backbone.shapes for backbone in backbones] == [[(TASKS, 96, 96, 3)], [(TASKS, 32, 32, 3)]]

    def test_downloads_are_recorded_in_the_feature_store(self, cold, tmp_path):
        """As by a server, so that the first version finds the features of unlabelled images."""
        root = tmp_path / "local"
        root.mkdir()
        Image.new("RGB", (40, 40), "teal").save(root / "one.png")
        cold.studio.tasks[1]["data"] = {"image": "/data/local-files/?d=one.png"}
        cold.environment = dataclasses.replace(cold.environment, local_files_root=root)
        cold.rank(dry_run=True)
        with open_store(cold.environment) as store:
            download = store.get_download(f"file:{root}/one.png")
        assert download.digest == hashlib.sha256((root / "one.png").read_bytes()).digest()
        assert abs(download.checked_at - time.time()) < 600

    def test_embeddings_survive_a_kill(self, cold, monkeypatch):
        monkeypatch.setattr(pool, "_EMBEDDING_BATCH", 8)
        backbone = Colours(fails_at=3)
        use_backbone(monkeypatch, lambda _: backbone)
        with pytest.raises(Killed):
            cold.rank()
        cold.rank()
        assert [images for images, *_ in backbone.shapes] == [8, 8, 8, 8, 6]
