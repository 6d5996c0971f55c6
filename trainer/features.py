"""The trainer's feature store, which servers on the same host may share."""

from contextlib import AbstractContextManager, closing

from contract.features.store import FeatureStore
from trainer.settings import Environment


def open_store(environment: Environment) -> AbstractContextManager[FeatureStore]:
    """Return a context manager for the feature store; faults of its file are ignored, since they only cost time."""
    max_bytes = environment.cache_mb * 2**20
    return closing(FeatureStore(environment.cache_dir, max_bytes=max_bytes, count_fault=lambda fault: None))
