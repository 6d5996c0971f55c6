"""Workers on a cluster, as a Ray Data pipeline.

The pipeline's items are names of shards: a worker fetches the images and writes the scores itself, so that Ray's object
store stays almost empty. If a worker dies, Ray starts another, which scores the shard again from its beginning.
"""

import json
import logging.config
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
import ray.exceptions

from contract.errors import ConfigError, LabelnextError
from server.observe.logs import logging_config
from server.pool.job import describe
from server.pool.options import PoolOptions
from server.pool.shards import PoolError, Shard
from server.pool.worker import ShardResult, Worker
from server.settings import Device, Settings

_ATTEMPTS = 4
"""How often a shard is started before the job stops: one of its images may kill the workers."""
_KEPT = "finished shards are kept; run the command again to continue"
_STORE_BYTES = 128 * 2**20
"""Size of Ray's object store if it is started on this machine."""


def run(settings: Settings, options: PoolOptions, shards: Sequence[Shard]) -> list[ShardResult]:
    """Score shards on the cluster at RAY_ADDRESS, or else on this machine; print progress to stderr.

    Raises:
        ConfigError: if the cluster cannot be joined.
        PoolError: if a worker cannot go on, or workers die again and again.
    """
    with _ray():
        pipeline = _build_pipeline(settings, options, shards)
        started, done = time.monotonic(), list[ShardResult]()
        rows = sum(shard.rows for shard in shards)
        try:
            for row in pipeline.iter_rows():
                if row["fault"]:
                    raise PoolError(f"a worker stopped: {row['fault']} ({_KEPT})")
                done.append(ShardResult(**json.loads(row["done"])))
                print(describe(done, of=rows, seconds=time.monotonic() - started), file=sys.stderr, flush=True)
        except ray.exceptions.RayError as err:
            raise PoolError(f"the job stopped: {err} ({_KEPT})") from err
        except KeyboardInterrupt as err:
            raise PoolError(f"interrupted ({_KEPT})") from err
    return done


def _build_pipeline(settings: Settings, options: PoolOptions, shards: Sequence[Shard]) -> ray.data.Dataset:
    """Return a pipeline that scores the shards when it is iterated, with one row for each shard."""
    gpus = 0 if settings.provider is Device.CPU else int(ray.cluster_resources().get("GPU", 0))
    min_workers, max_workers = options.workers or (1, gpus or sum(node["Alive"] for node in ray.nodes()))
    max_workers = min(max_workers, len(shards))
    cpus = options.cpus or max(1, int(ray.cluster_resources()["CPU"]) // max_workers)
    attempts = ray.remote(num_cpus=0, max_restarts=-1)(_Attempts).remote()
    items = [asdict(shard) for shard in shards]
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Actor,
        batch_size=1,
        fn_constructor_args=(settings, options, cpus, attempts),
        compute=ray.data.ActorPoolStrategy(
            min_size=min(min_workers, max_workers),
            max_size=max_workers,
            max_tasks_in_flight_per_actor=1,  # a waiting shard goes to the first free worker
        ),
        num_cpus=cpus,
        num_gpus=int(gpus > 0),
    )


class _Actor:
    """A worker in the form that Ray Data calls."""

    def __init__(self, settings: Settings, options: PoolOptions, cpus: int, attempts: Any) -> None:
        logging.config.dictConfig(logging_config("WARNING"))
        # It warns of failed images, which are all in the output.
        logging.getLogger("server.inference.scoring").setLevel(logging.ERROR)
        self._make_worker = partial(Worker, settings, options, str(options.version), threads=cpus)
        self._attempts = attempts
        self._worker: Worker | None = None

    def __call__(self, batch: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, list[str]]:
        """Return the result for a shard as JSON, or the message of an expected failure."""
        shard = Shard(str(batch["name"][0]), int(batch["rows"][0]))
        try:
            if (attempt := ray.get(self._attempts.begin.remote(shard.name))) > _ATTEMPTS:
                raise PoolError(
                    f"{shard.name} was started {attempt - 1} times, and its worker died each time; check Ray's log for "
                    "lack of memory, or remove the shard from the input"
                )
            self._worker = self._worker or self._make_worker()
            return {"fault": [""], "done": [json.dumps(asdict(self._worker.score_shard(shard)))]}
        except LabelnextError as err:
            return {"fault": [str(err)], "done": [""]}

    def __del__(self) -> None:
        if self._worker is not None:
            self._worker.close()


@contextmanager
def _ray() -> Iterator[None]:
    """Join the cluster, or start one on this machine; without dashboard and usage reports."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    own = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        ray.init(logging_level="warning", **own)
    except (ConnectionError, ValueError) as err:
        raise ConfigError(f"Ray cannot be joined or started here ({err}); see RAY_ADDRESS and RAY_AUTH_MODE") from err
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Add workers as soon as each has a shard.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    try:
        with redirect_stdout(sys.stderr):  # Ray prints the output of workers, and stdout is for the summary
            yield
    finally:
        ray.shutdown()


class _Attempts(Counter[str]):
    """How often each shard was started by any worker."""

    def begin(self, shard: str) -> int:
        self[shard] += 1
        return self[shard]
