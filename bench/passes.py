"""What do T stochastic passes cost? `python -m bench.passes [--architecture vgg16] [--image-size 224] [--rounds 3]`.

Four ways to the same BALD, or a lower bound of it, on the same images and threads, run in turn in one process:

    baal      torch, `ModelWrapper.predict_on_batch(iterations=T)`, which repeats the whole network T times
    naive     onnxruntime, the literal graph T times, with the optimiser rule disabled that would delete its dropout
    single    onnxruntime, the literal graph once, with its dropout deleted: no uncertainty, the least that can be paid
    ours      the server's engine: the lowered graph, T passes in one run

Weights are fresh: none of the four is faster or slower for what it knows. A ratio is the median over the rounds of the
ratio within a round, so that a machine whose speed drifts does not matter. The slow two are timed on fewer images.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from bench.machine import describe
from contract.manifest import DEFAULT_PASSES, InputSpec, Manifest
from contract.repository import PROBE_FILE, Repository, Version
from server.cpus import available_cpus
from server.engine import Engine, EngineOptions
from server.settings import Device
from trainer.bayes import ModelWrapper, TrainingArgs
from trainer.export import export
from trainer.network import Network, build

Images = npt.NDArray[np.uint8]
Contender = Callable[[Images], object]

_BATCHES = (1, 8, 16, 32)
_SLOW = ("baal", "naive")
_SLOW_BATCH = 8
_CLASSES = 10


def main() -> None:
    """Time all contenders, print a table and one line of JSON."""
    options = _parse()
    torch.set_num_threads(available_cpus())
    torch.manual_seed(0)
    network, _ = build(options.architecture, classes=_CLASSES, image_size=options.image_size, weights="none")
    network.eval()
    with _published(network, options) as version:
        contenders = _contenders(network, version, passes=options.passes)
        size = (max(_BATCHES), options.image_size, options.image_size, 3)
        images = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        seconds = {batch: _time(contenders, images[:batch], rounds=options.rounds) for batch in _BATCHES}
    _print_table(seconds)
    print(json.dumps(_summarise(seconds, options)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.passes", description=__doc__.partition("\n")[0])
    parser.add_argument("--architecture", default="vgg16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--passes", type=int, default=DEFAULT_PASSES)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


@contextmanager
def _published(network: Network, options: argparse.Namespace) -> Iterator[Version]:
    """Export the network as the trainer does, into a repository that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder, Repository(Path(folder)).stage(datetime.now(UTC)) as staged:
        lowered = export(network, staged.path, image_size=options.image_size)
        (staged.path / PROBE_FILE).touch()
        yield staged.describe(
            Manifest(
                version=staged.version,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                labels=tuple(map(str, range(_CLASSES))),
                control=None,
                input=InputSpec(options.image_size, options.image_size),
                passes=options.passes,
                dropout_sites=lowered.sites,
                architecture=options.architecture,
            )
        )


def _contenders(network: Network, version: Version, *, passes: int) -> Mapping[str, Contender]:
    wrapper = ModelWrapper(network, TrainingArgs(use_cuda=False))
    wrapper.eval()
    naive, single = _session(version, keep_dropout=True), _session(version, keep_dropout=False)
    engine = Engine(version, EngineOptions(device=Device.CPU, threads=available_cpus(), passes=passes))
    return {
        "baal": lambda images: wrapper.predict_on_batch(torch.from_numpy(images), iterations=passes),
        "naive": lambda images: [naive.run(None, {"images": images}) for _ in range(passes)],
        "single": lambda images: single.run(None, {"images": images}),
        "ours": engine.run,
    }


def _session(version: Version, *, keep_dropout: bool) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = available_cpus()
    kept = ["EliminateDropout"] if keep_dropout else []
    return onnxruntime.InferenceSession(
        version.model_path, settings, providers=["CPUExecutionProvider"], disabled_optimizers=kept
    )


def _time(contenders: Mapping[str, Contender], images: Images, *, rounds: int) -> dict[str, list[float]]:
    """Return seconds of each run, by contender, after one run of each that is not counted."""
    taking_part = {name: run for name, run in contenders.items() if name not in _SLOW or len(images) == _SLOW_BATCH}
    for name, run in taking_part.items():
        run(images if name not in _SLOW else images[:1])
    seconds: dict[str, list[float]] = {name: [] for name in taking_part}
    for _ in range(rounds):
        for name, run in taking_part.items():
            start = time.perf_counter()
            run(images)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _ratio(seconds: Mapping[str, list[float]], name: str, over: str) -> float:
    return round(median(a / b for a, b in zip(seconds[name], seconds[over], strict=True)), 3)


def _print_table(seconds: Mapping[int, Mapping[str, list[float]]]) -> None:
    print(f"{'images/s':<10}" + "".join(f"{f'batch {batch}':>10}" for batch in seconds))
    for name in seconds[_SLOW_BATCH]:
        rates = [
            f"{batch / median(runs[name]):10.2f}" if name in runs else f"{'-':>10}" for batch, runs in seconds.items()
        ]
        print(f"{name:<10}" + "".join(rates))


def _summarise(seconds: Mapping[int, Mapping[str, list[float]]], options: argparse.Namespace) -> dict[str, object]:
    return {
        "bench": "passes",
        "architecture": options.architecture,
        "image_size": options.image_size,
        "passes": options.passes,
        "rounds": options.rounds,
        "images_per_s": {
            name: {batch: round(batch / median(runs[name]), 3) for batch, runs in seconds.items() if name in runs}
            for name in seconds[_SLOW_BATCH]
        },
        "ours_over_single_pass": {batch: _ratio(runs, "ours", "single") for batch, runs in seconds.items()},
        "speedup_vs_baal": _ratio(seconds[_SLOW_BATCH], "baal", "ours"),
        "speedup_vs_naive": _ratio(seconds[_SLOW_BATCH], "naive", "ours"),
        "machine": describe(),
    }


if __name__ == "__main__":
    main()
