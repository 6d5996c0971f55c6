"""A study from its options to its report: which chains there are, who runs them, and where they go on.

<out>/settings.json                   what the figures hang on; a folder holds one study
<out>/chains/<strategy>-<seed>.jsonl  a line for each round that ended
<out>/report.html, *.csv, *.json      from all chains, when they are through
"""

import json
import logging
import multiprocessing
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tqdm import tqdm

from contract.errors import ConfigError
from trainer.dataset import Indices
from trainer.fit import choose_recipe
from trainer.network import Weights, build
from trainer.run import choose_device, parse_weights
from trainer.settings import Environment, Part, StudyOptions, Training
from trainer.study import names, report
from trainer.study.chain import Chain, Protocol
from trainer.study.features import Decoded, compute, decode
from trainer.study.learner import Material
from trainer.study.pool import Pool, long_tail, read_pool
from trainer.study.records import PassAgreement, Round, Study, recover, save
from trainer.study.statistics import summarise, to_json

_log = logging.getLogger(__name__)

_SETTINGS: Final = "settings.json"
_LOOK_S: Final = 0.5
"""Between two looks at how far the workers are."""
_NOT_IDENTITY: Final = ("command", "date", "machine", "seeds", "strategies", "versions", "workers")
"""Settings in which a study may differ from what lies in its folder and still go on there."""


def simulate(options: StudyOptions, training: Training, environment: Environment) -> dict[str, Any]:
    """Run all chains that are missing, write the report, and return the figures of each strategy as JSON.

    Raises:
        LabelnextError: if the images cannot be used, the folder holds another study, or a training diverges.
    """
    names.check(options.strategies)
    device = choose_device(training.device)
    part: Part = training.part or "classifier"
    weights = parse_weights(training.weights)
    pool = read_pool(options.images, options.manifest, test_share=options.test_share)
    cache = environment.cache.parent / "study"
    decoded = decode(pool, image_size=training.image_size, cache=cache)
    _say_unreadable(decoded)
    protocol = _make_protocol(pool, decoded, options, training, part=part, weights=weights)
    settings = _describe(options, decoded, protocol, device=device)
    chains = _claim(options, settings)
    _say(pool, protocol, options, device)
    if any(len(recover(chain.path)) <= protocol.rounds for chain in chains):
        files = _Files.find(pool, decoded, training, part=part, weights=weights, device=device, cache=cache)
        _run_all(chains, _Work(files, protocol, device), workers=_count_workers(options, device))
    study = _collect(chains, pool, protocol, settings)
    save(study, options.out)
    report.write(study, options.out)
    _log.info("the report is %s", options.out / "report.html")
    return to_json(summarise(study))


@dataclass(frozen=True, slots=True)
class _Files:
    """Where workers find what is too large to be sent to them."""

    classes: tuple[str, ...]
    targets: Indices
    images: Path
    features: Path | None

    @classmethod
    def find(
        cls,
        pool: Pool,
        decoded: Decoded,
        training: Training,
        *,
        part: Part,
        weights: Weights,
        device: torch.device,
        cache: Path,
    ) -> "_Files":
        """Compute the features if nobody has yet."""
        features = None
        if part != "all":
            torch.manual_seed(0)  # whatever is fresh in a frozen backbone is the same for all seeds
            network, provenance = build(
                training.architecture,
                classes=len(pool.classes),
                image_size=training.image_size,
                weights=weights,
                units=training.units,
                dropout=training.dropout,
            )
            _log.info("%s on %s; %s", training.architecture, device, provenance)
            features = _path(compute(decoded, network=network, device=device, cache=cache))
        return cls(pool.classes, pool.targets, _path(decoded.images), features)

    def open(self) -> Material:
        """Map the files."""
        features = None if self.features is None else np.load(self.features, mmap_mode="r")
        return Material(self.classes, self.targets, np.load(self.images, mmap_mode="r"), features)


def _path(mapped: np.ndarray[Any, Any]) -> Path:
    """Where a memory map lies."""
    if not isinstance(mapped, np.memmap) or mapped.filename is None:
        raise TypeError(f"expected an array that is mapped from a file, got {type(mapped).__name__}")
    return Path(mapped.filename)


@dataclass(frozen=True, slots=True)
class _Work:
    """What every worker needs."""

    files: _Files
    protocol: Protocol
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Place:
    """A chain, and its file."""

    strategy: str
    seed: int
    path: Path


def _make_protocol(
    pool: Pool, decoded: Decoded, options: StudyOptions, training: Training, *, part: Part, weights: Weights
) -> Protocol:
    eligible = decoded.readable & ~pool.test
    if options.long_tail is not None:
        eligible = long_tail(pool.targets, eligible, options.long_tail)
    needed = options.initial + options.rounds * options.query
    if needed > np.count_nonzero(eligible):
        raise ConfigError(
            f"expected at least {needed} images for {options.initial} labels and {options.rounds} rounds of "
            f"{options.query}, there are {np.count_nonzero(eligible)}; lower --initial, --query or --rounds"
        )
    return Protocol(
        pool=np.flatnonzero(eligible),
        test=np.flatnonzero(decoded.readable & pool.test),
        minority=find_minority(np.bincount(pool.targets[eligible], minlength=len(pool.classes))),
        initial=options.initial,
        query=options.query,
        rounds=options.rounds,
        training=training,
        part=part,
        weights=weights,
    )


def find_minority(counts: Indices) -> tuple[int, ...]:
    """Return the rarest third of the classes, at least one: their indices, the rarest first; counts are (C,)."""
    return tuple(np.argsort(counts, kind="stable")[: max(1, round(len(counts) / 3))].tolist())


def _describe(options: StudyOptions, decoded: Decoded, protocol: Protocol, *, device: torch.device) -> dict[str, Any]:
    """Return the study's settings as JSON; files go by their names, since where they lie changes no figure."""
    training = protocol.training
    recipe = choose_recipe(
        protocol.part,
        options.initial,
        pretrained=training.weights != "none",
        epochs=training.epochs,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        class_balance=training.class_balance,
    )
    settings = {
        "command": _command(),
        "default": names.PRODUCT,
        "images": options.images.name,
        "pixels": decoded.key[:16],
        **{name: value for name, value in asdict(options).items() if name not in ("images", "manifest", "out")},
        **{name: value for name, value in asdict(training).items() if name not in ("seed", "validation", "int8")},
        "part": protocol.part,
        "weights": training.weights if training.weights in ("imagenet", "none") else Path(training.weights).name,
        "device": device.type,
        "recipe_at_start": asdict(recipe),
        "unreadable": len(decoded.unreadable),
        "machine": f"{_count_processors()} processors, {platform.machine()}",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    return dict(json.loads(json.dumps(settings)))


def _command() -> str:
    """The command as it was given, with the names of files in place of their paths."""
    words = []
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        words.append(option + equals + (Path(value).name if os.sep in value else value))
    return shlex.join(["python", "-m", "trainer", *words])


def _claim(options: StudyOptions, settings: Mapping[str, Any]) -> list[_Place]:
    """Make sure that the folder is this study's, and return its chains, all of the first seed first."""
    path, begun = options.out / _SETTINGS, options.out / "chains"
    begun.mkdir(parents=True, exist_ok=True)
    found = json.loads(path.read_text(encoding="utf-8")) if any(begun.iterdir()) else {}
    other = [name for name in settings if name not in _NOT_IDENTITY and name in found and found[name] != settings[name]]
    if other:
        name = other[0]
        raise ConfigError(
            f"--out {options.out} holds a study with {name} {found[name]}, this one has {settings[name]}; "
            "name another folder, or remove that one"
        )
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return [
        _Place(strategy, seed, begun / f"{strategy}-{seed}.jsonl")
        for seed in range(options.seeds)
        for strategy in options.strategies
    ]


def _collect(chains: Sequence[_Place], pool: Pool, protocol: Protocol, settings: Mapping[str, Any]) -> Study:
    lines = [line for chain in chains for line in recover(chain.path)]
    counts = [np.bincount(pool.targets[part], minlength=len(pool.classes)) for part in (protocol.pool, protocol.test)]
    return Study(
        name=pool.name,
        classes=pool.classes,
        minority=protocol.minority,
        pool_by_class=tuple(counts[0].tolist()),
        test_by_class=tuple(counts[1].tolist()),
        settings=settings,
        machine=settings["machine"],
        date=settings["date"],
        rounds=tuple(Round.from_json(line["round"]) for line in lines),
        agreement=tuple(PassAgreement(**line["agreement"]) for line in lines if line["agreement"]),
    )


def _say_unreadable(decoded: Decoded) -> None:
    for reference, reason in decoded.unreadable[:5]:
        _log.warning("left out: %s: %s", reference, reason)
    if len(decoded.unreadable) > 5:
        _log.warning("and %d more", len(decoded.unreadable) - 5)


def _say(pool: Pool, protocol: Protocol, options: StudyOptions, device: torch.device) -> None:
    counts = np.bincount(pool.targets[protocol.pool], minlength=len(pool.classes))
    _log.info(
        "%d strategies, %d seeds, %d rounds of %d labels after %d, of %d images of %d classes (%d to %d each); "
        "tested on %d; %s",
        len(options.strategies),
        options.seeds,
        options.rounds,
        options.query,
        options.initial,
        len(protocol.pool),
        len(pool.classes),
        counts.max(),
        counts.min(),
        len(protocol.test),
        device,
    )


# ---- workers


def _count_workers(options: StudyOptions, device: torch.device) -> int:
    if options.workers is not None:
        return options.workers
    return _count_processors() if device.type == "cpu" else 1


def _count_processors() -> int:
    """Those that this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Stopped(Exception):
    """The study was given up."""


def _run_all(chains: Sequence[_Place], work: _Work, *, workers: int) -> None:
    """Run what is missing of each chain in worker processes, with one bar for all rounds."""
    context = multiprocessing.get_context("spawn")
    ended, stop = context.Queue(), context.Event()
    done = sum(len(recover(chain.path)) for chain in chains)
    total = len(chains) * (work.protocol.rounds + 1)
    threads = max(1, _count_processors() // workers)
    with (
        tqdm(total=total, initial=done, desc="rounds", unit="round", smoothing=0.05) as bar,
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


def _wait(futures: "Sequence[Future[None]]", ended: "multiprocessing.Queue[int]", bar: "tqdm[Any]") -> None:
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
    work: _Work
    ended: "multiprocessing.Queue[int]"
    stop: Any

    def tell(self) -> None:
        self.ended.put(1)
        if self.stop.is_set():
            raise _Stopped


def _start_worker(work: _Work, threads: int, ended: "multiprocessing.Queue[int]", stop: Any) -> None:
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


def _run_chain(chain: _Place) -> None:
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
