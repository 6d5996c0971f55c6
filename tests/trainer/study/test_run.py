import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from contract.errors import TrainingError
from contract.scores.embedding import embed
from contract.scores.holdout import is_held_out
from tests.trainer.small import use_small_backbone
from tests.trainer.study.datasets import CPU, make_dataset, make_trainer
from trainer.ordering import coldstart
from trainer.settings import Training
from trainer.study import run as run_module
from trainer.study.options import BAAL_BALD, CORE_SET, ORACLE, PRODUCT, RANDOM, selects_initial
from trainer.study.run import Protocol, Run, complete, draw_initial, select_initial

pytestmark = pytest.mark.slow  # trains or exports networks

STRATEGIES = (RANDOM, PRODUCT, "margin+start", CORE_SET, BAAL_BALD, ORACLE)
SECONDS = ("train_s", "score_s", "choose_s")
DATASET = make_dataset(520)
PROTOCOL = Protocol(
    pool=np.arange(60, 520),
    test=np.arange(60),
    minority=(2,),
    initial=240,
    queries=(40, 80),
    training=Training(weights="none", part="classifier", epochs=5, passes=10, seed=99),
    device=CPU,
)


class Interrupted(Exception):
    """Interrupts a run in these tests."""


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
    """Replace VGG by a small network."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        yield


def run_to(path, strategy, *, seed=0, protocol=PROTOCOL, at_most=None):
    """Complete a run, or interrupt it after `at_most` rounds; return the number of rounds done."""
    done, measure = [], run_module._measure

    def count(model, protocol):
        if len(done) == at_most:
            raise Interrupted
        done.append(model.name)
        return measure(model, protocol)

    with pytest.MonkeyPatch.context() as patch, suppress(Interrupted):
        patch.setattr(run_module, "_measure", count)
        complete(Run(strategy, seed, path), DATASET, protocol)
    return len(done)


@pytest.fixture(scope="module")
def complete_runs(tmp_path_factory):
    """The files of uninterrupted runs by strategy."""
    files = {strategy: tmp_path_factory.mktemp("runs") / "run.jsonl" for strategy in STRATEGIES}
    for strategy, path in files.items():
        run_to(path, strategy)
    return files


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_seconds(path):
    lines = lines_of(path)
    for line in lines:
        assert all(line["round"].pop(name) >= 0 for name in SECONDS)
    return lines


def labelled_by_round(strategy, lines):
    """Return the labelled images in each round, the initial ones first."""
    if selects_initial(strategy):
        trainer = make_trainer(DATASET, PROTOCOL.training)
        labelled = [select_initial(PROTOCOL.pool, trainer, count=PROTOCOL.initial, seed=0)]
    else:
        labelled = [draw_initial(PROTOCOL.pool, count=PROTOCOL.initial, seed=0)]
    for line in lines[:-1]:
        labelled.append(np.concatenate([labelled[-1], line["chosen"]]).astype(np.int64))
    return labelled


def test_initial_images_equal_the_cold_start_of_production():
    """By embeddings rounded to float16, and including the seed's random holdout."""
    trainer = make_trainer(DATASET, PROTOCOL.training)
    embeddings = embed(DATASET.features[PROTOCOL.pool]).astype(np.float16).astype(np.float32)
    options = {"project": 3, "holdout_share": 0.1, "before_holdout": 15, "batch_size": 50}
    order = coldstart.arrange(PROTOCOL.pool, embeddings, **options).order
    result = select_initial(PROTOCOL.pool, trainer, count=50, seed=3)
    np.testing.assert_array_equal(result, np.sort(PROTOCOL.pool[order[:50]]))
    assert is_held_out(3, result, 0.1).sum() == 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_round_adds_the_images_chosen_before(complete_runs, strategy):
    lines = lines_of(complete_runs[strategy])
    assert [line["round"]["round"] for line in lines] == [0, 1, 2]
    assert [len(line["chosen"]) for line in lines] == [40, 80, 0]
    assert [line["round"]["labels"] for line in lines] == [240, 280, 360]
    for line, labelled in zip(lines, labelled_by_round(strategy, lines), strict=True):
        assert len(np.intersect1d(labelled, PROTOCOL.pool)) == len(labelled)
        counts = np.bincount(DATASET.targets[labelled], minlength=3)
        assert line["round"]["labels_by_class"] == counts.tolist()
    assert (lines[-1]["round"]["score_s"], lines[-1]["round"]["choose_s"]) == (0, 0)


@pytest.fixture(scope="module")
def last(complete_runs):
    """The last round of labelnext, and its model retrained on all labels."""
    lines = lines_of(complete_runs[PRODUCT])
    labelled = labelled_by_round(PRODUCT, lines)[-1]
    unlabelled = np.setdiff1d(PROTOCOL.pool, labelled)
    trainer = make_trainer(DATASET, replace(PROTOCOL.training, seed=0))
    return lines[-1], trainer.train(np.sort(labelled), "study/0/2", unlabelled=unlabelled)


def test_metrics_equal_scikit_learn(last):
    line, model = last
    targets = DATASET.targets[PROTOCOL.test]
    mean = model.passes(model.compute_features(PROTOCOL.test)).mean(axis=1)
    predicted = mean.argmax(axis=1)
    f1 = f1_score(targets, predicted, labels=[0, 1, 2], average=None, zero_division=0)
    expected = {
        "accuracy": accuracy_score(targets, predicted),
        "balanced_accuracy": balanced_accuracy_score(targets, predicted),
        "f1": f1.tolist(),
        "macro_f1": f1.mean(),
        "minority_f1": f1[2],
        "nll": pytest.approx(log_loss(targets, mean, labels=[0, 1, 2]), abs=1e-5),
    }
    assert {name: line["round"][name] for name in expected} == {
        name: each if name == "nll" else pytest.approx(each) for name, each in expected.items()
    }
    assert 0 <= line["round"]["ece"] <= 1


@pytest.mark.parametrize(
    ("strategy", "cut"), [(PRODUCT, True), (BAAL_BALD, False)], ids=["within a line", "after a line"]
)
def test_resumed_run_equals_an_uninterrupted_one(complete_runs, tmp_path, strategy, cut):
    """Except for seconds; only an incomplete line is computed again."""
    path = tmp_path / "run.jsonl"
    run_to(path, strategy, at_most=1)
    partial = path.read_bytes()
    assert partial.count(b"\n") == 1
    if cut:
        second = complete_runs[strategy].read_bytes().splitlines()[1]
        path.write_bytes(partial + second[: len(second) // 2])
    assert run_to(path, strategy) == 2
    assert path.read_bytes().startswith(partial)
    assert without_seconds(path) == without_seconds(complete_runs[strategy])
    assert run_to(path, strategy) == 0  # nothing is computed for a complete run


def test_seed_changes_initial_images_and_weights(complete_runs, tmp_path):
    """The seed of the protocol's training has no effect."""
    runs = []
    for seed in (99, 5):
        protocol = replace(PROTOCOL, training=replace(PROTOCOL.training, seed=seed))
        run_to(tmp_path / f"{seed}.jsonl", RANDOM, seed=1, protocol=protocol, at_most=1)
        runs.append(without_seconds(tmp_path / f"{seed}.jsonl"))
    assert runs[0] == runs[1]
    assert runs[0][0]["round"]["nll"] != lines_of(complete_runs[RANDOM])[0]["round"]["nll"]


def test_pool_may_be_exhausted(tmp_path):
    path = tmp_path / "run.jsonl"
    run_to(path, PRODUCT, protocol=replace(PROTOCOL, pool=np.arange(60, 100), initial=20, queries=(10, 10)))
    assert [line["round"]["labels"] for line in lines_of(path)] == [20, 30, 40]


def test_diverging_training_records_no_round(tmp_path):
    broken = replace(DATASET, features=np.full_like(DATASET.features, np.nan))
    with pytest.raises(TrainingError, match="diverged"):
        complete(Run(RANDOM, 0, tmp_path / "run.jsonl"), broken, PROTOCOL)
    assert not (tmp_path / "run.jsonl").exists()
