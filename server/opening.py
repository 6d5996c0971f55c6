"""Opens the repository, engines and feature store that the settings describe."""

from contract.features.store import FeatureStore
from contract.settings import DEFAULT_MODEL
from contract.versions.location import open_repository
from contract.versions.repository import Repository
from contract.versions.signatures import Keys
from server.inference.backbone import Backbones
from server.inference.engine import Engine, EngineOptions
from server.inference.resources import available_cpus
from server.inference.validation import LoadEngine
from server.observe.metrics import Metrics
from server.settings import Settings


def open_models(settings: Settings) -> Repository:
    """Return the repository of the model in the settings, else of `default`, with its key for signatures.

    Raises:
        ConfigError: if the repository cannot be opened or the key cannot be used.
    """
    keys = Keys.read(verifying=settings.verify_key)
    return open_repository(settings.models, settings.model or DEFAULT_MODEL, settings.version_cache, keys=keys)


def engine_loader(settings: Settings, *, threads: int | None = None) -> LoadEngine:
    """Return a function that opens versions as engines, which share equal backbones.

    Runs use `threads` threads; by default one for each available processor.
    """
    options = EngineOptions(
        device=settings.provider,
        threads=threads or available_cpus(),
        max_batch_images=settings.max_batch_images,
        passes=settings.passes,
        precision=settings.precision,
    )
    backbones = Backbones()
    return lambda version: Engine(version, options, backbones=backbones)


def open_store(settings: Settings, metrics: Metrics) -> FeatureStore | None:
    """Open the feature store; return None if the settings disable it."""
    if not settings.cache_bytes:
        return None
    store = FeatureStore(
        settings.cache_dir,
        max_bytes=settings.cache_bytes,
        count_fault=lambda kind: metrics.feature_cache_faults.labels(kind).inc(),
    )
    metrics.feature_cache_bytes.set_function(lambda: store.size_bytes)
    return store
