"""Compares answers with the scores of an engine in this process."""

from collections.abc import Collection, Sequence
from functools import cache

import numpy as np

from bench.chaos.traffic import Picture, Request
from bench.harness.load import Reply
from contract.images.preprocess import decode_image
from contract.scores.acquisition import label_studio_score
from contract.versions.repository import Repository
from server.inference.validation import admit
from server.opening import engine_loader
from server.settings import Device, Settings

TOLERANCE = 1e-6
"""Absolute tolerance of scores, within which replicas agree."""


class Judge:
    """Decides whether answers are lost or wrong."""

    def __init__(self, repository: Repository, pictures: Sequence[Picture], *, bad_versions: Collection[str]) -> None:
        """Judge answers from a repository that no longer changes, given the versions that must never be used."""
        self._repository = repository
        self._pictures = pictures
        self._good = frozenset(repository.versions()) - frozenset(bad_versions)
        self.scores_of = cache(self._scores_of)

    def is_lost(self, request: Request, reply: Reply) -> bool:
        """Return whether a client waited for predictions, but got none or too few."""
        missing = reply.status != 200 or len(reply.scores) < len(request.images)
        return request.valid and request.waits and missing

    def find_fault(self, request: Request, reply: Reply) -> str | None:
        """Describe what is wrong with an answer; None if it is correct or lost."""
        if not request.waits or self.is_lost(request, reply):
            return None
        if not request.valid:
            refused = reply.status is not None and 400 <= reply.status < 500
            return None if refused else f"a malformed request was answered with {reply.status}, {reply.fault}"
        return self._compare(request.images, reply)

    def _compare(self, images: Sequence[int | None], reply: Reply) -> str | None:
        if len(reply.scores) != len(images):
            return f"expected {len(images)} results, got {len(reply.scores)}"
        if not reply.versions <= self._good or len(reply.versions) > 1:
            return f"the predictions are from {sorted(reply.versions)}"
        for position, (index, score) in enumerate(zip(images, reply.scores, strict=True)):
            if (index is None) != (score is None):
                return f"task {position} of {len(images)} with picture {index} has the score {score}"
            if index is not None and score is not None:
                expected = self.scores_of(*reply.versions)[index]
                if not abs(score - expected) <= TOLERANCE:  # also false for NaN
                    return f"expected the score {expected} of {sorted(reply.versions)} for picture {index}, got {score}"
        return None

    def _scores_of(self, version: str) -> Sequence[float]:
        """Return the version's score of each picture."""
        engine = admit(self._repository, version, engine_loader(Settings(provider=Device.CPU))).engine
        images = np.stack([decode_image(picture.data, engine.manifest.input) for picture in self._pictures])
        step = engine.buckets[-1]
        bald = [engine.run(images[start : start + step]).bald for start in range(0, len(images), step)]
        scores: list[float] = label_studio_score(np.concatenate(bald), len(engine.manifest.labels)).tolist()
        return scores
