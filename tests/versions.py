"""Versions of a few bytes, for tests of the repository."""

import dataclasses
import itertools
from datetime import UTC, datetime

from contract.versions.manifest import Backbone, InputSpec, Manifest
from contract.versions.version import BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE, INT8_BACKBONE_FILE

VERSION = "20260102T030405678Z-0a1b2c"
"""A valid name of a version."""


def manifest(version):
    return Manifest(
        version=version,
        created_at="2026-01-02T03:04:05+00:00",
        labels=("cat", "dog"),
        control=None,
        input=InputSpec(8, 8),
        passes=20,
        dropout_sites=(),
        backbone=Backbone("none", "0" * 64, "features", "fp32"),
    )


def fix_names(monkeypatch):
    """Give versions the same names in every run, so that masks, and ranks that are almost tied, are reproducible."""
    numbers = itertools.count()
    monkeypatch.setattr(
        "contract.versions.repository.new_version", lambda now, *, after=None: f"20260102T{next(numbers):09}Z-0a1b2c"
    )


def write_files(folder, content):
    (folder / "report").mkdir()
    for name in ("model.onnx", "head.onnx.data", "probe.npz", "report/index.html"):
        (folder / name).write_bytes(content)


def publish(repository, content, *, int8=None, write=lambda folder: None, **fields):
    """Publish a version whose files contain `content`; `write` adds files, `fields` replace fields of the manifest."""
    with repository.stage(datetime.now(UTC)) as staged:
        write_files(staged.path, content)
        write(staged.path)
        if int8 is not None:
            (staged.path / INT8_BACKBONE_FILE).write_bytes(int8)
        return staged.publish(dataclasses.replace(manifest(staged.version), **fields))


def publish_backbone(repository, backbone, head=b"head"):
    """Publish a version with these bytes as weights of the backbone, and twice these bytes as int8 backbone."""
    with repository.stage(datetime.now(UTC)) as staged:
        write_files(staged.path, head)
        (staged.path / BACKBONE_WEIGHTS_FILE).write_bytes(backbone)
        (staged.path / INT8_BACKBONE_FILE).write_bytes(backbone * 2)
        (staged.path / HEAD_WEIGHTS_FILE).write_bytes(head)
        return staged.publish(manifest(staged.version))
