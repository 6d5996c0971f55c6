"""Whether an answer is right: compared with an engine that scores in peace, in this process and in one batch."""

from collections.abc import Collection, Sequence
from functools import cache

import numpy as np

from bench.chaos.client import Answer
from bench.chaos.pictures import Picture
from bench.chaos.traffic import Manner
from contract.images.preprocess import decode_image
from contract.scores.acquisition import label_studio_score
from contract.versions.repository import Repository
from server.inference.validation import admit
from server.opening import engine_loader
from server.settings import Device, Settings

TOLERANCE = 1e-6
"""Of a score: replicas agree to this."""


class Judge:
    """Knows every version's score of every picture."""

    def __init__(self, repository: Repository, pictures: Sequence[Picture], *, bad_versions: Collection[str]) -> None:
        """Take the repository, in peace again, and the versions in it that no server should ever have used."""
        self._repository = repository
        self._pictures = pictures
        self._good = frozenset(repository.versions()) - frozenset(bad_versions)
        self.scores_of = cache(self._scores_of)

    def is_lost(self, answer: Answer) -> bool:
        """Whether a client waited for predictions and got none, or too few."""
        if not answer.request.valid or not _waited(answer):
            return False
        return answer.status != 200 or answer.scores is None or len(answer.scores) < len(answer.request.images)

    def find_fault(self, answer: Answer) -> str | None:
        """Say what is wrong with an answer that is not lost; None if it is right."""
        if not _waited(answer) or self.is_lost(answer):
            return None
        if not answer.request.valid:
            refused = answer.status is not None and 400 <= answer.status < 500
            return None if refused else f"a bad request was answered with {answer.status}, {answer.fault}"
        return self._compare(answer)

    def _compare(self, answer: Answer) -> str | None:
        asked, scores = answer.request.images, answer.scores or ()
        if len(scores) != len(asked):
            return f"{len(scores)} results to {len(asked)} tasks"
        if not answer.versions <= self._good or len(answer.versions) > 1:
            return f"predictions are of {sorted(answer.versions)}"
        for position, (index, score) in enumerate(zip(asked, scores, strict=True)):
            if (index is None) != (score is None):
                return f"task {position} of {len(asked)} has the score {score}, its image is picture {index}"
            if index is not None and score is not None:
                expected = self.scores_of(*answer.versions)[index]
                if not abs(score - expected) <= TOLERANCE:
                    return f"picture {index} has the score {score}, expected is {expected} of {answer.versions}"
        return None

    def _scores_of(self, version: str) -> Sequence[float]:
        """Return the version's score of each picture."""
        engine = admit(self._repository, version, engine_loader(Settings(provider=Device.CPU))).engine
        images = np.stack([decode_image(picture.data, engine.manifest.input) for picture in self._pictures])
        step = engine.buckets[-1]
        bald = [engine.run(images[start : start + step]).bald for start in range(0, len(images), step)]
        scores: list[float] = label_studio_score(np.concatenate(bald), len(engine.manifest.labels)).tolist()
        return scores


def _waited(answer: Answer) -> bool:
    return answer.request.manner in (Manner.PLAIN, Manner.SLOWLY)
