"""Agreement of the ranking by BALD from T passes with that from 2,000 passes.

The server's engine computes all of them from the same features. The reference's masks are independent for all units and
passes, unlike the server's balanced masks, so that it favours neither.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from bench.passes.rounds import Images
from contract.graph.masks import Masks, mask_name
from contract.scores.acquisition import entropy
from contract.versions.manifest import DropoutSite
from server.inference.engine import Engine

Floats = npt.NDArray[np.float32]
Nats = npt.NDArray[np.float64]

_ROWS = 3200
"""Images times passes in one run of the head: 52 MB for each of VGG-16's layers."""
_REFERENCE_STEP = 100
"""Passes of the reference in one run."""


Agreement = Mapping[str, float]
"""Agreement of two rankings, 1 for equal ones: `spearman`, and `top10_overlap`, the share of the reference's top tenth
that is also in the other's."""


def compare(scores: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> Agreement:
    """Return the agreement of two scorings (N,) of the same images; higher scores rank first."""
    count = max(1, round(0.1 * len(reference)))
    tops = [set(np.argsort(-each, kind="stable")[:count].tolist()) for each in (scores, reference)]
    spearman = float(spearmanr(scores, reference).statistic)
    return {"spearman": spearman, "top10_overlap": len(tops[0] & tops[1]) / count}


def compute_features(engine: Engine, images: Images, *, batch: int = 32) -> Floats:
    """Return the backbone's features of uint8 (N, H, W, 3): float32 (N, F)."""
    return np.concatenate([engine.backbone.compute(images[i : i + batch]) for i in range(0, len(images), batch)])


def compute_bald(engine: Engine, features: Floats, masks: Masks | None = None) -> Floats:
    """Return BALD in nats under the masks of T passes, by default the engine's: (N, F) to (N,)."""
    passes = engine.passes if masks is None else len(masks[mask_name(0)])
    return np.concatenate([engine.run_passes(part, masks).bald for part in _parts(features, passes)])


def reference_bald(engine: Engine, features: Floats, *, passes: int, seed: int = 0) -> Nats:
    """Return BALD in nats from many independent passes, in float64: (N, F) to (N,).

    Sums over passes suffice, since BALD depends on mean p and mean H[p] alone.
    """
    rng = np.random.default_rng(seed)
    probabilities, conditional = np.zeros((1, 1)), np.zeros(1)
    for start in range(0, passes, _REFERENCE_STEP):
        masks = independent_masks(rng, engine.sites, min(_REFERENCE_STEP, passes - start))
        outputs = (engine.run_passes(part, masks) for part in _parts(features, _REFERENCE_STEP))
        parts = [output.pass_probabilities.astype(np.float64) for output in outputs]  # each (n, T, C)
        probabilities = probabilities + np.concatenate([part.sum(axis=1) for part in parts])  # (N, C)
        conditional = conditional + np.concatenate([entropy(part).sum(axis=1) for part in parts])  # (N,)
    nats: Nats = entropy(probabilities / passes) - conditional / passes
    return nats


def mean_agreement(engine: Engine, features: Floats, reference: Nats, sets: Iterable[Masks]) -> Agreement:
    """Return the agreement of BALD with the reference, as a mean over sets of masks."""
    agreements = [compare(compute_bald(engine, features, masks), reference) for masks in sets]
    return {figure: fmean(each[figure] for each in agreements) for figure in agreements[0]}


def independent_masks(
    rng: np.random.Generator, sites: Sequence[DropoutSite], passes: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Return masks as of `contract.graph.masks`, but drawn independently for each unit and pass."""
    masks = {}
    for i, site in enumerate(sites):
        kept = rng.random((passes, *site.features)) >= site.probability
        masks[mask_name(i)] = (kept / (1 - site.probability)).astype(np.float32)
    return masks


def _parts(features: Floats, passes: int) -> Iterator[Floats]:
    images = max(1, _ROWS // passes)
    return (features[i : i + images] for i in range(0, len(features), images))
