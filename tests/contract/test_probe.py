"""The gate: what it lets through, and that it notices each way in which dropout goes wrong."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from baal.bayesian.dropout import patch_module
from onnx import numpy_helper

from contract.errors import DigestError, DropoutDead, ProbeMismatch
from contract.manifest import DropoutSite
from contract.passes import PassOutputs, draw_masks, lower
from contract.probe import Probe, prove
from tests.networks import Engine, masked_passes
from tests.versions import manifest

VERSION = "20260102T030405678Z-0a1b2c"
PASSES = 400


@pytest.fixture(scope="module")
def described(small_graph):
    """The manifest of a version that holds the small network."""
    return dataclasses.replace(manifest(VERSION), dropout_sites=lower(small_graph).sites)


@pytest.fixture(scope="module")
def probe(small, described):
    """The small network's probe, from free-running passes with baal and passes under the version's masks."""
    torch.manual_seed(2)
    images = torch.rand(6, 3, 8, 8)
    with torch.no_grad():
        active = patch_module(copy.deepcopy(small).eval(), inplace=False)
        passes = torch.stack([active(images).softmax(dim=1) for _ in range(PASSES)])  # (R, N, C)
    masks = draw_masks(VERSION, described.dropout_sites, 20)
    return Probe(
        images.numpy(),
        PASSES,
        passes.mean(dim=0).numpy(),
        passes.var(dim=0).numpy(),
        masked_passes(small, images.numpy(), masks),
    )


@pytest.fixture(scope="module")
def engine(small_graph):
    """The lowered graph as it should run."""
    return Engine(lower(small_graph))


def test_honest_version_is_proven(probe, described, engine):
    """The lowered graph agrees with torch, and the proof carries its mean BALD and largest difference."""
    proof = prove(probe, described, engine)
    assert 0 < proof.largest_difference < 1e-4
    expected = engine(probe.images, draw_masks(VERSION, described.dropout_sites, 20)).bald.mean()
    assert proof.mean_bald == pytest.approx(expected)
    assert proof.mean_bald > 0.01


def test_dead_dropout_is_refused(probe, described, engine):
    """An engine that drops nothing gives equal passes."""

    def dead(images, masks):
        return engine(images, {name: np.ones_like(mask) for name, mask in masks.items()})

    with pytest.raises(DropoutDead, match="all 20 passes are equal"):
        prove(probe, described, dead)


@pytest.mark.parametrize("site", [0, 1])
def test_one_dead_dropout_of_two_is_refused(probe, described, engine, site):
    """The passes still differ and BALD looks plausible, as when an optimiser deletes one node of two."""

    def half_dead(images, masks):
        return engine(images, masks | {f"mask_{site}": np.ones_like(masks[f"mask_{site}"])})

    with pytest.raises((DropoutDead, ProbeMismatch)):
        prove(probe, described, half_dead)


def test_masks_on_the_wrong_passes_are_refused(probe, described, engine):
    """Masks that reach other rows keep mean and variance; the exact comparison notices."""

    def rolled(images, masks):
        return engine(images, {name: np.roll(mask, 1, axis=0) for name, mask in masks.items()})

    with pytest.raises(ProbeMismatch, match="differs from torch's under the same masks"):
        prove(probe, described, rolled)


def test_reference_with_other_dropout_is_refused(probe, described, engine, small):
    """If masks and graph share an error, such as a wrong probability, baal's free-running passes expose it."""
    sites = tuple(DropoutSite(site.features, 0.05) for site in described.dropout_sites)
    wrong = dataclasses.replace(described, dropout_sites=sites)
    masks = draw_masks(VERSION, sites, 20)
    consistent = dataclasses.replace(probe, masked_probabilities=masked_passes(small, probe.images, masks))
    with pytest.raises(DropoutDead, match="drops too little"):
        prove(consistent, wrong, engine)


def test_other_weights_are_refused(small_graph, probe, described):
    """A graph whose weights are not those that torch had is not served."""
    graph = copy.deepcopy(small_graph)
    for tensor in graph.graph.initializer:
        if tensor.name == "head.4.bias":
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32([1, 0, 0, 0]), tensor.name)
            )
    with pytest.raises(ProbeMismatch):
        prove(probe, described, Engine(lower(graph)))


def test_numbers_that_are_not_finite_are_refused(probe, described, engine):
    """A diverged model gives NaN, which no comparison would notice by itself."""

    def diverged(images, masks):
        outputs = engine(images, masks)
        return dataclasses.replace(outputs, bald=np.full_like(outputs.bald, np.nan))

    with pytest.raises(ProbeMismatch, match="not finite"):
        prove(probe, described, diverged)


def test_probe_of_another_model_is_refused(probe, described, engine):
    """Another number of classes is named as such."""

    def narrower(images, masks):
        outputs = engine(images, masks)
        return PassOutputs(*(getattr(outputs, name)[..., :3] for name in PassOutputs.__slots__))

    with pytest.raises(ProbeMismatch, match=r"\(6, 20, 3\) on the probe, the trainer's have \(6, 20, 4\)"):
        prove(probe, described, narrower)


def test_all_but_certain_model_is_not_refused(probe, described):
    """Where one pass in hundreds flips a label, chance must not look like dead dropout."""
    certain = np.zeros((6, 4), dtype=np.float32)
    certain[:, 0] = 1
    flips = np.full((6, 4), 1e-3, dtype=np.float32)
    rare = dataclasses.replace(
        probe, mean=certain, variance=flips * 0.5, masked_probabilities=np.repeat(certain[:, None], 20, axis=1)
    )

    def run(images, masks):
        n = len(images)
        passes = np.repeat(certain[:n, None], len(masks["mask_0"]), axis=1)
        passes[0, 0, :2] = [1 - 1e-3, 1e-3]
        return PassOutputs(passes.mean(axis=1), np.zeros(n, np.float32), np.zeros(n, np.float32), passes)

    assert prove(rare, described, run).mean_bald == 0


def test_probe_survives_the_disk(probe, tmp_path):
    """What is saved is loaded back equal."""
    probe.save(tmp_path / "probe.npz")
    loaded = Probe.load(tmp_path / "probe.npz")
    for name in Probe.__slots__:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(probe, name))
    assert isinstance(loaded.passes, int)


@pytest.mark.parametrize("keep", [0, 10, 3000, -1])
def test_probe_cut_short_is_refused(probe, tmp_path, keep):
    """A file that cannot be read is named, whatever is left of it."""
    path = tmp_path / "probe.npz"
    probe.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DigestError, match=r"probe\.npz cannot be read .*publish again"):
        Probe.load(path)
