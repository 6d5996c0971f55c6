"""Frozen backbones: exported to ONNX, cached on disk, and run by onnxruntime as in servers.

The cache key covers name, weights, image size, and the versions of torch and torchvision.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torchvision
from onnx import ModelProto
from pydantic import TypeAdapter

from contract.errors import TrainingError
from contract.features.store import FeatureStore
from contract.files import explaining
from contract.graph.fingerprint import features_key, fingerprint
from contract.graph.lowering import FEATURES, load_graph
from contract.images.preprocess import RECIPE
from contract.versions.manifest import Backbone
from contract.versions.version import BACKBONE_WEIGHTS_FILE, INT8_BACKBONE_FILE, digest_file
from trainer.model.backbones import LoadedBackbone, load_backbone
from trainer.model.backbones.layers import Round
from trainer.model.backbones.loaded import BackboneInfo
from trainer.model.graphs.export import export_backbone, move_weights
from trainer.model.graphs.validation import open_session, run
from trainer.progress_bar import Bar

Features = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]

_GRAPH_FILE: Final = "backbone.onnx"
_DESCRIPTION_FILE: Final = "backbone.json"
_FORMAT: Final = 2
"""Version of the cache's file format, part of the cache key."""
_BATCH_IMAGES: Final = 16


@dataclass(frozen=True, kw_only=True)
class FrozenBackbone(BackboneInfo):
    """A backbone exported to a folder, in float32 and optionally in 8-bit integers."""

    folder: Path
    fingerprint: str
    precision: Literal["fp32", "int8"] = "fp32"

    @cached_property
    def graph(self) -> ModelProto:
        """The graph in float32, without weights; reading it raises DigestError if its file is not a graph."""
        path = self.folder / BACKBONE_WEIGHTS_FILE
        return load_graph(self.folder / _GRAPH_FILE, weights_bytes={path.name: path.stat().st_size})

    def graph_with_weights(self) -> ModelProto:
        """Return the graph in float32, with weights."""
        graph = ModelProto()
        graph.CopyFrom(self.graph)
        onnx.load_external_data_for_model(graph, str(self.folder))
        return graph

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the backbone that a version contains."""
        int8 = (self.folder / INT8_BACKBONE_FILE,) if self.precision == "int8" else ()
        return (self.folder / BACKBONE_WEIGHTS_FILE, *int8)

    @cached_property
    def key(self) -> str:
        """The key of the backbone's features in a feature store."""
        digest = digest_file(self.folder / INT8_BACKBONE_FILE).sha256 if self.precision == "int8" else self.fingerprint
        return features_key(digest, self.precision)

    def describe(self) -> Backbone:
        """Return the backbone's entry for a manifest."""
        return Backbone(self.name, self.fingerprint, FEATURES, self.precision, self.last_stage)

    def compute(self, images: Images, *, title: str = "features") -> Features:
        """Compute the features of images uint8 (N, H, W, 3): float32 (N, F), rounded to float16.

        Raises TrainingError if they are not finite, and InvalidVersion if onnxruntime cannot run the graph.
        """
        features = np.empty((len(images), self.features), np.float32)
        with Bar(total=len(images), desc=title, unit="image") as bar:
            for start in range(0, len(images), _BATCH_IMAGES):
                rows = slice(start, start + _BATCH_IMAGES)
                (features[rows],) = run(self._session, [FEATURES], {"images": images[rows]})
                bar.update(len(features[rows]))
        if not np.isfinite(features).all():
            raise TrainingError(
                f"the features of backbone {self.name} are not finite in float16, whose maximum is 65504; use another "
                "backbone, or scale its output"
            )
        return features

    def compute_cached(
        self, images: Images, digests: Sequence[bytes], store: FeatureStore, *, title: str = "features"
    ) -> Features:
        """Return features from the store, by the sha256 of the files; compute and store the missing ones.

        Raises the errors of `compute`.
        """
        rows = np.empty((len(images), self.features), np.float32)
        missing = []
        for row, stored in enumerate(store.get_many(self.key, digests)):
            if stored is None or len(stored) != self.features:
                missing.append(row)
            else:
                rows[row] = stored
        if missing:
            rows[missing] = self.compute(images[missing], title=title)
            for row in missing:
                store.put(self.key, digests[row], rows[row])
        return rows

    @cached_property
    def _session(self) -> Any:
        graph = self.graph
        if self.precision == "int8":
            graph = load_graph(self.folder / INT8_BACKBONE_FILE, weights_bytes={})
        return open_session(graph, self.folder)


_DESCRIPTION: Final = TypeAdapter(FrozenBackbone)


def open_frozen(
    name: str, *, image_size: int | None, weights: str | Path, grid: int | None, cache: Path
) -> FrozenBackbone:
    """Return a backbone from the `cache` folder, exporting it first if it is not there; see `load_backbone`.

    Raises:
        ConfigError: if there is no such backbone, its weights cannot be loaded, or the cache cannot be written.
    """
    libraries = (torch.__version__, torchvision.__version__)
    inputs = [_FORMAT, RECIPE, _identify(name), image_size, _identify(weights), grid, *libraries]
    folder = cache / hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]
    if not _is_complete(folder):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random weights must be the same in the next run
            loaded = load_backbone(name, image_size=image_size, weights=weights, grid=grid)
        remedy = "set LABELNEXT_CACHE_DIR to a folder with room"
        with explaining("the backbone", folder, remedy=remedy), _replacing_folder(folder) as path:
            freeze(loaded, path)
    return read_frozen(folder)


def freeze(loaded: LoadedBackbone, folder: Path) -> FrozenBackbone:
    """Export a backbone to a folder.

    Raises TrainingError as `export_backbone`, and OSError if the folder cannot be written.
    """
    graph = loaded.graph
    if graph is None:
        backbone = torch.nn.Sequential(cast(torch.nn.Module, loaded.module), Round())
        graph = export_backbone(backbone, image_size=loaded.spec.height)
    moved = move_weights(graph, folder / BACKBONE_WEIGHTS_FILE)
    (folder / _GRAPH_FILE).write_bytes(moved.SerializeToString(deterministic=True))
    info = {field.name: getattr(loaded, field.name) for field in fields(BackboneInfo)}
    frozen = FrozenBackbone(**info, folder=folder, fingerprint=fingerprint(moved, folder, loaded.spec))
    description = _DESCRIPTION.dump_python(frozen, mode="json", exclude={"folder"})
    text = json.dumps({**description, "sizes": _sizes(folder)}, indent=2)
    (folder / _DESCRIPTION_FILE).write_text(text, encoding="utf-8")
    return frozen


def _is_complete(folder: Path) -> bool:
    """Return whether no file is missing or truncated, for example by a partial clean-up."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        sizes = json.loads((folder / _DESCRIPTION_FILE).read_text(encoding="utf-8"))["sizes"]
        return bool(sizes == _sizes(folder))
    return False


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in (_GRAPH_FILE, BACKBONE_WEIGHTS_FILE)}


def read_frozen(folder: Path) -> FrozenBackbone:
    """Read a backbone that was exported to a folder.

    Raises OSError or ValueError if its description cannot be read.
    """
    description = json.loads((folder / _DESCRIPTION_FILE).read_text(encoding="utf-8"))
    return _DESCRIPTION.validate_python({**description, "folder": folder})


def _identify(source: str | Path) -> str | list[str]:
    """Identify a backbone or weights: by name, or a file by its sha256 and those of the files that extend its name."""
    path = Path(source)
    if not path.is_file():
        return str(source)
    related = sorted(each for each in path.parent.iterdir() if each.name.startswith(f"{path.name}.") and each.is_file())
    return [digest_file(each).sha256 for each in (path, *related)]


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """Context manager for a temporary folder that is renamed to `folder` on success, in place of an incomplete one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
        path = Path(partial) / folder.name
        path.mkdir()
        yield path
        if _is_complete(folder):  # another process was faster
            return
        with suppress(FileNotFoundError):
            os.rename(folder, Path(partial) / "former")
        try:
            os.rename(path, folder)
        except OSError:
            if not _is_complete(folder):
                raise
