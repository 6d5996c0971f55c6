"""Opens a model repository: a folder, or a bucket through a local cache."""

import hashlib
import os
import re
from pathlib import Path

from contract.errors import ConfigError
from contract.versions.local_cache import CachedRepository
from contract.versions.repository import Repository
from contract.versions.signatures import Keys

_LOCATION = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([^?#\\]*))?")


def parse_location(text: str) -> str | Path:
    """Return an `s3://bucket/prefix` unchanged, and a folder as a path; ValueError says what is expected."""
    if not re.match(r"\w+://", text):
        return Path(text)
    _split(text)
    return text


def open_repository(
    location: str | Path, model: str = "default", cache: Path | None = None, *, keys: Keys = Keys()
) -> Repository:
    """Return a model's repository in a folder or at `s3://bucket/prefix`; ConfigError if it cannot be opened.

    `cache` is the folder for local caches of buckets, by default in the user's cache.
    """
    try:
        where = location if isinstance(location, Path) else parse_location(location)
    except ValueError as err:
        raise ConfigError(f"a model repository must be {err}, got {location!r}; set LABELNEXT_MODELS to one") from err
    if isinstance(where, Path):
        return Repository(where, model, keys=keys)
    try:
        from contract.versions.bucket import Bucket
    except ImportError as err:
        raise ConfigError(
            f"{where} needs a package that is not installed here; run `pip install -r requirements/s3.txt`"
        ) from err
    name, prefix = _split(where)
    bucket = Bucket(name, prefix)
    unique = hashlib.sha256(bucket.location.encode()).hexdigest()[:12]
    root = (cache or _default_cache()) / f"{name}-{unique}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError("this user cannot write to it")
    except OSError as err:
        raise ConfigError(
            f"the local cache {root} cannot be created ({err}); set LABELNEXT_VERSION_CACHE to a folder"
        ) from err
    return CachedRepository(bucket, root, model, keys=keys)


def _split(location: str) -> tuple[str, str]:
    """Return bucket and prefix."""
    match = _LOCATION.fullmatch(location)
    prefix = (match[2] or "").removesuffix("/") if match else ""
    if not match or not prefix.isprintable() or any(part in {"", ".", ".."} for part in prefix.split("/") if prefix):
        raise ValueError("a folder or s3://bucket/prefix, with a prefix that has no empty parts, . or ..")
    return match[1], prefix


def _default_cache() -> Path:
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as err:
        raise ConfigError(
            "this user has no home directory for a local cache; set LABELNEXT_VERSION_CACHE to a folder"
        ) from err
    return cache / "labelnext" / "versions"
