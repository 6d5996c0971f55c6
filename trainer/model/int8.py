"""Which precision a backbone is served in, and so trained on: 8-bit integers where they give what float32 does, faster.

Decided once for a backbone, and kept with it: made anew on other images it would give other features, and all that
servers have kept would be lost.
"""

import json
import logging
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from contract.errors import LabelnextError
from contract.versions.repository import Repository
from contract.versions.version import INT8_BACKBONE_FILE, digest_file
from trainer.model.frozen import Features, FrozenBackbone, Images
from trainer.model.graphs.quantise import quantise

LEAST_IMAGES: Final = 32
"""To calibrate on: the range that activations take is one of few images, and kept for good."""
LEAST_LIKENESS: Final = 0.98
LEAST_SPEEDUP: Final = 1.2
_COMPARED_IMAGES: Final = 16
_VERDICT_FILE: Final = "int8.json"

_log = logging.getLogger(__name__)


def in_best_precision(
    backbone: FrozenBackbone, images: Images, *, repository: Repository | None = None
) -> FrozenBackbone:
    """Return a backbone, given in float32, in 8-bit integers if it is as good there and faster.

    What versions in the repository have is taken as it is; else it is made and judged now on images uint8 (N, H, W, 3),
    unless it was before.
    """
    target, verdict = backbone.folder / INT8_BACKBONE_FILE, backbone.folder / _VERDICT_FILE
    reduced = replace(backbone, precision="int8")
    if repository is not None and _take_published(repository, backbone.fingerprint, target):
        return reduced
    better = _read_verdict(verdict, target)
    if better is None:
        if len(images) < LEAST_IMAGES:
            _log.info("int8: not made yet, %d images to calibrate on are needed, got %d", LEAST_IMAGES, len(images))
            return backbone
        judged = _judge(backbone, reduced, images)
        verdict.write_text(json.dumps(judged), encoding="utf-8")
        better = bool(judged["better"])
    return reduced if better else backbone


def _read_verdict(verdict: Path, target: Path) -> bool | None:
    """Return what was judged before; None if nothing was, or what it was about is gone."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        better = bool(json.loads(verdict.read_text(encoding="utf-8"))["better"])
        return better if target.exists() or not better else None
    return None


def _take_published(repository: Repository, fingerprint: str, target: Path) -> bool:
    """Copy what the newest version of that backbone has; False if none has any."""
    for name in reversed(repository.versions()):
        # Damaged, or being removed: of no use here, and not this run's business.
        with suppress(LabelnextError, OSError):
            manifest = repository.read_manifest(name)
            if manifest.backbone.fingerprint == fingerprint and INT8_BACKBONE_FILE in manifest.files:
                if not target.exists() or digest_file(target) != manifest.files[INT8_BACKBONE_FILE]:
                    with repository.open_verified(name) as verified:
                        verified.copy(INT8_BACKBONE_FILE, target)
                return True
    return False


def _judge(backbone: FrozenBackbone, reduced: FrozenBackbone, images: Images) -> dict[str, object]:
    """Make the backbone in 8-bit integers, and compare it with that in float32: likeness, and speed."""
    try:
        graph, target = backbone.graph_with_weights(), backbone.folder / INT8_BACKBONE_FILE
        quantise(graph, images, target, mean=backbone.mean, deviation=backbone.deviation)
        compared = images[np.linspace(0, len(images) - 1, num=min(_COMPARED_IMAGES, len(images)), dtype=np.int64)]
        (exact, exact_s), (found, found_s) = (_time(each, compared) for each in (backbone, reduced))
    except Exception as err:  # of a tool with many, for networks that it was not made for
        _log.warning("int8: not to be had of %s: %s", backbone.name, err)
        return {"better": False, "reason": str(err)}
    like, faster = likeness(exact, found), exact_s / found_s
    better = like >= LEAST_LIKENESS and faster >= LEAST_SPEEDUP
    used = "used" if better else "not used"
    _log.info("int8: features are like float32's to %.4f, %.1f times as fast: %s", like, faster, used)
    return {"better": better, "likeness": like, "speedup": faster}


def likeness(exact: Features, found: Features) -> float:
    """Return the mean cosine between features (N, F) and what stands for them, both less the mean of the exact ones."""
    centre = exact.mean(axis=0)
    a, b = exact - centre, found - centre
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)).mean())


def _time(backbone: FrozenBackbone, images: Images) -> tuple[Features, float]:
    backbone.compute(images[:1], title="int8")
    started = time.perf_counter()
    features = backbone.compute(images, title="int8")
    return features, time.perf_counter() - started
