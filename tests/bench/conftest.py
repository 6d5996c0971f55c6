import json

import pytest

from bench.chaos.traffic import draw_pictures
from bench.subjects import model
from bench.subjects.model import Subject
from bench.subjects.tiny_model import LABELS, TinyModel, publish
from contract.versions.repository import Repository
from contract.versions.results import TrainingRecord

# OpenVINO and torch's exporter crash in one process, so this test runs only if named on the command line. `make test`
# runs it in a separate process if requirements/bench.txt is installed.
collect_ignore = ["passes/test_main.py"]


@pytest.fixture
def run_bench(tmp_path, monkeypatch, capsys):
    """Run a benchmark on tiny untrained versions, and return its result."""
    monkeypatch.setattr(model, "CACHE", tmp_path / "cache")
    (tmp_path / "images").mkdir()
    photos = tuple(picture.path for picture in draw_pictures(tmp_path / "images", seed=0))

    def train_subject(*, labels=0, **_):
        repository = Repository(tmp_path / f"models-{labels}")
        training = TrainingRecord(images_by_class=dict.fromkeys(LABELS, 5))
        model = TinyModel.draw(0).with_head_of(TinyModel.draw(labels))
        version = publish(repository, model=model, training=training)
        return Subject(repository.open(version), repository.root, photos, "noise")

    def run(bench, *options):
        monkeypatch.setattr(bench, "train_subject", train_subject)
        if hasattr(bench, "small_images"):
            monkeypatch.setattr(bench, "small_images", lambda count: list(photos[:count]))
        bench.main(options)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run
