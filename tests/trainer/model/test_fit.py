import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from contract.errors import TrainingError
from trainer.model.fit import class_weights, fit, label_weights
from trainer.model.recipe import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(0.05, epochs=10, batch_images=8)


def clouds(count=60):
    """Return two classes of points that a line parts."""
    rng = np.random.default_rng(3)
    targets = np.arange(count) % 2
    points = rng.normal(size=(count, 4)) + 4 * targets[:, None]
    return torch.from_numpy(points).float(), targets


def fit_linear(*, seed, recipe=RECIPE):
    inputs, targets = clouds()
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    fitted = fit(module, inputs, targets, classes=2, recipe=recipe, device=CPU)
    return module, fitted


def states_equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


def test_learns_what_can_be_told_apart():
    """Separable classes are learnt, and the loss of every epoch is kept."""
    module, fitted = fit_linear(seed=0)
    inputs, targets = clouds()
    assert (module(inputs).argmax(dim=1).numpy() == targets).mean() > 0.95
    assert len(fitted.losses) == 10
    assert fitted.losses[-1] < fitted.losses[0]
    assert fitted.attempts == 1
    assert not module.training


def test_a_seed_decides_everything():
    """Equal seeds give equal weights to the last bit, other seeds others."""
    assert states_equal(fit_linear(seed=1)[0], fit_linear(seed=1)[0])
    assert not states_equal(fit_linear(seed=1)[0], fit_linear(seed=2)[0])


def test_divergence_is_an_error():
    """A rate at which the loss explodes, and a tenth of it, end in a TrainingError that names both."""
    with pytest.raises(TrainingError, match=r"1e\+08 and at 1e\+07.*--learning-rate"):
        fit_linear(seed=0, recipe=Recipe(1e8, epochs=5, batch_images=8))


class TestSeveralLabels:
    def data(self, count=80):
        """Return points, and which of three labels hold: those of their coordinates that are positive."""
        points = np.random.default_rng(3).normal(size=(count, 3))
        return torch.from_numpy(points).float(), (points > 0).astype(np.uint8)

    def test_learns_each_label_by_itself(self):
        """None, one and several at once; the loss of every epoch is kept."""
        inputs, targets = self.data()
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))
        fitted = fit(module, inputs, targets, classes=3, recipe=Recipe(0.05, epochs=40, batch_images=8), device=CPU)
        found = module(inputs).detach().numpy() > 0
        assert len({tuple(row) for row in targets.tolist()}) == 8
        assert (found == targets).mean() > 0.95
        assert fitted.losses[-1] < fitted.losses[0]
        assert fitted.attempts == 1

    def test_the_loss_is_torchs_binary_cross_entropy_summed_over_the_labels(self):
        """With the weights of the labels where they hold, in the mean over the images, against a loop over both."""
        inputs, targets = self.data(8)
        torch.manual_seed(0)
        module = nn.Linear(3, 3)
        weights = label_weights(targets)
        with torch.no_grad():
            module.weight.mul_(0.1)
            p = module(inputs).sigmoid().double()
        expected = 0.0
        for image, label in np.ndindex(targets.shape):
            held = bool(targets[image, label])
            chance = p[image, label] if held else 1 - p[image, label]
            expected -= float(chance.log()) * (float(weights[label]) if held else 1) / len(targets)
        fitted = fit(module, inputs, targets, classes=3, recipe=Recipe(0.0, epochs=1, batch_images=8), device=CPU)
        assert fitted.losses[0] == pytest.approx(expected, rel=1e-5)

    def test_a_loss_far_above_guessing_is_divergence(self):
        """Guessing is ln 2 for each label here, where each holds of half the images."""
        module = nn.Linear(1, 2)
        targets = np.array([[1, 0], [0, 1]], np.uint8)
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[9.0], [-9.0]]))
        inputs = torch.tensor([[-1.0], [1.0]])
        with pytest.raises(TrainingError, match=r"guessing gives 1\.39"):
            fit(module, inputs, targets, classes=2, recipe=Recipe(1e-9, epochs=1, batch_images=2), device=CPU)

    @given(
        hnp.arrays(np.uint8, st.tuples(st.integers(1, 60), st.integers(1, 8)), elements=st.integers(0, 1)),
        st.sampled_from([0.0, 0.5, 1.0]),
    )
    def test_a_label_weighs_alike_where_it_holds_and_where_not_within_bounds(self, targets, power):
        """To the recipe's power; ten to one is the most either way; a label that holds of no image is left as it is."""
        weights = label_weights(targets, power=power)
        held = targets.sum(axis=0)
        for weight, count in zip(weights, held, strict=True):
            balanced = (len(targets) - count) / count if count else 1
            assert weight == pytest.approx(min(10, max(0.1, balanced**power)))


class FailsOnThirdCall(nn.Module):
    """Returns logits that are not finite the third time it is called, and remembers its weights at every call."""

    def __init__(self, value):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.value = value
        self.seen = []

    def forward(self, inputs):
        self.seen.append(self.linear.weight.detach().clone())
        return self.linear(inputs) * (self.value if len(self.seen) == 3 else 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_starts_again_at_a_tenth_of_the_rate(value, caplog):
    """At once, and from the weights that the first attempt started from."""
    inputs, targets = clouds()
    torch.manual_seed(0)
    module = FailsOnThirdCall(value)
    fitted = fit(module, inputs, targets, classes=2, recipe=RECIPE, device=CPU)
    assert fitted.attempts == 2
    assert fitted.recipe.learning_rate == pytest.approx(0.005)
    assert all(math.isfinite(loss) for loss in fitted.losses)
    assert not torch.equal(module.seen[0], module.seen[2])
    assert torch.equal(module.seen[0], module.seen[3])
    assert "the loss became nan; once more at learning rate 0.005" in caplog.text


class WorseThanGuessing(nn.Module):
    """Is sure of the wrong class, and does not learn."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        wrong = (inputs.mean(dim=1) < 2).long()
        return 9 * nn.functional.one_hot(wrong, 2) + 0 * self.weight


def test_a_loss_far_above_guessing_is_divergence():
    """Finite, but no model: the loss at the end is compared with ln C."""
    inputs, targets = clouds()
    with pytest.raises(TrainingError, match=r"guessing gives 0\.693"):
        fit(WorseThanGuessing(), inputs, targets, classes=2, recipe=RECIPE, device=CPU)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 1) | st.sampled_from([0.0, 1.0]))
def test_a_power_lies_between_images_and_classes_weighing_alike(targets, power):
    """At 0 every image has weight 1, at 1 a class weighs as the inverse of its count; the mean over images is 1."""
    counts = np.bincount(targets, minlength=6)
    present = counts > 0
    weights = class_weights(np.array(targets), classes=6, power=power)
    by_definition = counts[present] ** -power
    np.testing.assert_allclose(
        weights[present] / weights[present].max(), by_definition / by_definition.max(), rtol=1e-5
    )
    assert weights @ counts == pytest.approx(len(targets), rel=1e-5)
    assert not weights[~present].any()


class Columns(nn.Module):
    """A weight for each class of image and each logit, and a memory of which images it was shown."""

    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(classes, classes, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.images = []

    def forward(self, inputs):
        self.images += inputs[:, 0].long().tolist()
        return self.linear(inputs[:, 1:])


def move_columns(targets, *, clip_norm, balance=1.0, batch_images=64):
    """Return which share of what a fit of many short steps moves is moved by each class, and the images it showed."""
    classes = int(targets.max()) + 1
    torch.manual_seed(0)
    module = Columns(classes)
    numbers = torch.arange(len(targets))[:, None]
    inputs = torch.cat([numbers, torch.eye(classes)[targets]], dim=1)
    recipe = Recipe(1e-6, 20, batch_images, weight_decay=0.0, clip_norm=clip_norm, class_balance=balance)
    fit(module, inputs, targets, classes=classes, recipe=recipe, device=CPU)
    moved = module.linear.weight.detach().norm(dim=0).numpy()
    return moved / moved.sum(), np.array(module.images)


@pytest.mark.slow
@pytest.mark.parametrize(("clip_norm", "tolerance"), [(1e3, 0.03), (1e-3, 0.1)], ids=["none clipped", "all clipped"])
@pytest.mark.parametrize("counts", [(990, 10), (3000, 1), (500, 300, 150, 45, 5)])
def test_over_an_epoch_classes_move_the_network_alike(counts, clip_norm, tolerance):
    """However rare one is, whatever else is in its batches and whatever is clipped, which is not quite exact.

    Weighed in the mean of each batch, or clipped to one norm, ten images of a thousand in batches of 64 move a third of
    what is moved, not half.
    """
    targets = np.repeat(np.arange(len(counts)), counts)
    shares, _ = move_columns(targets, clip_norm=clip_norm)
    np.testing.assert_allclose(shares, 1 / len(counts), rtol=tolerance)


@pytest.mark.slow
def test_all_images_are_shown_in_every_epoch():
    """Those that weigh more than a batch several times, which makes up for what each then weighs less."""
    targets = np.repeat(np.arange(2), (3000, 1))
    _, images = move_columns(targets, clip_norm=1.0)
    assert np.bincount(images).tolist() == [20] * 3000 + [20 * math.ceil(1500.5 / 64)]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_loss_weighs_classes_by_the_recipes_power(power):
    """Over an epoch, in batches of which some hold no image of one: against torch's weighted cross-entropy by image."""
    points, _ = clouds(12)
    targets = np.array([0] * 9 + [1] * 3)
    torch.manual_seed(0)
    module = nn.Linear(4, 2)
    with torch.no_grad():
        module.weight.mul_(0.1)
        log_p = module(points).log_softmax(dim=1).double()
    weights = np.array([9.0, 3.0]) ** -power
    losses = [-weights[target] * float(log_p[image, target]) for image, target in enumerate(targets)]
    recipe = Recipe(0.0, epochs=1, batch_images=4, class_balance=power)
    fitted = fit(module, points, targets, classes=2, recipe=recipe, device=CPU)
    assert fitted.losses[0] == pytest.approx(sum(losses) / weights[targets].sum(), rel=1e-5)


class Pulled(nn.Module):
    """One weight, pulled at with the same force all the time, and a memory of where it was."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, inputs):
        self.seen.append(self.weight.item())
        return torch.stack([1e3 * self.weight.expand(len(inputs)), torch.zeros(len(inputs))], dim=1)


def test_the_rate_warms_up_and_falls_to_nothing():
    """Over a twentieth of the steps to the recipe's, and then by half a cosine."""
    module = Pulled()
    recipe = Recipe(1e-6, epochs=50, batch_images=4, momentum=0.0, weight_decay=0.0)
    fit(module, torch.zeros(8, 1), np.zeros(8, np.int64), classes=2, recipe=recipe, device=CPU)
    steps = np.diff([*module.seen, module.weight.item()])
    assert np.argmax(steps) == 5
    assert steps.max() == pytest.approx(1e-6, rel=0.01)
    assert (np.diff(steps[:5]) > 0).all()
    assert (np.diff(steps[5:]) < 0).all()
    assert steps[-1] < 0.01 * steps.max()


def test_images_weigh_1_on_average_however_rare_a_class_is():
    """So that the loss of who guesses is ln C."""
    module = nn.Linear(1, 2)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    targets = np.repeat(np.arange(2), (310, 1))
    fitted = fit(module, torch.zeros(311, 1), targets, classes=2, recipe=Recipe(0.0, 1, batch_images=8), device=CPU)
    assert fitted.losses[0] == pytest.approx(math.log(2), rel=0.05)


def test_weight_decay_is_the_recipes():
    """Where the loss pulls at no weight, it alone moves them, towards 0."""
    shrunk = []
    for decay in (0.0, 0.1, 0.2):
        torch.manual_seed(0)
        module = nn.Linear(4, 2, bias=False)
        before = module.weight.detach().clone()
        recipe = Recipe(0.05, epochs=1, batch_images=8, weight_decay=decay)
        fit(module, torch.zeros(8, 4), np.arange(8) % 2, classes=2, recipe=recipe, device=CPU)
        shares = (1 - module.weight.detach() / before).flatten()
        torch.testing.assert_close(shares, shares[:1].expand(8), rtol=1e-3, atol=1e-6)
        shrunk.append(float(shares[0]))
    assert shrunk[0] == 0
    assert shrunk[2] == pytest.approx(2 * shrunk[1], rel=1e-3)
