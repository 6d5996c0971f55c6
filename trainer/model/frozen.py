"""A backbone as servers run it: its graph on disk, and the features that it gives of images.

It is exported once for its name, its weights, the size of its images and the releases that write its graph, and kept in
a folder of its own.
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
"""Of what is kept; raised when a backbone of equal makings would be written otherwise."""
_IMAGES_A_RUN: Final = 16


@dataclass(frozen=True, kw_only=True)
class FrozenBackbone(BackboneInfo):
    """A backbone whose graph lies in a folder, in float32 and perhaps in 8-bit integers."""

    folder: Path
    fingerprint: str
    precision: Literal["fp32", "int8"] = "fp32"

    @cached_property
    def graph(self) -> ModelProto:
        """The graph in float32, without its weights."""
        path = self.folder / BACKBONE_WEIGHTS_FILE
        return load_graph(self.folder / _GRAPH_FILE, weights_bytes={path.name: path.stat().st_size})

    def graph_with_weights(self) -> ModelProto:
        """Return the graph in float32, its weights included."""
        graph = ModelProto()
        graph.CopyFrom(self.graph)
        onnx.load_external_data_for_model(graph, str(self.folder))
        return graph

    @property
    def files(self) -> tuple[Path, ...]:
        """What a version takes of it."""
        int8 = (self.folder / INT8_BACKBONE_FILE,) if self.precision == "int8" else ()
        return (self.folder / BACKBONE_WEIGHTS_FILE, *int8)

    @cached_property
    def key(self) -> str:
        """What its features are kept under."""
        made = digest_file(self.folder / INT8_BACKBONE_FILE).sha256 if self.precision == "int8" else self.fingerprint
        return features_key(made, self.precision)

    def describe(self) -> Backbone:
        """Return what a manifest says of it."""
        return Backbone(self.name, self.fingerprint, FEATURES, self.precision, self.last_stage)

    def compute(self, images: Images, *, title: str = "features") -> Features:
        """Compute the features of uint8 (N, H, W, 3): float32 (N, F), which float16 holds, or a TrainingError."""
        features = np.empty((len(images), self.features), np.float32)
        with Bar(total=len(images), desc=title, unit="image") as bar:
            for start in range(0, len(images), _IMAGES_A_RUN):
                rows = slice(start, start + _IMAGES_A_RUN)
                (features[rows],) = run(self._session, [FEATURES], {"images": images[rows]})
                bar.update(len(features[rows]))
        if not np.isfinite(features).all():
            raise TrainingError(
                f"the backbone {self.name} gives features that are no numbers, or larger than the 65504 that float16 "
                "holds; take another one, or have it scale them"
            )
        return features

    def compute_cached(
        self, images: Images, digests: Sequence[bytes], store: FeatureStore, *, title: str = "features"
    ) -> Features:
        """Do as `compute` does, of files with these sha256: what a store knows is not computed, the rest is kept."""
        rows = np.empty((len(images), self.features), np.float32)
        new = []
        for row, found in enumerate(store.get_many(self.key, digests)):
            if found is None or len(found) != self.features:
                new.append(row)
            else:
                rows[row] = found
        if new:
            rows[new] = self.compute(images[new], title=title)
            for row in new:
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
    """Return a backbone from the cache, a folder, where it is written now if it is not there.

    The other arguments are those of `load_backbone`.
    """
    libraries = (torch.__version__, torchvision.__version__)
    makings = [_FORMAT, RECIPE, _identify(name), image_size, _identify(weights), grid, *libraries]
    folder = cache / hashlib.sha256(json.dumps(makings).encode()).hexdigest()[:32]
    if not _is_whole(folder):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of weights that start from nothing, so that they are the same in the next run
            loaded = load_backbone(name, image_size=image_size, weights=weights, grid=grid)
        remedy = "set LABELNEXT_CACHE_DIR to a folder with room"
        with explaining("the backbone", folder, remedy=remedy), _folder_to_write(folder) as path:
            freeze(loaded, path)
    return read(folder)


def freeze(loaded: LoadedBackbone, folder: Path) -> FrozenBackbone:
    """Write a backbone into a folder."""
    graph = loaded.graph
    if graph is None:
        backbone = torch.nn.Sequential(cast(torch.nn.Module, loaded.module), Round())
        graph = export_backbone(backbone, image_size=loaded.spec.height)
    moved = move_weights(graph, folder / BACKBONE_WEIGHTS_FILE)
    (folder / _GRAPH_FILE).write_bytes(moved.SerializeToString(deterministic=True))
    known = {field.name: getattr(loaded, field.name) for field in fields(BackboneInfo)}
    frozen = FrozenBackbone(**known, folder=folder, fingerprint=fingerprint(moved, folder, loaded.spec))
    described = _DESCRIPTION.dump_python(frozen, mode="json", exclude={"folder"})
    text = json.dumps({**described, "sizes": _sizes(folder)}, indent=2)
    (folder / _DESCRIPTION_FILE).write_text(text, encoding="utf-8")
    return frozen


def _is_whole(folder: Path) -> bool:
    """Whether all is there that was written; somebody may have cleaned up by halves."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        sizes = json.loads((folder / _DESCRIPTION_FILE).read_text(encoding="utf-8"))["sizes"]
        return bool(sizes == _sizes(folder))
    return False


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in (_GRAPH_FILE, BACKBONE_WEIGHTS_FILE)}


def read(folder: Path) -> FrozenBackbone:
    """Return the backbone that was written into a folder."""
    described = json.loads((folder / _DESCRIPTION_FILE).read_text(encoding="utf-8"))
    return _DESCRIPTION.validate_python({**described, "folder": folder})


def _identify(source: str | Path) -> str | list[str]:
    """Name a backbone or weights by what they are: a file by its bytes, and those of what belongs to it beside it."""
    path = Path(source)
    if not path.is_file():
        return str(source)
    beside = sorted(each for each in path.parent.iterdir() if each.name.startswith(f"{path.name}.") and each.is_file())
    return [digest_file(each).sha256 for each in (path, *beside)]


@contextmanager
def _folder_to_write(folder: Path) -> Iterator[Path]:
    """Give a folder that takes this name when the block ends well, in the place of one that is not whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
        path = Path(partial) / folder.name
        path.mkdir()
        yield path
        if _is_whole(folder):  # another process was faster
            return
        with suppress(FileNotFoundError):
            os.rename(folder, Path(partial) / "former")
        try:
            os.rename(path, folder)
        except OSError:
            if not _is_whole(folder):
                raise
