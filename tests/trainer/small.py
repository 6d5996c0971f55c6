"""A network of the trainer's kind that trains and exports in a moment, and class folders for it."""

from datetime import UTC, datetime

import numpy as np
import torch
from PIL import Image
from torch import nn

from contract.graph.fingerprint import fingerprint
from contract.versions.manifest import InputSpec, Manifest
from contract.versions.version import INT8_BACKBONE_FILE, PROBE_FILE
from trainer.model.export import export
from trainer.model.network import Network, Normalise
from trainer.model.probe import compute_probe
from trainer.model.quantise import quantise
from trainer.model.weights import Provenance

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 60), "red": (220, 30, 30)}
PROVENANCE = Provenance("none", None, (), ("classifier.0", "classifier.3", "classifier.6"))


def small_network(classes=3):
    """Two convolutions, one with batch normalisation, and three linear layers with Dropout before two of them."""
    backbone = nn.Sequential(
        Normalise(),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
    )
    classifier = nn.Sequential(
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(32, classes),
    )
    return Network(backbone, classifier)


def coloured_images(rng, count, *, size=32):
    """Return noisy images of one colour each, uint8 (N, H, W, 3), and their classes in turn."""
    targets = np.arange(count) % len(COLOURS)
    colours = np.array(list(COLOURS.values()))[targets]  # (N, 3)
    noise = rng.integers(-60, 60, size=(count, size, size, 3))
    return (colours[:, None, None] + noise).clip(0, 255).astype(np.uint8), targets


def write_folders(root, *, each, size=40):
    """Write class folders with `each` PNG files a class."""
    images, targets = coloured_images(np.random.default_rng(7), each * len(COLOURS), size=size)
    names = list(COLOURS)
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        folder = root / names[target]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return root


def lively_network(seed=0):
    """Return a small network whose passes disagree."""
    torch.manual_seed(seed)
    network = small_network()
    with torch.no_grad():
        for parameter in network.classifier.parameters():
            parameter.mul_(3)
    return network


def stage_files(staged, network, images, *, passes=20, multiple=False):
    """Write a network's graph, weights and probe as the trainer does, and return the manifest."""
    spec = InputSpec(*images.shape[1:3])
    lowered = export(network, staged.path, image_size=spec.height)
    probe = compute_probe(
        network, images, version=staged.version, sites=lowered.sites, passes=passes, multiple=multiple
    )
    probe.save(staged.path / PROBE_FILE)
    return Manifest(
        version=staged.version,
        created_at="2026-01-02T00:00:00+00:00",
        labels=tuple(COLOURS),
        control=None,
        input=spec,
        passes=passes,
        dropout_sites=lowered.sites,
        architecture="small",
        backbone=fingerprint(lowered.backbone, staged.path, spec),
        multiple=multiple,
    )


def publish_small(repository, network, images, *, int8_of=None):
    """Publish a network, and beside it the backbone in 8-bit integers of `int8_of`, which may be another network."""
    with repository.stage(datetime.now(UTC)) as staged:
        if int8_of is not None:
            export(int8_of, staged.path, image_size=images.shape[1])
            quantise(staged.path, images, staged.path / INT8_BACKBONE_FILE)
        return staged.publish(stage_files(staged, network, images))
