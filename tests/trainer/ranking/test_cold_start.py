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
from tests.trainer.ranking.rig import TASKS, Killed, held_out, picture
from trainer.features import open_store
from trainer.ranking import planning
from trainer.scoring import pool


class Colours:
    """A network that embeds images by the mean of each channel; it may fail at one of its turns."""

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


def use(monkeypatch, make):
    """Have a cold start embed by what is made of its options."""

    def load_backbone(context, _):
        made = make(context.options)
        return made.spec, made

    monkeypatch.setattr(planning, "_open_backbone", load_backbone)


class TestColdStart:
    @pytest.fixture
    def cold(self, rig, monkeypatch):
        """No version yet; features that follow from the pixels' colour."""
        use(monkeypatch, lambda _: Colours())
        empty = Repository(rig.repository.root, "birds")
        rig.environment = dataclasses.replace(rig.environment, model="birds")
        rig.repository = empty
        return rig

    def test_before_there_is_a_version_the_pool_is_covered(self, cold):
        summary = cold.rank()
        assert (summary.ranking, summary.version, summary.strategy) == ("cold-start-birds", None, "cold-start")
        cold.check_whole("cold-start-birds")
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
            cold.studio.add_task(**picture(number))
        assert cold.rank().tasks == 10
        cold.check_whole("cold-start-birds")
        cold.publish()
        cold.rank()
        cold.check_whole(cold.version)

    def test_while_labels_are_few_no_place_is_the_random_holdouts(self, cold):
        """Of 30 tasks and two classes the first six; what comes later has them among a fifth of its own."""
        cold.rank(holdout_share=0.5)
        order = cold.studio.order()
        sampled = held_out(order, 0.5)
        assert [task in sampled for task in order[:8]] == [False] * 6 + [False, True]
        later = [cold.studio.add_task(**picture(number)) for number in range(100, 130)]
        cold.rank(holdout_share=0.5)
        own = [task for task in cold.studio.order() if task in later]
        sampled = held_out(later, 0.5)
        places = [place for place, task in enumerate(own) if task in sampled]
        assert places[:2] == [6, 8]

    def test_images_that_cannot_be_had_are_named(self, cold, caplog):
        cold.environment = dataclasses.replace(cold.environment, max_megapixels=1)
        broken = {"image": "data:image/png;base64,AAAA"}
        for task, data in enumerate((broken, {"text": "no image"}, picture(3, size=(1100, 1000))), 1):
            cold.studio.tasks[task]["data"] = data
        assert cold.rank(dry_run=True).failed == 3
        assert "task 2: its data holds no image reference under 'image'" in caplog.text
        assert "raise LABELNEXT_MAX_MEGAPIXELS" in caplog.text

    def test_images_are_embedded_at_the_size_that_was_asked_for(self, cold, monkeypatch):
        opened = []
        use(monkeypatch, lambda options: opened.append(Colours(size=options.image_size)) or opened[-1])
        for size in (96, 32):
            cold.rank(image_size=size, dry_run=True)
        assert [each.shapes for each in opened] == [[(TASKS, 96, 96, 3)], [(TASKS, 32, 32, 3)]]

    def test_the_store_is_told_which_file_each_source_sent(self, cold, tmp_path):
        """As a server tells it: so the first version finds what is known of the unlabelled images."""
        root = tmp_path / "local"
        root.mkdir()
        Image.new("RGB", (40, 40), "teal").save(root / "one.png")
        cold.studio.tasks[1]["data"] = {"image": "/data/local-files/?d=one.png"}
        cold.environment = dataclasses.replace(cold.environment, local_files_root=root)
        cold.rank(dry_run=True)
        with open_store(cold.environment) as store:
            found = store.get_download(f"file:{root}/one.png")
        assert found.digest == hashlib.sha256((root / "one.png").read_bytes()).digest()
        assert abs(found.checked_at - time.time()) < 600

    def test_images_are_embedded_in_batches_and_once(self, cold, monkeypatch):
        monkeypatch.setattr(pool, "_EMBEDDING_BATCH", 8)
        backbone = Colours(fails_at=3)
        use(monkeypatch, lambda _: backbone)
        with pytest.raises(Killed):
            cold.rank()
        cold.rank()
        assert [images for images, *_ in backbone.shapes] == [8, 8, 8, 8, 6]
