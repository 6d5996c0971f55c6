"""Worker processes, which complete the runs of a study.

A worker exits with its parent. It may be killed at any time: its runs continue after their last finished round.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import cast

import torch

from contract.errors import ConfigError
from trainer.progress_bar import Bar, use_process_lock
from trainer.study.model import Dataset
from trainer.study.run import Protocol, Run, complete


def count_processors() -> int:
    """Return the number of processors this process may use, or of all if the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_rounds(runs: Sequence[Run]) -> int:
    """Return the number of finished rounds."""
    return sum(run.path.read_bytes().count(b"\n") for run in runs if run.path.exists())


def complete_all(runs: Sequence[Run], open_dataset: Callable[[], Dataset], protocol: Protocol, *, workers: int) -> None:
    """Complete all runs in worker processes, each of which opens the dataset itself, since it is too large to be sent.

    Raises:
        ConfigError: if a worker dies, or cannot build its network.
        TrainingError: if a training diverges.
    """
    context, threads = multiprocessing.get_context("spawn"), max(1, count_processors() // workers)
    total = len(runs) * (protocol.rounds + 1)
    with (
        Bar(total=total, initial=count_rounds(runs), desc="rounds", unit="round", smoothing=0.05) as bar,
        _without_bars_in_workers(),
        ProcessPoolExecutor(workers, context, _start_worker, (threads,)) as executor,
    ):
        pending = {executor.submit(_complete, run, open_dataset, protocol) for run in runs}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                bar.update(count_rounds(runs) - bar.n)
                for each in done:
                    each.result()
        except BrokenProcessPool as err:
            raise ConfigError(
                "a worker process died, possibly out of memory; run the same command again to continue, with "
                "fewer --workers if it happens again"
            ) from err
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


@contextmanager
def _without_bars_in_workers() -> Iterator[None]:
    """Context manager in which new processes show no progress bars."""
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        del os.environ["TQDM_DISABLE"]


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent terminates workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    use_process_lock()  # no semaphore that a killed process would leak
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    torch.set_num_threads(threads)


def _exit_with_parent() -> None:
    """Exit as soon as the parent process ends, even if it is killed."""
    cast(BaseProcess, multiprocessing.parent_process()).join()  # a pipe that the system closes: no polling
    os._exit(1)


def _complete(run: Run, open_dataset: Callable[[], Dataset], protocol: Protocol) -> None:
    complete(run, open_dataset(), protocol)
