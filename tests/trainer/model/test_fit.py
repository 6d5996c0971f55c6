import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from contract.errors import TrainingError
from trainer.model.fit import fit, label_weights
from trainer.model.recipe import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(0.05, epochs=10, batch_images=8)


def clouds(count=60):
    """Return two linearly separable classes of points."""
    rng = np.random.default_rng(3)
    targets = np.arange(count) % 2
    points = rng.normal(size=(count, 4)) + 4 * targets[:, None]
    return torch.from_numpy(points).float(), targets


def test_learns_separable_classes():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    inputs, targets = clouds()
    fitted = fit(module, inputs, targets, classes=2, recipe=RECIPE, device=CPU)
    assert (module(inputs).argmax(dim=1).numpy() == targets).mean() > 0.95
    assert len(fitted.losses) == 10
    assert fitted.losses[-1] < fitted.losses[0]
    assert fitted.attempts == 1
    assert not module.training


@pytest.mark.parametrize(
    ("targets", "uniform_loss"), [(np.array([0, 1]), r"0\.693"), (np.array([[1, 0], [0, 1]], np.uint8), r"1\.39")]
)
def test_loss_far_above_that_of_uniform_predictions_is_divergence(targets, uniform_loss):
    """The loss of uniform predictions is ln 2 for two classes, and for each label that half of the images have."""
    module = nn.Linear(1, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[9.0], [-9.0]]))
    inputs = torch.tensor([[-1.0], [1.0]])
    with pytest.raises(TrainingError, match=rf"at 1e-10 .*uniform predictions give {uniform_loss}.*--learning-rate"):
        fit(module, inputs, targets, classes=2, recipe=Recipe(1e-9, epochs=1, batch_images=2), device=CPU)


def test_multi_label_loss_is_the_sum_of_binary_cross_entropies():
    """Positives are weighted by label, and the loss is averaged over images."""
    points = np.random.default_rng(3).normal(size=(8, 3))
    inputs, targets = torch.from_numpy(points).float(), (points > 0).astype(np.uint8)
    torch.manual_seed(0)
    module = nn.Linear(3, 3)
    weights = label_weights(targets)
    with torch.no_grad():
        module.weight.mul_(0.1)
        p = module(inputs).sigmoid().double()
    expected = 0.0
    for image, label in np.ndindex(targets.shape):
        present = bool(targets[image, label])
        likelihood = p[image, label] if present else 1 - p[image, label]
        expected -= float(likelihood.log()) * (float(weights[label]) if present else 1) / len(targets)
    fitted = fit(module, inputs, targets, classes=3, recipe=Recipe(0.0, epochs=1, batch_images=8), device=CPU)
    assert fitted.losses[0] == pytest.approx(expected, rel=1e-5)


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 60), st.integers(1, 8)), elements=st.integers(0, 1)),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_label_weights_balance_positives_and_negatives_within_bounds(targets, power):
    weights = label_weights(targets, power=power)
    for weight, count in zip(weights, targets.sum(axis=0), strict=True):
        balanced = (len(targets) - count) / count if count else 1
        assert weight == pytest.approx(min(10, max(0.1, balanced**power)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_retries_a_non_finite_loss_at_a_tenth_of_the_learning_rate(value, caplog):
    weights = []

    def fail_once(module, inputs, logits):
        weights.append(module.weight.detach().clone())
        return logits * (value if len(weights) == 3 else 1)

    torch.manual_seed(0)
    module = nn.Linear(4, 2)
    module.register_forward_hook(fail_once)
    inputs, targets = clouds()
    fitted = fit(module, inputs, targets, classes=2, recipe=RECIPE, device=CPU)
    assert fitted.attempts == 2
    assert fitted.recipe.learning_rate == pytest.approx(0.005)
    assert all(math.isfinite(loss) for loss in fitted.losses)
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(weights[0], weights[3])
    assert "the loss became nan; retrying at learning rate 0.005" in caplog.text


@pytest.mark.parametrize(("power", "sample_weights"), [(0.0, 1), (0.5, 1), (1.0, 1), (1.0, 0.25)])
def test_classes_are_balanced_to_the_recipes_power(power, sample_weights):
    """The reference is a weighted cross-entropy. Some batches lack a class, and one class has no images."""
    points, _ = clouds(12)
    targets = np.array([0] * 9 + [1] * 3)
    weights_by_image = np.where(np.arange(12) % 2, 1, sample_weights).astype(np.float32)
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight.mul_(0.1)
        log_p = module(points).log_softmax(dim=1).double().numpy()
    weights = weights_by_image * np.bincount(targets, weights=weights_by_image)[targets] ** -power
    expected = -(weights * log_p[np.arange(12), targets]).sum() / weights.sum()
    recipe = Recipe(0.0, epochs=1, batch_images=4, class_balance=power)
    fitted = fit(module, points, targets, classes=3, recipe=recipe, device=CPU, sample_weights=weights_by_image)
    assert fitted.losses[0] == pytest.approx(expected, rel=1e-5)


class Columns(nn.Module):
    """A linear layer on one-hot classes that records the numbers of its images."""

    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(classes, classes, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.images = []

    def forward(self, inputs):
        self.images += inputs[:, 0].long().tolist()
        return self.linear(inputs[:, 1:])


def fit_columns(targets, *, clip_norm):
    """Fit with many small steps; return each class's share of the change in weights, and the images in the batches."""
    classes = int(targets.max()) + 1
    torch.manual_seed(0)
    module = Columns(classes)
    numbers = torch.arange(len(targets))[:, None]
    inputs = torch.cat([numbers, torch.eye(classes)[targets]], dim=1)
    recipe = Recipe(1e-6, 20, 64, weight_decay=0.0, clip_norm=clip_norm)
    fit(module, inputs, targets, classes=classes, recipe=recipe, device=CPU)
    change = module.linear.weight.detach().norm(dim=0).numpy()
    return change / change.sum(), np.array(module.images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("counts", "clip_norm", "tolerance"),
    [((990, 10), 1e3, 0.03), ((3000, 1), 1e-3, 0.1), ((500, 300, 150, 45, 5), 1e-3, 0.1)],
)
def test_all_classes_change_the_network_equally_over_an_epoch(counts, clip_norm, tolerance):
    """Also rare ones; with clipping only approximately.

    With weights normalised per batch, or a fixed clipping norm, a class of ten images among a thousand would cause a
    third of the change instead of half. Images that weigh more than a batch are repeated with less weight.
    """
    targets = np.repeat(np.arange(len(counts)), counts)
    shares, images = fit_columns(targets, clip_norm=clip_norm)
    np.testing.assert_allclose(shares, 1 / len(counts), rtol=tolerance)
    repeats = [math.ceil(len(targets) / len(counts) / counts[target] / 64) for target in targets]
    assert np.bincount(images).tolist() == [20 * each for each in repeats]


def test_learning_rate_warms_up_and_decays_to_0():
    """Measured by a weight with a constant gradient, since steps are clipped to one length."""
    module, weights = nn.Linear(1, 2, bias=False), []
    nn.init.zeros_(module.weight)
    module.register_forward_pre_hook(lambda module, _: weights.append(module.weight[0].item()))
    recipe = Recipe(1e-6, epochs=50, batch_images=4, momentum=0.0, weight_decay=0.0)
    fit(module, torch.full((8, 1), 1e3), np.zeros(8, np.int64), classes=2, recipe=recipe, device=CPU)
    steps = np.diff([*weights, module.weight[0].item()])
    assert np.argmax(steps) == 5
    assert steps.max() == pytest.approx(1e-6 / math.sqrt(2), rel=0.01)
    assert (np.diff(steps[:5]) > 0).all()
    assert (np.diff(steps[5:]) < 0).all()
    assert steps[-1] < 0.01 * steps.max()


def test_mean_weight_of_images_is_1_with_a_rare_class():
    module = nn.Linear(1, 2)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    targets = np.repeat(np.arange(2), (311, 1))  # full batches of 8
    fitted = fit(module, torch.zeros(312, 1), targets, classes=2, recipe=Recipe(0.0, 1, batch_images=8), device=CPU)
    assert fitted.losses[0] == pytest.approx(math.log(2), rel=0.05)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_applies_the_recipes_weight_decay(decay):
    """Without a gradient, only the decay changes the weights."""
    module = nn.Linear(4, 2, bias=False)
    before = module.weight.detach().clone()
    recipe = Recipe(0.2, epochs=1, batch_images=8, weight_decay=decay)  # one step at half the learning rate
    fit(module, torch.zeros(8, 4), np.arange(8) % 2, classes=2, recipe=recipe, device=CPU)
    torch.testing.assert_close(module.weight.detach(), before * (1 - 0.1 * decay))
