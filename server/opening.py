"""What the settings say is to be opened: repository, engines and feature store."""

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
    """Return the repository of the model that the settings name, else of `default`; a key that is set verifies it.

    Raises:
        ConfigError: if it cannot be opened, or the key cannot be used.
    """
    keys = Keys.read(verifying=settings.verify_key)
    return open_repository(settings.models, settings.model or DEFAULT_MODEL, settings.version_cache, keys=keys)


def engine_loader(settings: Settings, *, threads: int | None = None) -> LoadEngine:
    """Return what turns a version into an engine under these settings; None takes every processor there is.

    Engines that it has opened have a backbone in common where it is the same.
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
    """Open the feature store that the settings ask for; None if they ask for none."""
    if not settings.cache_bytes:
        return None
    store = FeatureStore(
        settings.cache_dir,
        max_bytes=settings.cache_bytes,
        count_fault=lambda kind: metrics.feature_cache_faults.labels(kind).inc(),
    )
    metrics.feature_cache_bytes.set_function(lambda: store.size_bytes)
    return store
