"""The cluster: a pool of workers as a Ray Data pipeline. Alone knows Ray.

What flows through the pipeline are names of shards. Images go from their source straight to the worker that scores
them, and rows from there to the output, so Ray's store holds next to nothing. A worker that dies takes no more with it
than what it had done of its shard: Ray starts another in its place, and gives it the shard again.
"""

import json
import logging.config
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.data
import ray.exceptions

from contract.errors import ConfigError, LabelnextError
from server.observe.logs import logging_config
from server.pool.progress import Tally, describe
from server.pool.shards import Plan, PoolError, Shard
from server.pool.worker import Assignment, Done, Worker
from server.settings import Device, Settings

_ATTEMPTS = 4
"""How often a shard is begun whose workers die; it may be one image of it that kills."""
_PROGRESS_S = 5.0
_KEPT = "shards that are done are kept; run it again to go on"
_STORE_BYTES = 128 * 2**20
"""Of Ray's store of objects on this machine; what flows through it is small."""


@dataclass(frozen=True, slots=True)
class Crew:
    """Who is to score."""

    workers: tuple[int, int] | None = None
    """The least and the most; None means up to one for each GPU or, where there is none, for each machine."""
    cpus: int | None = None
    """Of each worker; None shares those of all machines out evenly."""


def run(assignment: Assignment, planned: Plan, crew: Crew) -> list[Done]:
    """Score the shards of a plan on the cluster that RAY_ADDRESS names, or on this machine; tell stderr how far it is.

    Raises:
        ConfigError: if the cluster cannot be joined.
        PoolError: if a worker cannot go on, or workers die again and again.
    """
    with _ray():
        tally = ray.remote(num_cpus=0, max_restarts=-1)(Tally).remote()
        least, most = crew.workers or (1, _places(assignment.settings))
        most = min(most, len(planned.shards))
        cpus = crew.cpus or max(1, int(ray.cluster_resources()["CPU"]) // most)
        shards = [asdict(shard) for shard in planned.shards]
        scored = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            _Actor,
            batch_size=1,
            fn_constructor_args=(replace(assignment, threads=cpus), tally),
            compute=ray.data.ActorPoolStrategy(
                min_size=min(least, most),
                max_size=most,
                max_tasks_in_flight_per_actor=1,  # a shard that waits should wait for whoever is free first
            ),
            num_cpus=cpus,
            num_gpus=int(_uses_gpus(assignment.settings)),
        )
        with _telling(tally, planned.rows):
            return list(_collect(scored))


def _collect(scored: ray.data.Dataset) -> Iterator[Done]:
    """Read what workers say of their shards, until one cannot go on."""
    try:
        for row in scored.iter_rows():
            if row["fault"]:
                raise PoolError(f"a worker stopped: {row['fault']} ({_KEPT})")
            yield Done(**json.loads(row["done"]))
    except ray.exceptions.RayError as err:
        raise PoolError(f"the job stopped: {err} ({_KEPT})") from err
    except KeyboardInterrupt as err:
        raise PoolError(f"interrupted ({_KEPT})") from err


class _Actor:
    """A worker as Ray Data calls it."""

    def __init__(self, assignment: Assignment, tally: Any) -> None:
        logging.config.dictConfig(logging_config("WARNING"))
        # Its warnings name some failures of each request; here all of them are in the output.
        logging.getLogger("server.inference.scoring").setLevel(logging.ERROR)
        self._assignment = assignment
        self._tally = tally
        self._worker: Worker | None = None

    def __call__(self, batch: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, list[str]]:
        """Return what came of a shard, as JSON; what was foreseen to fail is told in words, not by Ray's traceback."""
        try:
            done = self._score(Shard(str(batch["name"][0]), int(batch["rows"][0])))
        except LabelnextError as err:
            return {"fault": [str(err)], "done": [""]}
        return {"fault": [""], "done": [json.dumps(asdict(done))]}

    def _score(self, shard: Shard) -> Done:
        if (attempt := ray.get(self._tally.begin.remote(shard.name))) > _ATTEMPTS:
            raise PoolError(
                f"{shard.name} was begun {attempt - 1} times, and each time its worker died; see Ray's log for whether "
                "memory ran out, or take the shard out of the input"
            )
        if self._worker is None:
            self._worker = Worker(self._assignment, self._tally.note.remote)
        return self._worker.score_shard(shard)

    def __del__(self) -> None:
        if self._worker is not None:
            self._worker.close()


@contextmanager
def _ray() -> Iterator[None]:
    """Join the cluster, or make one of this machine; nothing is reported to anybody, and no dashboard started."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    own = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        ray.init(logging_level="warning", **own)
    except (ConnectionError, ValueError) as err:
        raise ConfigError(f"Ray cannot be joined or started here ({err}); see RAY_ADDRESS and RAY_AUTH_MODE") from err
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Workers that have one shard each are all busy, and that is when there should be more of them.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    try:
        with redirect_stdout(sys.stderr):  # Ray prints there what workers say, and stdout belongs to results
            yield
    finally:
        ray.shutdown()


def _uses_gpus(settings: Settings) -> bool:
    return settings.provider is not Device.CPU and ray.cluster_resources().get("GPU", 0) >= 1


def _places(settings: Settings) -> int:
    """How many workers there is a GPU for, or a machine."""
    if _uses_gpus(settings):
        return int(ray.cluster_resources()["GPU"])
    return sum(node["Alive"] for node in ray.nodes())


@contextmanager
def _telling(tally: Any, rows: int) -> Iterator[None]:
    """Say on stderr how far the job is, every few seconds."""
    started, ended = time.monotonic(), threading.Event()

    def tell() -> None:
        while not ended.wait(_PROGRESS_S):
            images, failed = ray.get(tally.totals.remote())
            print(describe(images, failed, of=rows, seconds=time.monotonic() - started), file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
