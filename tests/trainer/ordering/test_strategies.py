import numpy as np
import pytest
from baal.active.heuristics import BALD, Margin
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_distances

from contract.errors import ConfigError
from tests.trainer.candidates import make_candidates, make_passes
from trainer.ordering.strategies import Candidates, LabelledImages, Selection, base_utility, check, select


def candidates(images=200, *, classes=5, seed=0, **options):
    rng = np.random.default_rng(seed)
    passes = make_passes(rng, images=images, classes=classes, multiple=options.get("multiple", False))
    return make_candidates(passes, rng, task_ids=np.arange(images), **options)


def selected(pool, strategy, *, labels_by_class=None, labelled=(), batch_size=20, eligible=None, name="v1", **others):
    selection = Selection(
        strategy=strategy,
        name=name,
        labelled=LabelledImages(pool.embeddings[list(labelled)], np.zeros(len(labelled), np.int64)),
        labels_by_class=labels_by_class or [7] * pool.probabilities.shape[1],
        batch_size=batch_size,
        **{"fine_grained": False, **others},
    )
    eligible = np.ones(len(pool.task_ids), np.bool_) if eligible is None else eligible
    return select(pool, base_utility(pool, strategy, name=name), selection, eligible=eligible)


def test_utilities_equal_baal():
    """Baal's BALD, 1 - margin, and their geometric mean."""
    passes = make_passes(np.random.default_rng(3), images=200)
    pool = make_candidates(passes, np.random.default_rng(3))
    baal_passes = passes.transpose(0, 2, 1)  # (N, C, T)
    nats, doubt = BALD().compute_score(baal_passes), 1 - Margin().compute_score(baal_passes)
    for strategy, squared in (("bald", nats**2), ("margin", doubt**2), ("balanced-bald-margin", nats * doubt)):
        np.testing.assert_allclose(base_utility(pool, strategy, name="v1") ** 2, squared, atol=1e-5)


def test_random_choices_depend_on_the_ranking_name_only():
    pool = candidates()
    once, again, other = (base_utility(pool, "random", name=name) for name in ("v1", "v1", "v1.r2"))
    np.testing.assert_array_equal(once, again)
    assert abs(np.corrcoef(once, other)[0, 1]) < 0.9
    drawn = [selected(pool, "balanced-cover", name=name)[0].tolist() for name in ("v1", "v1", "v1.r2")]
    assert drawn[0] == drawn[1] != drawn[2]


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=30)
def test_balanced_strategy_equals_a_greedy_loop(seed, multiple):
    """Each place goes to the highest score times rarity, where rarity counts the predicted labels of earlier places."""
    rng = np.random.default_rng(seed)
    pool = candidates(40, classes=3, seed=seed, multiple=multiple)
    labels = rng.integers(0, 50, size=3).astype(float)
    eligible = rng.random(40) < 0.8
    strategy = "balanced-bald-margin"
    chosen, utility = selected(pool, strategy, labels_by_class=list(labels), batch_size=12, eligible=eligible)
    base = base_utility(pool, strategy, name="v1")
    left = set(np.flatnonzero(eligible).tolist())
    values = {}
    for index in chosen:
        values = {i: base[i] * sum(pool.probabilities[i, c] / (labels[c] + 1) for c in range(3)) for i in range(40)}
        assert values[index] >= max(values[i] for i in left) * (1 - 1e-5)
        left.remove(index)
        labels += pool.probabilities[index]
    assert len(chosen) == min(12, eligible.sum())
    for i in range(40):
        expected = base[i] * sum(pool.probabilities[i, c] / (labels[c] + 1) for c in range(3))
        assert utility[i] == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_rejects_removed_strategies_and_batch_bald_with_multiple_labels():
    for removed, replacement in (
        ("power-bald", "bald"),
        ("entropy", "margin"),
        ("balanced-margin", "balanced-bald-margin"),
    ):
        with pytest.raises(ConfigError, match=f"{removed} was removed; use {replacement}"):
            check(removed, multiple=False)
    with pytest.raises(ConfigError, match="several labels per image"):
        check("batch-bald", multiple=True)


@pytest.mark.parametrize("field", ["probabilities", "bald", "entropy", "embeddings"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rejects_non_finite_predictions(field, value):
    pool = candidates(5)
    fields = {name: getattr(pool, name).copy() for name in Candidates.__slots__ if name != "multiple"}
    fields[field][3] = value
    with pytest.raises(ValueError, match=f"{field} of task 3 is not finite"):
        Candidates(**fields, multiple=False)


def test_rejects_wrong_shapes_and_repeated_tasks():
    pool = candidates(5)
    with pytest.raises(ValueError, match=r"bald must have 1 axes and a row for each of 5 tasks, got shape \(4,\)"):
        Candidates(pool.task_ids, pool.probabilities, pool.bald[:4], pool.entropy, pool.embeddings, multiple=False)
    with pytest.raises(ValueError, match="task 2 occurs 2 times"):
        pool.take(np.array([0, 2, 2]))


def test_draw_favours_classes_with_few_labels():
    """Among equally uncertain images, those of the rarer class are drawn several times as often."""
    probabilities = np.repeat(np.array([[0.0, 0.6, 0.4], [0.6, 0.0, 0.4]], np.float32), 300, axis=0)
    nats, eye = np.full(600, 0.3, np.float32), np.eye(600, dtype=np.float32)
    pool = Candidates(np.arange(600), probabilities, nats, nats, eye, multiple=False)
    labels = [9, 29, 10**9]
    balanced, plain = (
        np.concatenate(
            [selected(pool, strategy, name=f"v{i}", labels_by_class=labels, batch_size=21)[0] for i in range(20)]
        )
        for strategy in ("balanced-cover", "badge")
    )
    assert np.mean(balanced >= 300) > 0.75
    assert np.mean(plain >= 300) == pytest.approx(1 / 2, abs=0.1)


def test_balanced_cover_uses_distance_and_later_also_uncertainty():
    """Ten clusters of ten images; the model is uncertain about the last five clusters only."""
    embeddings = np.eye(10, dtype=np.float32).repeat(10, axis=0) + 0.02 * np.eye(100, 10, dtype=np.float32)
    probabilities = np.where(np.arange(100)[:, None] < 50, [1.0, 0.0], [0.5, 0.5]).astype(np.float32)
    nats = np.full(100, 0.3, np.float32)
    pool = Candidates(np.arange(100), probabilities, nats, nats, embeddings, multiple=False)

    def directions(labels, labelled):
        options = {"labels_by_class": labels, "labelled": labelled, "batch_size": 5}
        return selected(pool, "balanced-cover", **options)[0] // 10

    first_stage = directions([3, 3], [0, 10, 20, 30, 95])  # too few labels to use the model's uncertainty
    assert sorted(first_stage.tolist()) == [4, 5, 6, 7, 8]
    second_stage = directions([20, 20], [0, 10, 20, 50])
    assert (second_stage >= 5).all()
    assert set(second_stage[:4].tolist()) == {6, 7, 8, 9}


def test_fine_grained_labels_favour_typical_images():
    """The distance to neighbours is squared for fine-grained labels."""
    pool = candidates(images=60, embeddings=np.random.default_rng(5).normal(size=(60, 4)))
    directions = pool.embeddings - pool.embeddings.mean(axis=0)
    distances = cosine_distances(directions)
    neighbours = np.sort(distances, axis=1)[:, :11].mean(axis=1)
    expected = [(distances[0] ** 2 / neighbours**power).argmax() for power in (1, 2)]
    options = {"labels_by_class": [1, 0, 0, 0, 0], "labelled": [0], "batch_size": 1}
    first_images = [
        selected(pool, "balanced-cover", fine_grained=fine_grained, **options)[0].item()
        for fine_grained in (False, True)
    ]
    assert first_images == expected
    assert first_images[0] != first_images[1]
