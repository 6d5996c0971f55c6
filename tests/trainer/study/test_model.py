import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from baal.active.heuristics import BALD
from baal.modelwrapper import ModelWrapper, TrainingArgs

from contract.scores.acquisition import bald
from tests.trainer.small import coloured_images, freeze_network, small_backbone, use_small_backbone
from tests.trainer.study.datasets import make_trainer
from trainer.model.bayes import masked_passes
from trainer.model.build import Network
from trainer.model.fit import fit
from trainer.model.head import build_head, fit_standardisation
from trainer.model.recipe import choose_recipe
from trainer.settings import Training
from trainer.study.model import Dataset

pytestmark = pytest.mark.slow  # trains or exports networks

CPU = torch.device("cpu")
TRAINING = Training(weights="none", part="classifier", epochs=4, units=16, passes=12, seed=3, device="cpu")
FEW, MANY = np.arange(0, 30), np.arange(20, 90)
ALL = np.arange(140)
"""More than one batch."""


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
    """Replace VGG by a small backbone with fixed weights."""
    torch.manual_seed(0)
    backbone = small_backbone()
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch, lambda: replace(backbone, module=copy.deepcopy(backbone.module)))
        yield backbone


@pytest.fixture(scope="module")
def fresh(_small_backbone):
    """The initial network of `TRAINING`."""
    torch.manual_seed(TRAINING.seed)
    return Network(copy.deepcopy(_small_backbone.module), build_head(64, 16, classes=3, units=16)).eval()


@pytest.fixture(scope="module")
def dataset(fresh, tmp_path_factory):
    images, targets = coloured_images(np.random.default_rng(0), len(ALL))
    pixels = np.clip(images + np.random.default_rng(1).integers(-90, 90, (len(images), 1, 1, 3)), 0, 255)
    images, cache = pixels.astype(np.uint8), tmp_path_factory.mktemp("cache")
    features = freeze_network(fresh, cache / "frozen").compute(images)
    return Dataset(("blue", "green", "red"), targets, images, features, cache)


@pytest.fixture(scope="module")
def trained(fresh, dataset):
    """Models of one trainer with few and many labels, and the same networks trained by the steps of `trainer run`."""
    trainer = make_trainer(dataset, TRAINING)
    models = [trainer.train(FEW, "study/3/0"), trainer.train(MANY, "study/3/1")]
    return list(zip(models, (train_by_hand(fresh, dataset, each) for each in (FEW, MANY)), strict=True))


def train_by_hand(fresh, dataset, labelled, *, part="classifier"):
    """Return a copy trained by the steps of `trainer run`."""
    network = copy.deepcopy(fresh)
    torch.manual_seed(TRAINING.seed)
    recipe = choose_recipe(TRAINING, part, len(labelled))
    if part == "classifier":
        inputs, module = torch.from_numpy(dataset.features[labelled]), network.head
        fit_standardisation(module, inputs)
    else:
        inputs, module = torch.from_numpy(dataset.images[labelled]), network
        network.backbone.train()
        with torch.no_grad():
            fit_standardisation(network.head, network.backbone(inputs))
    fit(module, inputs, dataset.targets[labelled], classes=3, recipe=recipe, device=CPU)
    return network.eval()


def passes_of(network, dataset, masks):
    with torch.no_grad():
        return masked_passes(network.head, network.backbone(torch.from_numpy(dataset.images)), masks)


@pytest.mark.parametrize("index", [0, 1], ids=["first", "second"])
def test_passes_equal_torch_under_the_same_masks(trained, dataset, index):
    """Trained by production's steps with the same seed; training another model leaves the first unchanged."""
    model, network = trained[index]
    expected = passes_of(network, dataset, model.masks)
    features = model.compute_features(ALL)
    np.testing.assert_allclose(model.passes(features), expected, atol=1e-3)
    assert expected.std(axis=1).max() > 0.01


def test_scores_are_computed_from_the_passes(trained):
    model = trained[1][0]
    features = model.compute_features(ALL)
    scores, passes = model.score(ALL, features), model.passes(features).astype(np.float64)
    mean = passes.mean(axis=1)
    np.testing.assert_allclose(scores.probabilities, mean, atol=1e-6)
    np.testing.assert_allclose(scores.entropy, -(mean * np.log(mean)).sum(axis=1), atol=1e-5)
    np.testing.assert_allclose(scores.bald, bald(passes), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(scores.embeddings, axis=1), 1, atol=1e-3)
    np.testing.assert_array_equal(scores.embeddings, scores.embeddings.astype(np.float16))


def test_rank_by_baal_equals_baal(trained):
    """With the same random numbers; baal's BALD equals ours to 1e-6."""
    model, network = trained[1]
    features = model.compute_features(ALL)
    torch.manual_seed(8)
    ranking = model.rank_by_baal(features)
    wrapper = ModelWrapper(network.head, TrainingArgs(use_cuda=False))
    wrapper.eval()
    torch.manual_seed(8)
    chunks = torch.split(torch.from_numpy(features), 128)
    logits = torch.cat([wrapper.predict_on_batch(chunk, iterations=12) for chunk in chunks]).numpy()  # (N, C, T)
    np.testing.assert_array_equal(ranking, BALD()(logits))
    passes = torch.from_numpy(logits).softmax(dim=1).numpy().transpose(0, 2, 1)
    np.testing.assert_allclose(bald(passes), BALD().get_uncertainties(logits), atol=1e-6)


def test_trained_backbone_computes_the_features(fresh, dataset):
    trainer = make_trainer(replace(dataset, features=None), replace(TRAINING, part="all"))
    embeddings = trainer.embed(ALL)
    model = trainer.train(FEW, "m")
    network = train_by_hand(fresh, dataset, FEW, part="all")
    with torch.no_grad():
        expected = network.backbone(torch.from_numpy(dataset.images)).numpy()
        before = fresh.backbone(torch.from_numpy(dataset.images)).numpy()
    features = model.compute_features(ALL)
    np.testing.assert_allclose(features, expected, rtol=2e-3, atol=2e-3)
    assert np.abs(features - before).max() > 0.1
    masks = model.masks
    np.testing.assert_allclose(model.passes(features), passes_of(network, dataset, masks), atol=1e-3)
    np.testing.assert_array_equal(trainer.embed(ALL), embeddings)  # of the backbone before any training
