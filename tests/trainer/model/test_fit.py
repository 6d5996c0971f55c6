import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from contract.errors import TrainingError
from tests.trainer.small import coloured_images, small_network
from trainer.model.fit import (
    Recipe,
    choose_recipe,
    class_weights,
    coloured_noise,
    count_repeats,
    even_batches,
    fit,
    label_weights,
    prepare,
    prepare_frozen,
)
from trainer.model.network import build

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

    @given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 60), st.integers(1, 8)), elements=st.integers(0, 1)))
    def test_a_label_weighs_alike_where_it_holds_and_where_not_within_bounds(self, targets):
        """Ten to one is the most either way; a label that holds of no image is left as it is."""
        weights = label_weights(targets)
        held = targets.sum(axis=0)
        for weight, count in zip(weights, held, strict=True):
            balanced = (len(targets) - count) / count if count else 1
            assert weight == pytest.approx(min(10, max(0.1, balanced)))

    def test_a_thousand_labels_are_fitted(self):
        """Most of them without an image, as at the start."""
        targets = np.zeros((12, 1000), np.uint8)
        targets[np.arange(12), np.arange(12)] = 1
        torch.manual_seed(0)
        module = nn.Linear(12, 1000)
        fitted = fit(module, torch.eye(12), targets, classes=1000, recipe=RECIPE, device=CPU)
        assert fitted.attempts == 1
        assert all(math.isfinite(loss) for loss in fitted.losses)


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


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_classes_weigh_alike(targets):
    """Each class that has images has the same total weight, and images weigh 1 on average."""
    weights = class_weights(np.array(targets), classes=6)
    totals = np.bincount(targets, minlength=6) * weights
    present = np.unique(targets)
    np.testing.assert_allclose(totals[present], len(targets) / len(present), rtol=1e-5)
    assert not np.delete(totals, present).any()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 1))
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
    np.testing.assert_allclose(class_weights(np.array(targets), classes=6, power=0)[present], 1, rtol=1e-6)


def test_a_power_tempers_the_weights_of_labels_too():
    """Those that hold of nine in ten, half, and one in ten; the bounds come after the power."""
    targets = np.zeros((100, 3), np.uint8)
    for label, count in enumerate((90, 50, 10)):
        targets[:count, label] = 1
    np.testing.assert_allclose(label_weights(targets, power=0), 1)
    np.testing.assert_allclose(label_weights(targets, power=0.5), [1 / 3, 1, 3], rtol=1e-6)
    targets[1:, 2] = 0
    np.testing.assert_allclose(label_weights(targets, power=0.5), [1 / 3, 1, math.sqrt(99)], rtol=1e-6)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 8))
def test_no_image_weighs_more_than_it_may_at_a_time(targets, most):
    """It is there more often instead, by no more than it takes; most are there once."""
    weights = class_weights(np.array(targets), classes=6)
    repeats = count_repeats(weights, most=most)
    assert (weights / repeats <= most * (1 + 1e-6)).all()
    assert (repeats == np.maximum(1, np.ceil(weights / most))).all()


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


@given(st.integers(1, 5000), st.integers(16, 64))
def test_batches_are_even(images, most):
    """No batch is larger than allowed, and the last one is at least half full."""
    size = even_batches(images, most=most)
    assert size <= most
    assert size == images or size > most // 2
    assert ((images - 1) % size + 1) * 2 >= size


@pytest.mark.parametrize("part", ["all", "classifier", "head"])
def test_small_sets_get_enough_steps(part):
    """Four images get as many steps as a hundred; what the caller insists on is kept."""
    few, many = choose_recipe(part, 4), choose_recipe(part, 2000)
    assert few.epochs * math.ceil(4 / few.batch_images) >= 60
    assert many.epochs < few.epochs
    insisted = choose_recipe(part, 4, epochs=3, learning_rate=0.5)
    assert (insisted.epochs, insisted.learning_rate) == (3, 0.5)


@pytest.mark.parametrize("part", ["all", "classifier", "head"])
def test_decay_and_balance_are_the_parts_unless_the_caller_insists(part):
    """Nothing at all is something to insist on; classes weigh alike by default."""
    insisted = choose_recipe(part, 100, weight_decay=0.0, class_balance=0.0)
    assert (insisted.weight_decay, insisted.class_balance) == (0, 0)
    default = choose_recipe(part, 100)
    assert default.class_balance == 1
    assert default.weight_decay > 0
    assert choose_recipe(part, 100, weight_decay=0.3, class_balance=0.7) == replace(
        default, weight_decay=0.3, class_balance=0.7
    )


def test_loaded_convolutions_are_trained_gently():
    """What was loaded is worth keeping near; the linear layers are trained alike either way."""
    assert choose_recipe("all", 100, pretrained=True).learning_rate < choose_recipe("all", 100).learning_rate
    assert choose_recipe("classifier", 100, pretrained=True) == choose_recipe("classifier", 100)


@pytest.mark.parametrize(
    ("part", "kept", "trained"),
    [("classifier", "backbone", "classifier"), ("head", "trunk", "head")],
)
def test_what_is_frozen_stays_as_it_is(part, kept, trained):
    """Training a part changes that part and nothing upstream of it, batch statistics included."""
    torch.manual_seed(0)
    network = small_network()
    images, targets = coloured_images(np.random.default_rng(0), 12)
    before = {name: value.clone() for name, value in getattr(network, kept).state_dict().items()}
    downstream = [value.clone() for value in getattr(network, trained).parameters()]
    module, inputs = prepare(network, images, part=part, device=CPU)
    fit(module, inputs, targets, classes=3, recipe=RECIPE, device=CPU)
    after = getattr(network, kept).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(
        torch.equal(old, new) for old, new in zip(downstream, getattr(network, trained).parameters(), strict=True)
    )


@pytest.mark.parametrize("part", ["all", "classifier", "head"])
def test_cached_features_change_nothing(part):
    """The trained part on its prepared inputs gives what the whole network gives on the images."""
    network = small_network().eval()
    images, _ = coloured_images(np.random.default_rng(0), 40)
    module, inputs = prepare(network, images, part=part, device=CPU)
    network.eval()
    torch.manual_seed(4)
    expected = network(torch.from_numpy(images))
    torch.manual_seed(4)
    torch.testing.assert_close(module(inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["classifier", "head"])
def test_features_that_were_kept_stand_in_for_the_images(part):
    """The same is trained, on the same inputs, with its standardising layer measured on the same."""
    images, _ = coloured_images(np.random.default_rng(0), 20)
    torch.manual_seed(0)
    network, _ = build("vgg11", classes=3, image_size=32, weights="none", units=8)
    module, inputs = prepare(network, images, part=part, device=CPU)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        features = network.eval().backbone(torch.from_numpy(images))
    network.standardise.measure(torch.randn_like(features))
    again, kept = prepare_frozen(network, features, part=part, image_size=32, device=CPU)
    torch.testing.assert_close(kept, inputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.state_dict(), expected, rtol=1e-4, atol=1e-5)
    assert [type(layer) for layer in again] == [type(layer) for layer in module]


@pytest.mark.slow
def test_the_trunk_before_the_head_survives_a_retrain(tmp_path):
    """With --train head, other labels and another number of classes leave the trunk as it was, fresh layer included."""
    torch.manual_seed(3)
    features = torchvision.models.vgg11(weights=None).features.state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in features.items()}, tmp_path / "features.pth")
    trunks = []
    for classes, seed in ((3, 1), (5, 2)):
        images, _ = coloured_images(np.random.default_rng(seed), 6)
        torch.manual_seed(0)
        network, _ = build("vgg11", classes=classes, image_size=32, weights=tmp_path / "features.pth")
        prepare(network, images, part="head", device=torch.device("cpu"))
        trunks.append(network.trunk.state_dict())
    assert trunks[0].keys() == trunks[1].keys()
    assert all(torch.equal(trunks[0][name], trunks[1][name]) for name in trunks[0])


def test_coloured_noise_is_as_rough_at_each_scale_as_photos_are():
    """Its amplitude falls as one over the frequency: halving the size leaves the contrast between neighbours alike."""
    noise = coloured_noise(8, size=64).astype(float)
    halved = noise.reshape(8, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    fine, coarse = np.abs(np.diff(noise, axis=1)).mean(), np.abs(np.diff(halved, axis=1)).mean()
    assert coarse == pytest.approx(fine, rel=0.3)
    np.testing.assert_array_equal(coloured_noise(8, size=64), noise)
