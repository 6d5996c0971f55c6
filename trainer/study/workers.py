"""Worker processes, each of which runs one chain of a study after the other.

A worker that is told to stop does so after the round it is in, and none outlives the process that started it.
"""

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from contract.errors import ConfigError
from trainer.labels.dataset import Indices
from trainer.progress_bar import Bar
from trainer.study.model import Material
from trainer.study.records import recover
from trainer.study.run import Chain, Protocol

_LOOK_S: Final = 0.5
"""Between two looks at how far the workers are."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where workers find what is too large to be sent to them."""

    classes: tuple[str, ...]
    targets: Indices
    images: Path
    features: Path | None
    """None where they change with the training."""

    def open(self) -> Material:
        """Map the files."""
        features = None if self.features is None else np.load(self.features, mmap_mode="r")
        return Material(self.classes, self.targets, np.load(self.images, mmap_mode="r"), features)


@dataclass(frozen=True, slots=True)
class Work:
    """What every worker needs."""

    files: Files
    protocol: Protocol
    device: torch.device


@dataclass(frozen=True, slots=True)
class Place:
    """A chain, and its file."""

    strategy: str
    seed: int
    path: Path


def count_workers(device: torch.device) -> int:
    """Return how many chains to run at a time: one for each processor, or one where a GPU does the work."""
    return count_processors() if device.type == "cpu" else 1


def count_processors() -> int:
    """Return how many processors this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Stopped(Exception):
    """The study was given up."""


def run_all(chains: Sequence[Place], work: Work, *, workers: int) -> None:
    """Run what is missing of each chain in worker processes, with one bar for all rounds.

    Raises:
        ConfigError: if a process dies.
        TrainingError: if a training diverges.
    """
    context = multiprocessing.get_context("spawn")
    ended, stop = context.Queue(), context.Event()
    done = sum(len(recover(chain.path)) for chain in chains)
    total = len(chains) * (work.protocol.rounds + 1)
    threads = max(1, count_processors() // workers)
    with (
        Bar(total=total, initial=done, desc="rounds", unit="round", smoothing=0.05) as bar,
        _silent_workers(),
        ProcessPoolExecutor(workers, context, _start_worker, (work, threads, ended, stop)) as executor,
    ):
        futures = [executor.submit(_run_chain, chain) for chain in chains]
        try:
            _wait(futures, ended, bar)
        except BaseException:
            stop.set()
            executor.shutdown(wait=True, cancel_futures=True)
            raise


def _wait(futures: "Sequence[Future[None]]", ended: "multiprocessing.Queue[int]", bar: Bar) -> None:
    waiting = set(futures)
    while waiting:
        over, waiting = wait(waiting, timeout=_LOOK_S, return_when=FIRST_EXCEPTION)
        while not ended.empty():
            bar.update(ended.get())
        for future in over:
            try:
                future.result()
            except BrokenProcessPool as err:
                raise ConfigError(
                    "a worker process died, perhaps for want of memory; run the same command again and it goes on, "
                    "with fewer --workers if it happens again"
                ) from err


@contextmanager
def _silent_workers() -> Iterator[None]:
    """Have processes that are started meanwhile draw no bars of their own."""
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        del os.environ["TQDM_DISABLE"]


_worker: "_Worker"


@dataclass(frozen=True, slots=True)
class _Worker:
    """What a worker process has at hand for one chain after the other."""

    material: Material
    work: Work
    ended: "multiprocessing.Queue[int]"
    stop: Any

    def tell(self) -> None:
        self.ended.put(1)
        if self.stop.is_set():
            raise _Stopped


def _start_worker(work: Work, threads: int, ended: "multiprocessing.Queue[int]", stop: Any) -> None:
    global _worker  # noqa: PLW0603  # of this process alone
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    torch.set_num_threads(threads)
    _worker = _Worker(work.files.open(), work, ended, stop)


def _leave_with(parent: int) -> None:
    """Do not outlive a parent that was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run_chain(chain: Place) -> None:
    worker = _worker
    if worker.stop.is_set():  # handed out before it was
        return
    with suppress(_Stopped, KeyboardInterrupt):
        Chain(
            chain.strategy,
            chain.seed,
            material=worker.material,
            protocol=worker.work.protocol,
            path=chain.path,
            device=worker.work.device,
        ).run(worker.tell)
