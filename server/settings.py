"""The server's settings: read from the environment once, validated whole.

A field `poll_s` is set by `LABELNEXT_POLL_S`, and so on. Knows nothing of what the settings are used for.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from contract.errors import ConfigError
from contract.images.download import Target
from contract.images.preprocess import MAX_MEGAPIXELS
from contract.versions.local_cache import parse_location
from contract.versions.signatures import read_public_key

PREFIX = "LABELNEXT_"

_CACHE_MB_IN_MEMORY = 64
"""About 4,000 images of VGG-16."""
_CACHE_MB_IN_A_FOLDER = 4096
"""About 250,000 of them."""


class Score(StrEnum):
    """What Label Studio gets as a prediction's score."""

    AGREEMENT = "agreement"
    """1 - BALD / ln C: lowest is labelled first, as Label Studio's uncertainty sampling sorts."""
    BALD = "bald"
    """BALD / ln C, for those who sort descending."""


class MaskPolicy(StrEnum):
    """Which dropout masks the passes use."""

    FIXED = "fixed"
    """The version's own: every replica and every request gives the same score."""
    FRESH = "fresh"
    """Drawn anew for each batch."""


class Device(StrEnum):
    """Where the graph may run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """What the trunk computes in; the head always computes in float32."""

    AUTO = "auto"
    """fp16 on a GPU, int8 on a CPU where the version has it, else fp32."""
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


def _parse_url(value: str) -> str:
    expected = "an http or https URL without a password, such as https://label-studio.example.org"
    try:
        url = Target.parse(value).url
    except ValueError as err:
        raise ValueError(expected) from err
    if "@" in urlsplit(url).netloc:
        raise ValueError(expected)
    return url.rstrip("/")


def _parse_urls(value: str) -> tuple[str, ...]:
    return tuple(_parse_url(item.strip()) for item in value.split(",") if item.strip())


def _parse_basic_auth(value: str) -> str:
    user, _, password = value.partition(":")
    if not user or not password or not value.isascii() or not value.isprintable():
        raise ValueError("USER:PASSWORD in printable ASCII, neither of them empty")
    return value


def _parse_header_token(value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("printable ASCII without spaces, for it is sent in a header")
    return value


def _parse_bind(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError("HOST:PORT, such as 127.0.0.1:9090")
    return value


def _parse_hosts(value: str) -> tuple[str, ...]:
    hosts = tuple(item.strip().lower() for item in value.split(",") if item.strip())
    if not all(host == "*" or re.fullmatch(r"[a-z0-9_.-]+", host, re.ASCII) for host in hosts):
        raise ValueError("host names such as labelnext.example.org, without scheme and port, separated by commas, or *")
    return hosts


def _parse_count(value: str) -> int:
    if not value.isdecimal() or not value.isascii() or int(value) < 1:
        raise ValueError("a whole number of at least 1")
    return int(value)


def _parse_whole(value: str) -> int:
    if not value.isdecimal() or not value.isascii():
        raise ValueError("a whole number, 0 included")
    return int(value)


def _parse_seconds(value: str) -> float:
    expected = "a number of seconds above 0"
    try:
        seconds = float(value)
    except ValueError as err:
        raise ValueError(expected) from err
    if not 0 < seconds < 1e6:
        raise ValueError(expected)
    return seconds


def _parse_choice(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    def parse(value: str) -> StrEnum:
        try:
            return kind(value.lower())
        except ValueError as err:
            raise ValueError(f"one of {', '.join(kind)}") from err

    return parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set. The defaults serve a laptop."""

    models: str | Path = Path("models")
    """The model repository: a folder, or s3://bucket/prefix."""
    model: str = "default"
    """The model's folder in it."""
    mirror: Path | None = None
    """The folder that versions are copied to from a bucket, and read in; None means one below the user's cache
    (~/.cache/labelnext/mirror). It holds two versions, and while one is fetched three."""
    verify_key: str | None = None
    """A minisign public key, or the path of its .pub file; versions that are not signed by it are then refused."""
    bind: str = "127.0.0.1:9090"
    """Host and port to listen on."""
    allowed_hosts: tuple[str, ...] = ()
    """Names with a dot that the server answers to, * for any; it always does to addresses, to names without a dot, and
    to those that nobody can have on the internet. Else a web page could reach it by a name of its own."""
    threads: int = 16
    """Requests handled at the same time; others wait until there is room."""
    queue_requests: int = 128
    """The most requests that wait."""
    fetch_threads: int = 16
    """Images fetched and decoded at the same time, over all requests; from one host at most half as many."""
    queue_images: int | None = None
    """The most images, over all requests, that are fetched or wait for the graph, which is what they take in memory;
    None means two batches and one for each fetching thread."""
    max_megapixels: int = MAX_MEGAPIXELS
    """Of one image in memory, in millions of pixels; of most JPEGs that is a fraction of their size."""
    passes: int | None = None
    """T, the stochastic passes per image; None takes the manifest's."""
    score: Score = Score.AGREEMENT
    """The direction of the score."""
    masks: MaskPolicy = MaskPolicy.FIXED
    """Whether the masks belong to the version or to the batch."""
    provider: Device = Device.AUTO
    """Where the graph runs."""
    precision: Precision = Precision.FP32
    """int8 needs a version published with --int8, fp16 a GPU; what cannot be had or is not valid is served in
    fp32, with a warning."""
    poll_s: float = 5.0
    """Seconds between two looks at the repository's CURRENT."""
    max_batch_images: int = 32
    """The most images in one run of the graph."""
    deadline_s: float = 90.0
    """Seconds that a request may take; Label Studio gives up after 100."""
    max_body_bytes: int = 32 * 2**20
    """The largest request body that is read, and half of what those in hand may have together."""
    cache_dir: Path | None = None
    """The folder of the feature cache, for all replicas on one host; None keeps it in memory."""
    cache_mb: int | None = None
    """The most that the feature cache holds, in MiB, 0 for no cache; None means 64 in memory and 4096 in a folder."""
    label_studio_url: str | None = None
    """Label Studio's address, as seen from the server; uploads and cloud storage are read through it."""
    label_studio_token: str | None = field(default=None, repr=False)
    """A personal access token or a legacy token of Label Studio; sent to `label_studio_url` only."""
    label_studio_public_url: str | None = None
    """Label Studio's address as browsers see it: for the links on the server's page, where None means
    `label_studio_url`, and for what references mean, where None asks Label Studio."""
    basic_auth: str | None = field(default=None, repr=False)
    """`user:password` that is asked for, of all but /health and /metrics; None lets everybody in."""
    webhook_secret: str | None = field(default=None, repr=False)
    """What /webhook also accepts as a bearer token: events of Label Studio carry no basic auth. Without `basic_auth` it
    is all that /webhook accepts, and Start Training, which cannot send it, is refused."""
    local_files_root: Path | None = None
    """The folder behind /data/local-files; None turns these references off."""
    allowed_origins: tuple[str, ...] = ()
    """Origins that images may come from though their addresses are private."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings; a variable that is empty counts as unset.

        Raises:
            ConfigError: one message that names every fault.
        """
        values: dict[str, Any] = {}
        faults: list[str] = []
        for item in fields(cls):
            name = PREFIX + item.name.upper()
            if not (text := environ.get(name, "").strip()):
                continue
            try:
                values[item.name] = _PARSERS[item.name](text)
            except ValueError as err:
                faults.append(f"{name} must be {err}, got {_quote(text, secret=not item.repr)}")
        if faults:
            raise ConfigError("; ".join(faults))
        return cls(**values)

    @property
    def images_under_way(self) -> int:
        """The most images that are fetched or wait for the graph: one batch running, one waiting, and every thread."""
        return self.queue_images or 2 * self.max_batch_images + self.fetch_threads

    @property
    def cache_bytes(self) -> int:
        """The most that the feature cache holds; 0 for no cache."""
        mebibytes = self.cache_mb
        if mebibytes is None:
            mebibytes = _CACHE_MB_IN_MEMORY if self.cache_dir is None else _CACHE_MB_IN_A_FOLDER
        return mebibytes * 2**20

    def describe(self) -> dict[str, object]:
        """Return all settings for the log; of a secret only whether it is set."""
        return {item.name: _show(getattr(self, item.name), secret=not item.repr) for item in fields(self)}


def _quote(text: str, *, secret: bool) -> str:
    if secret:
        return "something else, which is not shown"
    return "one with a password" if "@" in text else repr(text)


def _show(value: object, *, secret: bool) -> object:
    if secret and value is not None:
        return "set"
    return str(value) if isinstance(value, Path) else value


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "models": parse_location,
    "model": str,
    "mirror": Path,
    "verify_key": read_public_key,
    "bind": _parse_bind,
    "allowed_hosts": _parse_hosts,
    "threads": _parse_count,
    "queue_requests": _parse_count,
    "fetch_threads": _parse_count,
    "queue_images": _parse_count,
    "max_megapixels": _parse_count,
    "passes": _parse_count,
    "score": _parse_choice(Score),
    "masks": _parse_choice(MaskPolicy),
    "provider": _parse_choice(Device),
    "precision": _parse_choice(Precision),
    "poll_s": _parse_seconds,
    "max_batch_images": _parse_count,
    "deadline_s": _parse_seconds,
    "max_body_bytes": _parse_count,
    "cache_dir": Path,
    "cache_mb": _parse_whole,
    "label_studio_url": _parse_url,
    "label_studio_token": str,
    "label_studio_public_url": _parse_url,
    "basic_auth": _parse_basic_auth,
    "webhook_secret": _parse_header_token,
    "local_files_root": Path,
    "allowed_origins": _parse_urls,
}
"""From a variable's text to a field's value; ValueError says what must be."""
