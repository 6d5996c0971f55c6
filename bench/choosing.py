"""How long does choosing take? `python -m bench.choosing [--images 100000] [--batch 100]`.

Measures the default strategy from scores to order, with few and many labels, with and without the search for
near-duplicates, on synthetic scores of 10 and 100 classes. Embeddings are low-dimensional like those of photos:
features of a random network with one hidden layer on points with a few dozen dimensions.
"""

import time
from itertools import product
from typing import Final

import numpy as np

from bench.harness.frame import print_table, read_options, report
from contract.scores.acquisition import entropy, softmax
from contract.scores.embedding import embed
from contract.scores.holdout import DEFAULT_SHARE
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY, Candidates, LabelledImages

_OPTIONS = {"images": (100_000, "unlabelled images"), "batch": (100, "images to label next")}
_CLASSES: Final = (10, 100)
_DIRECTIONS, _HIDDEN = 48, 320
_SPREAD: Final = 4.0
"""Standard deviation of the logits."""
_CHUNK: Final = 10_000
_LABELS_PER_CLASS: Final = (1, 40)
"""On average."""


def make_candidates(images: int, *, classes: int) -> Candidates:
    """Return candidates, few of them certain, of common and rare classes, all with different embeddings."""
    rng = np.random.default_rng(classes)
    scales = 1 / np.sqrt(1 + np.arange(_DIRECTIONS))
    layer = rng.normal(size=(_DIRECTIONS, _HIDDEN)).astype(np.float32)
    embeddings = np.concatenate(
        [
            embed(np.maximum((rng.normal(size=(len(part), _DIRECTIONS)) * scales).astype(np.float32) @ layer, 0))
            for part in np.array_split(np.arange(images), -(-images // _CHUNK))
        ]
    )
    commonness = np.linspace(_SPREAD / 2, -_SPREAD / 2, classes)
    probabilities = softmax(_SPREAD * rng.normal(size=(images, classes)) + commonness).astype(np.float32)
    nats = entropy(probabilities).astype(np.float32)
    bald = (nats * rng.random(images)).astype(np.float32)
    sent = embeddings.astype(np.float16).astype(np.float32)
    return Candidates(np.arange(images), probabilities, bald, nats, sent, multiple=False)


def measure(candidates: Candidates, *, batch: int, labels: int, duplicates: bool) -> float:
    """Return the seconds taken to order candidates, given `labels` labels of each class."""
    classes = candidates.probabilities.shape[1]
    started = time.perf_counter()
    arrange(
        candidates,
        strategy=DEFAULT_STRATEGY,
        project=1,
        name="v1",
        labels_by_class=[labels] * classes,
        labelled=LabelledImages(
            candidates.embeddings[: labels * classes] + np.float32(0.01),
            candidates.probabilities[: labels * classes].argmax(axis=1),
        ),
        holdout_share=DEFAULT_SHARE,
        batch_size=batch,
        duplicates=duplicates,
    )
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    options = read_options("choosing", __doc__, _OPTIONS)
    rows = []
    for classes in _CLASSES:
        candidates = make_candidates(options.images, classes=classes)
        for labels, duplicates in product(_LABELS_PER_CLASS, (False, True)):
            seconds = measure(candidates, batch=options.batch, labels=labels, duplicates=duplicates)
            row = {"classes": classes, "labels per class": labels, "near-duplicates": duplicates}
            rows.append({**row, "seconds": round(seconds, 2)})
    print_table(rows)
    report("choosing", options, None, {"rows": rows})


if __name__ == "__main__":
    main()
