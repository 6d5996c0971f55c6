"""Versions of a few bytes for tests of the repository."""

from datetime import UTC, datetime

from contract.manifest import InputSpec, Manifest


def manifest(version):
    return Manifest(
        version=version,
        created_at="2026-01-02T03:04:05+00:00",
        labels=("cat", "dog"),
        control=None,
        input=InputSpec(8, 8),
        passes=20,
        dropout_sites=(),
        architecture="none",
    )


def write_files(folder, content):
    (folder / "report").mkdir()
    for name in ("model.onnx", "model.onnx.data", "probe.npz", "report/index.html"):
        (folder / name).write_bytes(content)


def publish(repository, content):
    with repository.stage(datetime.now(UTC)) as staged:
        write_files(staged.path, content)
        return staged.publish(manifest(staged.version))
