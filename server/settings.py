"""The server's settings, read from the environment."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from contract.settings import DECLARED, Count, Seconds, SharedSettings, parsed, split

_CACHE_MB_IN_MEMORY = 256
"""Features of about 60,000 images from VGG-16."""
_CACHE_MB_IN_A_FOLDER = 4096
"""Features of about a million images."""


class Score(StrEnum):
    """The score of predictions in Label Studio."""

    AGREEMENT = "agreement"
    """1 - BALD / ln C, for ascending order as in Label Studio's uncertainty sampling."""
    BALD = "bald"
    """BALD / ln C, for descending order."""


class Device(StrEnum):
    """The device that runs the graphs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Precision of the backbone; the head always computes in float32."""

    AUTO = "auto"
    """fp16 on a GPU, int8 on a CPU if the version has it, else fp32."""
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


def _parse_bind(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError("HOST:PORT, such as 127.0.0.1:9090")
    return value


def _parse_hosts(value: str) -> tuple[str, ...]:
    hosts = split(value.lower())
    if not all(host == "*" or re.fullmatch(r"[a-z0-9_.-]+", host, re.ASCII) for host in hosts):
        raise ValueError("host names such as labelnext.example.org, without scheme and port, separated by commas, or *")
    return hosts


@dataclass(frozen=True, slots=True, kw_only=True, config=DECLARED)
class Settings(SharedSettings):
    """All settings of the server. The defaults suit a laptop."""

    model: str | None = None
    """Serve only this model of the repository: the name of its folder. By default all models are served
    ([Several projects](operations.md#several-projects)), and `score-pool` uses `default`."""
    bind: Annotated[str, parsed(_parse_bind)] = "127.0.0.1:9090"
    """Address and port to listen on; the images set `0.0.0.0:9090`."""
    allowed_hosts: Annotated[tuple[str, ...], parsed(_parse_hosts)] = ()
    """Names by which clients and proxies may address the server, such as `labelnext.example.org`, separated by commas;
    `*` for any. It always answers to IP addresses, `localhost`, names without a dot, and names that end in
    `.localhost`, `.internal`, `.svc` or `.cluster.local`. Other requests, except those under
    [Health](operations.md#health), get 421, so that web pages cannot reach the server by DNS rebinding."""
    threads: Count = 16
    """Maximum of `/predict` and `/score` requests handled concurrently. Each keeps its body and response in memory; all
    share the fetching threads evenly."""
    queue_requests: Count = 128
    """Maximum of waiting requests; more are refused. Each waits in a thread, which costs little."""
    fetch_threads: Count = 16
    """Images fetched and decoded concurrently, at most half of them from one host. Up to four times as many slow images
    are fetched in addition, so that a hanging host does not delay others."""
    queue_images: Count | None = None
    """Maximum of images, of all requests, that are fetched or wait for the graph, which limits memory; by default two
    batches plus one image for each fetching thread."""
    passes: Count | None = None
    """Stochastic passes for each image; by default as many as the version was evaluated with, 20."""
    score: Annotated[Score, parsed(str.lower)] = Score.AGREEMENT
    """`agreement` sends 1 - BALD / ln C, to sort ascending; `bald` sends BALD / ln C, to sort descending. Do not
    combine `bald` with `trainer rank`, whose scores ascend."""
    provider: Annotated[Device, parsed(str.lower)] = Device.AUTO
    """`auto` uses a GPU if there is one, `cuda` refuses to start without one, `cpu` never uses one."""
    precision: Annotated[Precision, parsed(str.lower)] = Precision.AUTO
    """Precision of the backbone: `int8` needs a version that has it, `fp16` a GPU, `auto` chooses the fastest. If it is
    not available or fails validation, the server uses fp32, with a warning."""
    poll_s: Seconds = 5.0
    """Seconds between polls for a new version."""
    max_batch_images: Count = 32
    """Maximum of images in one run of the graph."""
    deadline_s: Seconds = 90.0
    """Seconds until a request times out, including waiting. Label Studio gives up after 100. When gunicorn stops, it
    lets requests finish for five seconds more, so its supervisor must wait longer than that."""
    max_body_bytes: Count = 32 * 2**20
    """Maximum size of a request body; 2,000 tasks are about 2 MB. Concurrent requests may have twice that in total."""
    cache_dir: Path | None = None
    """A folder on a local disk for image features, which replicas on one host may share; by default features are kept
    in memory."""
    recheck_s: Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)] = 86_400.0
    """Seconds after the check of an image during which its source is not asked again whether the file has changed,
    unless its host answered with `no-store`. `0` checks each time."""
    cache_mb: Annotated[int, Field(ge=0)] | None = None
    """Size limit of these features in MiB: by default 256 in memory (some 60,000 images) and 4096 in a folder; `0`
    disables the cache."""

    @property
    def max_images_in_flight(self) -> int:
        """Limit on images being fetched or waiting for the graph: by default two batches and one per thread."""
        return self.queue_images or 2 * self.max_batch_images + self.fetch_threads

    @property
    def cache_bytes(self) -> int:
        """Size limit of the feature store; 0 for no store."""
        mebibytes = self.cache_mb
        if mebibytes is None:
            mebibytes = _CACHE_MB_IN_MEMORY if self.cache_dir is None else _CACHE_MB_IN_A_FOLDER
        return mebibytes * 2**20
