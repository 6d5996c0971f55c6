"""A small network that trains and exports quickly, and class folders for it."""

import atexit
import hashlib
import shutil
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from contract.versions.manifest import InputSpec, Manifest
from contract.versions.version import INT8_BACKBONE_FILE, PROBE_FILE
from trainer.model.backbones import LoadedBackbone
from trainer.model.backbones.layers import IMAGENET_DEVIATION, IMAGENET_MEAN, Normalise
from trainer.model.bayes import activate_dropout, compute_probe
from trainer.model.build import Network
from trainer.model.frozen import freeze, read_frozen
from trainer.model.graphs.export import export
from trainer.model.graphs.int8 import quantise
from trainer.model.weights import Provenance

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 60), "red": (220, 30, 30)}
PROVENANCE = Provenance("none", None, (), ())


def small_backbone():
    """Return a backbone of two convolutions, one with batch normalisation: (N, 32, 32, 3) to (N, 64)."""
    module = nn.Sequential(
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
    spec = InputSpec(32, 32)
    return LoadedBackbone("small", spec, 64, 16, IMAGENET_MEAN, IMAGENET_DEVIATION, PROVENANCE, None, module.eval())


def use_small_backbone(patch, make=small_backbone):
    """Replace every backbone by the small one, with pytest's MonkeyPatch."""
    for module in ("build", "frozen"):
        patch.setattr(f"trainer.model.{module}.load_backbone", lambda *_, **__: make())


def small_head(classes=3):
    """Return a head of three linear layers with Dropout in between."""
    head = nn.Sequential(
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(32, classes),
    )
    activate_dropout(head)
    return head


def small_network(classes=3):
    return Network(small_backbone().module, small_head(classes))


def coloured_images(rng, count, *, size=32):
    """Return noisy images, uint8 (N, H, W, 3), of alternating colours, and their classes."""
    targets = np.arange(count) % len(COLOURS)
    colours = np.array(list(COLOURS.values()))[targets]  # (N, 3)
    noise = rng.integers(-60, 60, size=(count, size, size, 3))
    return (colours[:, None, None] + noise).clip(0, 255).astype(np.uint8), targets


def write_folders(root, *, each, size=40):
    """Write class folders with `each` PNG files per class, and return `root`."""
    images, targets = coloured_images(np.random.default_rng(7), each * len(COLOURS), size=size)
    names = list(COLOURS)
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        folder = root / names[target]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return root


def lively_network(seed=0):
    """Return a small network whose passes differ considerably."""
    torch.manual_seed(seed)
    network = small_network()
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(3)
    return network


_EXPORTED = tempfile.TemporaryDirectory(prefix="labelnext-")
"""Exported backbones, in folders named after a digest of their layers and weights."""
atexit.register(_EXPORTED.cleanup)


def freeze_network(network, folder):
    """Export a network's backbone to a folder; equal backbones are exported once and copied."""
    module = network.backbone[0]
    digest = hashlib.sha256(repr(module).encode())
    for tensor in module.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    exported = Path(_EXPORTED.name) / digest.hexdigest()
    if not exported.exists():
        exported.mkdir()
        freeze(replace(small_backbone(), module=module), exported)
    shutil.copytree(exported, folder)
    return read_frozen(folder)


def stage_files(staged, network, images, *, passes=20, multiple=False, int8=None):
    """Write a network's graphs, weights and probe to a staged version, and return its manifest.

    `int8` is the file of a quantised backbone.
    """
    with tempfile.TemporaryDirectory() as folder:
        backbone = freeze_network(network, Path(folder) / "backbone")
        for file in (*backbone.files, *([int8] if int8 else [])):
            shutil.copyfile(file, staged.path / file.name)
        lowered = export(backbone.graph, network.head, staged.path, multiple=multiple)
        manifest = Manifest(
            version=staged.version,
            created_at="2026-01-02T00:00:00+00:00",
            labels=tuple(COLOURS),
            control=None,
            input=backbone.spec,
            passes=passes,
            dropout_sites=lowered.sites,
            backbone=backbone.describe(),
            multiple=multiple,
        )
        compute_probe(network.head, images, backbone.compute(images), manifest).save(staged.path / PROBE_FILE)
    return manifest


def publish_small(repository, network, images, *, int8_of=None):
    """Publish a network, optionally with the quantised backbone of the network `int8_of`."""
    with repository.stage(datetime.now(UTC)) as staged, tempfile.TemporaryDirectory() as folder:
        int8 = None if int8_of is None else quantise_network(int8_of, images, Path(folder))
        return staged.publish(stage_files(staged, network, images, int8=int8))


def quantise_network(network, images, folder):
    """Quantise a network's backbone, and return the file in `folder`."""
    backbone = freeze_network(network, folder / "backbone")
    target = folder / INT8_BACKBONE_FILE
    quantise(backbone, images, target)
    return target
