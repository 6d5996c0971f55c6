import hashlib
from contextlib import closing

import numpy as np
import pytest

from contract.features.store import FeatureStore
from contract.images.download import Validators
from contract.images.fetch import Fetcher, FetchSettings
from tests.trainer.studio import TOKEN, studio
from trainer import labelstudio
from trainer.labels import unlabelled
from trainer.labels.sources import from_project
from trainer.labels.unlabelled import Unlabelled, draw_as_unlabelled, find_unlabelled, read_known_features
from trainer.labelstudio.task_lists import cached_unlabelled, list_unlabelled

TASKS = 60
NO_VALIDATORS = Validators("", None, None)


@pytest.fixture
def pets(tmp_path):
    """A project with five labelled tasks and a skipped one, after a listing of the unlabelled tasks."""
    with studio(TASKS) as state:
        state.client = labelstudio.connect(state.url, TOKEN, 5)
        state.cache = tmp_path / "tasks"
        for task in range(1, 6):
            state.annotate(task, "cat" if task % 2 else "dog")
        state.annotate(6, "cat", cancelled=True)
        list_unlabelled(state.client, state.cache)
        yield state


@pytest.fixture
def fetcher():
    with Fetcher(FetchSettings()) as fetcher:
        yield fetcher


def find(pets, fetcher):
    """Return the unlabelled tasks, which must not need a request."""
    pool = from_project(pets.client, cache=pets.cache)
    requests = len(pets.requests)
    unlabelled_tasks = find_unlabelled(pool, 5, pets.cache, fetcher)
    assert len(pets.requests) == requests
    return unlabelled_tasks


def image_url(task):
    return f"http://images/{task}.png"


def test_finds_listed_tasks_without_annotation(pets, fetcher):
    pool = from_project(pets.client, cache=pets.cache)
    assert (pool.labels, [image.task_id for image in pool.images]) == (("cat", "dog"), [1, 2, 3, 4, 5])
    assert "project 5 (Pets)" in pool.origin
    assert [task.id for task in cached_unlabelled(pets.cache)] == list(range(6, TASKS + 1))
    for task, cancelled in ((10, False), (11, True)):
        pets.annotate(task, "dog", cancelled=cancelled)
    expected = {image_url(task) for task in range(7, TASKS + 1) if task not in {10, 11}}
    unlabelled_tasks = find(pets, fetcher)
    assert (set(unlabelled_tasks.sources), unlabelled_tasks.tasks) == (expected, len(expected))
    pets.add_task(image="ftp://elsewhere/1.png")
    pets.add_task(text="no image")
    list_unlabelled(pets.client, pets.cache)
    unlabelled_tasks = find(pets, fetcher)
    assert (set(unlabelled_tasks.sources), unlabelled_tasks.tasks) == (expected, len(expected) + 2)
    assert cached_unlabelled(pets.cache / "nowhere") == []
    (pets.cache / "unlabelled.json").write_text("[")
    assert cached_unlabelled(pets.cache) == []


def test_bulk_confirmations_count_as_unlabelled(pets, fetcher):
    before = find(pets, fetcher)
    for task in (20, 21):
        pets.annotate(task, "cat")
        pets.tasks[task]["annotations"][0] |= {"lead_time": None, "parent_prediction": task}
    assert find(pets, fetcher) == before
    list_unlabelled(pets.client, pets.cache)
    assert find(pets, fetcher) == before
    pets.annotate(21, "dog")
    assert set(before.sources) - set(find(pets, fetcher).sources) == {image_url(21)}


def test_looks_up_a_fixed_random_sample_of_many_tasks(pets, fetcher, monkeypatch):
    everything = find(pets, fetcher)
    monkeypatch.setattr(unlabelled, "MAX_IMAGES", 20)
    sample = find(pets, fetcher)
    assert (len(sample.sources), sample.tasks) == (20, everything.tasks)
    assert set(sample.sources) < set(everything.sources)
    assert sample.sources != everything.sources[:20]
    assert find(pets, fetcher) == sample


def test_treats_the_same_share_of_held_out_images_as_unlabelled():
    tasks = np.arange(10_000)
    shares = [
        draw_as_unlabelled(tasks, Unlabelled(count), known).mean()
        for count, known in ((500, 500), (500, 0), (0, 0), (600, 200))
    ]
    assert shares == [1, 0, 0, pytest.approx(1 / 3, abs=0.02)]
    assert (draw_as_unlabelled(tasks, Unlabelled(600), 200) <= draw_as_unlabelled(tasks, Unlabelled(600), 300)).all()


def test_returns_known_features_once_per_file(tmp_path, caplog):
    caplog.set_level("INFO", "trainer")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 8)).astype(np.float16).astype(np.float32)
    digests = [hashlib.sha256(bytes([number])).digest() for number in range(6)]
    with closing(FeatureStore(tmp_path, max_bytes=2**20, count_fault=lambda fault: None)) as store:
        for number, digest in enumerate(digests):
            store.put_download(image_url(number), NO_VALIDATORS, digest, at=0)
            store.put("backbone", digest, rows[number] if number != 3 else rows[number, :5])
        store.put_download(image_url(6), NO_VALIDATORS, digests[0], at=0)  # a copy of the first
        store.put_download(image_url(7), NO_VALIDATORS, hashlib.sha256(b"unknown").digest(), at=0)
        sources = [image_url(number) for number in range(9)]
        features = read_known_features(sources, store, "backbone", 8, excluding=[digests[1]])
        assert {row.tobytes() for row in features} == {rows[number].tobytes() for number in (0, 2, 4, 5)}
        assert "features of 4 of 9 unlabelled images are cached" in caplog.text
        assert read_known_features(sources, store, "another", 8, excluding=[]).shape == (0, 8)
        assert read_known_features([], store, "backbone", 8, excluding=[]).shape == (0, 8)
