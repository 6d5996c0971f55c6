"""How well T passes rank: BALD of a pool under T masks beside what 2,000 passes say.

Everything is computed by the server's engine, on features that are computed once. The reference's masks are independent
in all units and passes, unlike the server's, which are balanced: it takes no side.
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
"""Pairs of image and pass in one run of the head: 52 MB for each of VGG-16's layers."""
_REFERENCE_STEP = 100
"""Passes of the reference that are averaged at a time."""


Agreement = Mapping[str, float]
"""How alike two rankings of a pool are, 1 being the same: `spearman`, and `top10_overlap`, the share of the reference's
highest tenth that is in the other's."""


def compare(found: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> Agreement:
    """Compare two scorings (N,) of the same images, of which the highest count."""
    most = max(1, round(0.1 * len(reference)))
    tops = [set(np.argsort(-scores, kind="stable")[:most].tolist()) for scores in (found, reference)]
    spearman = float(spearmanr(found, reference).statistic)
    return {"spearman": spearman, "top10_overlap": len(tops[0] & tops[1]) / most}


def compute_features(engine: Engine, images: Images, *, batch: int = 32) -> Floats:
    """Return the backbone's output on uint8 (N, H, W, 3): float32 (N, F)."""
    return np.concatenate([engine.backbone.compute(images[i : i + batch]) for i in range(0, len(images), batch)])


def compute_bald(engine: Engine, features: Floats, masks: Masks | None = None) -> Floats:
    """Return BALD in nats, (N, F) to (N,), under the masks of T passes; None takes the engine's own."""
    passes = engine.passes if masks is None else len(masks[mask_name(0)])
    return np.concatenate([engine.run_passes(part, masks).bald for part in _parts(features, passes)])


def reference_bald(engine: Engine, features: Floats, *, passes: int, seed: int = 0) -> Nats:
    """Return BALD in nats over many independent passes, in float64: (N, F) to (N,).

    Keeps sums over the passes, not the passes: mean p and mean H[p] are all that BALD takes.
    """
    rng = np.random.default_rng(seed)
    probabilities, conditional = np.zeros((1, 1)), np.zeros(1)
    for start in range(0, passes, _REFERENCE_STEP):
        masks = independent_masks(rng, engine.sites, min(_REFERENCE_STEP, passes - start))
        outputs = (engine.run_passes(part, masks) for part in _parts(features, _REFERENCE_STEP))
        found = [output.pass_probabilities.astype(np.float64) for output in outputs]  # each (n, T, C)
        probabilities = probabilities + np.concatenate([part.sum(axis=1) for part in found])  # (N, C)
        conditional = conditional + np.concatenate([entropy(part).sum(axis=1) for part in found])  # (N,)
    nats: Nats = entropy(probabilities / passes) - conditional / passes
    return nats


def rank(engine: Engine, features: Floats, reference: Nats, sets: Iterable[Masks]) -> Agreement:
    """Compare the ranking under each of several sets of masks with the reference, and return the means."""
    found = [compare(compute_bald(engine, features, masks), reference) for masks in sets]
    return {figure: fmean(each[figure] for each in found) for figure in found[0]}


def independent_masks(
    rng: np.random.Generator, sites: Sequence[DropoutSite], passes: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Return masks in the form of `contract.graph.masks`, but with each unit of each pass drawn by itself."""
    masks = {}
    for i, site in enumerate(sites):
        kept = rng.random((passes, *site.features)) >= site.probability
        masks[mask_name(i)] = (kept / (1 - site.probability)).astype(np.float32)
    return masks


def _parts(features: Floats, passes: int) -> Iterator[Floats]:
    images = max(1, _ROWS // passes)
    return (features[i : i + images] for i in range(0, len(features), images))
