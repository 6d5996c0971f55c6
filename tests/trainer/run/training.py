"""Options and helpers for training runs of a small network."""

from dataclasses import replace

from trainer.run import run
from trainer.settings import Environment, Source, Training

TRAINING = Training(weights="none", image_size=32, epochs=2, device="cpu")
"""Trains backbone and head."""
CLASSIFIER = replace(TRAINING, part="classifier", precision="fp32", epochs=10)


def environment_in(root):
    return Environment(models=root / "models", cache=root / "cache", cache_dir=root / "features")


def train(folders, training, environment):
    """Train on class folders, and return the published version."""
    return run(Source(images=folders), training, environment)
