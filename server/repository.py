"""The model repository that the settings name, opened the same way by all that serves, checks or scores."""

from contract.versions.local_cache import open_repository
from contract.versions.repository import Repository
from contract.versions.signatures import Keys
from server.settings import Settings


def open_models(settings: Settings) -> Repository:
    """Return the model's repository; versions in it are verified where a key is set.

    Raises:
        ConfigError: if it cannot be opened, or the key cannot be used.
    """
    keys = Keys.read(verifying=settings.verify_key)
    return open_repository(settings.models, settings.model, settings.mirror, keys=keys)
