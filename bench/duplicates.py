"""Does an order waste labels on near-copies? `python -m bench.duplicates [--image-size 224] [--originals 150]`.

Takes photos that a version was not trained on and nine near-copies of each, like those of bursts, re-encoding and
repeated scans: shifted, cropped, darker, brighter, with more contrast, JPEGs of two qualities, noisy, blurred. The
server's engine scores and embeds them, and they are ordered. Reported are

    distinct    distinct photos among the first 100, in the default order and by plain BALD, each with and without
                moving near-duplicates back
    claimed     the share of each kind of copy recognised as a near-duplicate of its photo, and the share of photos
                mistaken for near-duplicates of other photos
"""

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from bench.harness.frame import print_table, read_options, report
from bench.subjects.model import Subject, train_subject
from bench.subjects.photos import save
from contract.images.preprocess import decode_image
from contract.scores.embedding import embed
from contract.scores.holdout import DEFAULT_SHARE
from server.inference.engine import Engine, EngineOptions
from server.inference.resources import available_cpus
from trainer.ordering.duplicates import PredictedLabels, find_representatives
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY, Candidates
from trainer.progress_bar import Bar

Edit = Callable[[Image.Image, np.random.Generator], Image.Image]

_OPTIONS: Mapping[str, tuple[object, str]] = {
    "image_size": (224, "in pixels"),
    "labels": (400, "photos to train the version on"),
    "originals": (150, "photos to copy"),
    "first": (100, "images at the top of an order to count distinct photos in"),
}
_PROJECT = 1
_SHIFTED, _CROPPED = 0.03, 0.05
"""As shares of width and height."""


def near_copies(photo: Image.Image, rng: np.random.Generator) -> dict[str, Image.Image]:
    """Return a near-copy of each kind of an RGB image, of equal size."""
    return {kind: edit(photo, rng) for kind, edit in EDITS.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print tables and a line of JSON."""
    options = read_options("duplicates", __doc__, _OPTIONS, arguments)
    subject = train_subject(image_size=options.image_size, labels=options.labels)
    pool = _score(subject, subject.photos[: options.originals])
    counts = _count_distinct(subject, pool, first=options.first)
    claimed, photos_claimed = _measure_claims(pool)
    print_table([{"order": name, f"distinct of {options.first}": count} for name, count in counts.items()])
    print_table([{"copies": kind, "claimed": share} for kind, share in {**claimed, "photos": photos_claimed}.items()])
    result = {
        "copies": len(EDITS),
        "strategy": DEFAULT_STRATEGY,
        **{f"distinct_{name}": count for name, count in counts.items()},
        "claimed": claimed,
        "photos_claimed": photos_claimed,
    }
    report("duplicates", options, subject, result)


def _score(subject: Subject, photos: Sequence[Path]) -> Candidates:
    """Score photos as the server does, each followed by its copies in the order of `EDITS`."""
    manifest = subject.version.manifest
    engine = Engine(subject.version, EngineOptions(threads=available_cpus()))
    rng = np.random.default_rng(0)
    embeddings, outputs = [], []
    for photo in Bar(photos, desc="photos and copies", unit="photo"):
        with Image.open(photo) as image:
            upright = image.convert("RGB")
        files = [save(each, "PNG", compress_level=1) for each in (upright, *near_copies(upright, rng).values())]
        features = engine.backbone.compute(np.stack([decode_image(file, manifest.input) for file in files]))
        embeddings.append(embed(features, last=engine.last_stage).astype(np.float16))  # as sent by the server
        outputs.append(engine.run_passes(features))
    names = ("mean_probabilities", "bald", "entropy")
    mean, bald, nats = (np.concatenate([getattr(each, name) for each in outputs]) for name in names)
    sent = np.concatenate(embeddings).astype(np.float32)
    return Candidates(np.arange(_PER_PHOTO * len(photos)), mean, bald, nats, sent, manifest.multiple)


def _count_distinct(subject: Subject, pool: Candidates, *, first: int) -> dict[str, int]:
    manifest = subject.version.manifest
    counts = {}
    for (name, strategy), duplicates in product((("default", DEFAULT_STRATEGY), ("bald", "bald")), (True, False)):
        order = arrange(
            pool,
            strategy=strategy,
            project=_PROJECT,
            name=manifest.version,
            labels_by_class=[manifest.training.images_by_class[label] for label in manifest.labels],
            holdout_share=DEFAULT_SHARE,
            batch_size=first,
            duplicates=duplicates,
        ).order
        key = name if duplicates else f"{name}_keeping_duplicates"
        counts[key] = len(np.unique(pool.task_ids[order[:first]] // _PER_PHOTO))
    return counts


def _measure_claims(pool: Candidates) -> tuple[dict[str, float], float]:
    """Return the share of copies claimed by their photos, by kind, and the share of photos claimed by other photos."""
    numbers = pool.task_ids
    photos, copies = numbers[numbers % _PER_PHOTO == 0], numbers[numbers % _PER_PHOTO > 0]
    claimed_by = find_representatives(pool.embeddings, np.concatenate([photos, copies]), PredictedLabels.of(pool))
    claimed = (claimed_by // _PER_PHOTO == numbers // _PER_PHOTO) & (claimed_by != numbers)  # (N,)
    by_kind = claimed.reshape(-1, _PER_PHOTO).mean(axis=0)
    photo = pool.take(photos)
    own = np.arange(len(photos))
    representatives = find_representatives(photo.embeddings, own, PredictedLabels.of(photo))
    return dict(zip(EDITS, by_kind[1:].tolist(), strict=True)), float((representatives != own).mean())


def _shift(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shift the photo, and repeat its border."""
    pixels = np.asarray(photo)
    reach = max(1, round(_SHIFTED * max(photo.size)))
    padded = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    down, right = rng.choice([0, 2 * reach], size=2)
    return Image.fromarray(padded[down : down + photo.height, right : right + photo.width])


def _crop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop at a random position, and enlarge to the original size."""
    left, top = (rng.uniform(0, _CROPPED) * side for side in photo.size)
    width, height = ((1 - _CROPPED) * side for side in photo.size)
    box = (left, top, left + width, top + height)
    return photo.resize(photo.size, Image.Resampling.BILINEAR, box=box)


def _as_jpeg(photo: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(save(photo, "JPEG", quality=quality))).convert("RGB")


def _add_noise(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(photo, np.float64)
    return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


EDITS: Final[Mapping[str, Edit]] = {
    "shifted": _shift,
    "cropped": _crop,
    "darker": lambda photo, _: ImageEnhance.Brightness(photo).enhance(0.8),
    "brighter": lambda photo, _: ImageEnhance.Brightness(photo).enhance(1.2),
    "more contrast": lambda photo, _: ImageEnhance.Contrast(photo).enhance(1.25),
    "JPEG of quality 60": lambda photo, _: _as_jpeg(photo, 60),
    "JPEG of quality 30": lambda photo, _: _as_jpeg(photo, 30),
    "noisy": _add_noise,
    "blurred": lambda photo, _: photo.filter(ImageFilter.GaussianBlur(photo.width / 200)),
}
_PER_PHOTO: Final = 1 + len(EDITS)
"""Images per photo: itself and its copies."""


if __name__ == "__main__":
    main()
