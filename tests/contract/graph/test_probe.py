"""Validation accepts sound versions, and detects all kinds of wrong dropout."""

import copy
import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from baal.bayesian.dropout import patch_module

from contract.errors import DropoutDead, PrecisionRejected, ProbeMismatch
from contract.graph.lowering import FEATURES, PassOutputs, lower
from contract.graph.masks import draw_masks
from contract.graph.probe import MIN_RANK_CORRELATION, TOLERANCE, Probe, validate
from contract.scores.acquisition import bald, rank_correlation
from contract.versions.manifest import DropoutSite
from tests.networks import Engine, masked_passes
from tests.versions import VERSION, manifest

PASSES = 400


@pytest.fixture(scope="module")
def small_manifest(small_graph):
    """The manifest of a version of the small network."""
    return dataclasses.replace(manifest(VERSION), dropout_sites=lower(small_graph, cut=FEATURES).sites)


def compute_probe(small, small_manifest, *, count=6):
    """Return the small network's probe, from free-running passes with baal and passes under the version's masks."""
    torch.manual_seed(2)
    images = torch.rand(count, 3, 8, 8)
    with torch.no_grad():
        active = patch_module(copy.deepcopy(small).eval(), inplace=False)
        logits = torch.stack([active(images) for _ in range(PASSES)])  # (R, N, C)
    passes = logits.sigmoid() if small_manifest.multiple else logits.softmax(dim=2)
    masks = draw_masks(VERSION, small_manifest.dropout_sites, 20)
    return Probe(
        images=images.numpy(),
        features=small.backbone(images).detach().numpy(),
        passes=PASSES,
        mean=passes.mean(dim=0).numpy(),
        variance=passes.var(dim=0).numpy(),
        masked_probabilities=masked_passes(small, images.numpy(), masks, multiple=small_manifest.multiple),
    )


@pytest.fixture(scope="module")
def probe(small, small_manifest):
    return compute_probe(small, small_manifest)


@pytest.fixture(scope="module")
def engine(small_graph):
    """The lowered graph in a correct engine."""
    return Engine(lower(small_graph, cut=FEATURES))


@pytest.fixture(scope="module")
def multilabel(small, small_graph, small_manifest):
    """The small network with multiple labels: manifest, probe and engine."""
    manifest = dataclasses.replace(small_manifest, multiple=True)
    return manifest, compute_probe(small, manifest, count=24), Engine(lower(small_graph, cut=FEATURES, multiple=True))


@pytest.fixture(params=["one label", "several labels"])
def sound(request, small_manifest, probe, engine, multilabel):
    """Manifest, probe and engine of a sound version."""
    return (small_manifest, probe, engine) if request.param == "one label" else multilabel


def validate_with(engine, probe, small_manifest, *, backbone=None, head=None, reduced=False):
    """Validate an engine with the given backbone or head."""
    return validate(
        probe, small_manifest, backbone=backbone or engine.backbone, head=head or engine.head, reduced=reduced
    )


def test_sound_version_is_valid(sound):
    """The lowered graph agrees with torch, and the result has its mean BALD and the largest difference."""
    manifest, probe, engine = sound
    validation = validate_with(engine, probe, manifest)
    assert 0 < validation.largest_difference < 1e-4
    assert validation.rank_correlation == pytest.approx(1)
    expected = bald(probe.masked_probabilities, multiple=manifest.multiple).mean()
    assert validation.mean_bald == pytest.approx(expected, rel=1e-3)
    assert validation.mean_bald > 0.01
    if manifest.multiple:  # the two do differ here
        ranks = (bald(probe.masked_probabilities, multiple=multiple) for multiple in (False, True))
        assert rank_correlation(*ranks) < 0.99


@pytest.mark.parametrize("site", [0, 1])
def test_rejects_one_dead_dropout_of_two(sound, site):
    """The passes still differ and BALD looks plausible, as if an optimiser had deleted one of two nodes."""
    manifest, probe, engine = sound

    def half_dead(features, masks):
        return engine.head(features, masks | {f"mask_{site}": np.ones_like(masks[f"mask_{site}"])})

    with pytest.raises((DropoutDead, ProbeMismatch)):
        validate_with(engine, probe, manifest, head=half_dead)


def test_rejects_a_reference_with_another_dropout_probability(sound, small):
    """Masks and graph agree, but baal's free-running passes differ from both."""
    manifest, probe, engine = sound
    sites = tuple(DropoutSite(site.features, 0.05) for site in manifest.dropout_sites)
    masked = masked_passes(small, probe.images, draw_masks(VERSION, sites, 20), multiple=manifest.multiple)
    consistent = dataclasses.replace(probe, masked_probabilities=masked)
    with pytest.raises(DropoutDead, match="drops too little"):
        validate_with(engine, consistent, dataclasses.replace(manifest, dropout_sites=sites))


def dead(head, features, masks):
    """Return equal passes, as without dropout."""
    return head(features, {name: np.ones_like(mask) for name, mask in masks.items()})


def rolled(head, features, masks):
    """Apply the masks to other rows, which preserves mean and variance."""
    return head(features, {name: np.roll(mask, 1, axis=0) for name, mask in masks.items()})


def diverged(head, features, masks):
    """Return NaN, as of a diverged model, which comparisons alone would accept."""
    outputs = head(features, masks)
    return dataclasses.replace(outputs, bald=np.full_like(outputs.bald, np.nan))


def narrower(head, features, masks):
    """Return another number of classes."""
    outputs = head(features, masks)
    return PassOutputs(*(getattr(outputs, name)[..., :3] for name in PassOutputs.__slots__))


def imprecise(head, features, masks):
    """Add an error that would be accepted in a reduced backbone."""
    return head(features + (np.random.default_rng(0).normal(size=features.shape) * 0.02).astype(np.float32), masks)


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (dead, DropoutDead, "all 20 passes are equal"),
        (rolled, ProbeMismatch, "differs from torch's under the same masks"),
        (diverged, ProbeMismatch, "not finite"),
        (narrower, ProbeMismatch, r"\(6, 20, 3\) on the probe, the trainer's have \(6, 20, 4\)"),
        (imprecise, ProbeMismatch, "differs from torch's under the same masks"),
    ],
)
def test_rejects_a_wrong_head(probe, small_manifest, engine, fault, error, message, reduced):
    with pytest.raises(error, match=message):
        validate_with(engine, probe, small_manifest, head=partial(fault, engine.head), reduced=reduced)


@pytest.mark.parametrize(
    ("change", "head_scale", "message"),
    [
        (lambda features: features * 1.1, 1, "differs from torch's under the same masks"),
        (lambda features: features / 2, 2, "differs from torch's under the same masks"),
        (lambda features: features[:, 1:], 1, r"features of shape \(6, 215\) on the probe, torch's have \(6, 216\)"),
    ],
    ids=["backbone", "head-compensates", "shape"],
)
def test_rejects_features_that_differ_from_torchs(probe, small_manifest, engine, change, head_scale, message):
    """Even if the head compensates the scale of the backbone."""

    def backbone(images):
        return change(engine.backbone(images))

    def head(features, masks):
        return engine.head(features * np.float32(head_scale), masks)

    with pytest.raises(ProbeMismatch, match=message):
        validate_with(engine, probe, small_manifest, backbone=backbone, head=head)


def noisy(engine, scale):
    """Return the backbone with relative noise, as in few-bit integers."""
    rng = np.random.default_rng(0)

    def run(images):
        features = engine.backbone(images)
        return features + (rng.normal(size=features.shape) * scale * np.abs(features).mean()).astype(np.float32)

    return run


def test_reduced_precision_that_ranks_like_torch_is_valid(probe, small_manifest, engine):
    validation = validate_with(engine, probe, small_manifest, backbone=noisy(engine, 0.02), reduced=True)
    assert validation.largest_difference > TOLERANCE
    assert MIN_RANK_CORRELATION <= validation.rank_correlation <= 1
    with pytest.raises(ProbeMismatch):
        validate_with(engine, probe, small_manifest, backbone=noisy(engine, 0.02))


def test_rejects_reduced_precision_that_ranks_differently(probe, small_manifest, engine, monkeypatch):
    """Unless BALD is nearly the same. The version may still be sound in fp32."""

    def shuffle(images):
        return engine.backbone(images[::-1])

    with pytest.raises(PrecisionRejected, match=r"correlation of -?0\.\d+ .*LABELNEXT_PRECISION=fp32"):
        validate_with(engine, probe, small_manifest, backbone=shuffle, reduced=True)
    monkeypatch.setattr("contract.graph.probe.BALD_NOISE", 2.0)
    validation = validate_with(engine, probe, small_manifest, backbone=shuffle, reduced=True)
    assert validation.rank_correlation < MIN_RANK_CORRELATION


def test_rejects_reduced_precision_that_overflows(probe, small_manifest, engine):
    """As float16 does beyond 65504. The version may still be sound in fp32."""

    def overflow(images):
        features = engine.backbone(images)
        features[0, 0] = np.inf
        return features

    with pytest.raises(PrecisionRejected, match=r"not finite.*LABELNEXT_PRECISION=fp32"):
        validate_with(engine, probe, small_manifest, backbone=overflow, reduced=True)
    with pytest.raises(ProbeMismatch, match="not finite"):
        validate_with(engine, probe, small_manifest, backbone=overflow)


def nearly_certain(probe, *, share, multiple=False):
    """Return the probe of a network whose labels flip in a share of passes, and a head with given flips."""
    certain, flipped = np.zeros((2, len(probe.images), 12), np.float32)
    if multiple:
        flipped[:] = 1
    else:
        certain[:, 0] = flipped[:, 1] = 1
    rare = dataclasses.replace(
        probe,
        mean=certain + (flipped - certain) * share,
        variance=(flipped - certain) ** 2 * share,
        masked_probabilities=np.repeat(certain[:, None], 20, axis=1),
    )

    def run(features, masks, *, flips):
        passes = np.repeat(certain[: len(features), None], len(masks["mask_0"]), axis=1)
        passes[0, 0] += 1e-3
        if passes.shape[1] > 20:
            passes[:, flips(passes.shape[1])] = flipped[: len(features), None]
        return PassOutputs(passes.mean(axis=1), np.zeros(len(features)), np.zeros(len(features)), passes)

    return rare, run


@pytest.mark.parametrize("flips_in_torch", [True, False])
def test_accepts_a_nearly_certain_model(sound, flips_in_torch):
    """A flip in one of hundreds of passes, in torch or the engine, is chance."""
    manifest, probe, _ = sound
    rare, run = nearly_certain(probe, share=flips_in_torch / PASSES, multiple=manifest.multiple)
    head = partial(run, flips=lambda _: [] if flips_in_torch else [1])
    assert validate_with(None, rare, manifest, backbone=lambda _: probe.features, head=head).mean_bald == 0


def test_accepts_rare_flips_of_all_images(small_manifest, probe):
    """One mask of 200 flips them: the first comparison may miss it, the longer one does not."""
    share = 1 / 200
    rare, run = nearly_certain(probe, share=share)

    def check(flips):
        validate_with(None, rare, small_manifest, backbone=lambda _: probe.features, head=partial(run, flips=flips))

    for seed in range(60):
        rng = np.random.default_rng(seed)
        check(lambda passes, rng=rng: np.flatnonzero(rng.random(passes) < share))
    with pytest.raises(DropoutDead):
        check(lambda _: [])
