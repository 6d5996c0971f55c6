"""The trainer's store of features, which servers on the same host may share."""

from collections.abc import Iterator
from contextlib import contextmanager

from contract.features.store import FeatureStore
from trainer.settings import Environment


@contextmanager
def open_store(environment: Environment) -> Iterator[FeatureStore]:
    """Open the store for as long as the block lasts; what is wrong with its file costs time and nothing else."""
    store = FeatureStore(environment.cache_dir, max_bytes=environment.cache_mb * 2**20, count_fault=lambda fault: None)
    try:
        yield store
    finally:
        store.close()
