"""The trainer's store of features, which servers on the same host may share."""

from contextlib import AbstractContextManager, closing

from contract.features.store import FeatureStore
from trainer.settings import Environment


def open_store(environment: Environment) -> AbstractContextManager[FeatureStore]:
    """Open the store for as long as a block lasts; what is wrong with its file costs time and nothing else."""
    max_bytes = environment.cache_mb * 2**20
    return closing(FeatureStore(environment.cache_dir, max_bytes=max_bytes, count_fault=lambda fault: None))
