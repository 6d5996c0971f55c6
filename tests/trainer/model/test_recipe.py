import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.model.recipe import Recipe, choose_recipe, even_batches
from trainer.settings import Training

PARTS = ("all", "classifier")


@given(st.integers(1, 5000), st.integers(16, 64))
def test_batches_are_even(images, max_size):
    size = even_batches(images, max_size=max_size)
    assert size <= max_size
    assert size == images or size > max_size // 2
    assert ((images - 1) % size + 1) * 2 >= size


@pytest.mark.parametrize("part", PARTS)
def test_small_sets_get_enough_steps(part):
    few, many = choose_recipe(Training(), part, 4), choose_recipe(Training(), part, 2000)
    assert few.epochs * math.ceil(4 / few.batch_images) >= 60
    assert many.epochs < few.epochs
    assert many.class_balance == 1
    assert many.weight_decay > 0


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_explicit_options_override_the_recipe(part, decay):
    training = Training(epochs=3, learning_rate=0.5, weight_decay=decay, class_balance=decay)
    recipe = choose_recipe(training, part, 100)
    assert recipe == Recipe(0.5, 3, recipe.batch_images, weight_decay=decay, class_balance=decay)


def test_pretrained_convolutions_have_a_lower_learning_rate():
    """The learning rate of a head does not depend on the weights."""
    loaded, fresh = ({part: choose_recipe(Training(), part, 100, pretrained=each) for part in PARTS} for each in (1, 0))
    assert loaded["all"].learning_rate < fresh["all"].learning_rate
    assert loaded["classifier"] == fresh["classifier"]
