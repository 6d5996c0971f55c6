"""Reproducible random numbers, keyed by purpose and task: equal in every process."""

import hashlib

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_BITS = 53
"""The precision of float64: every number is exact, and none is rounded up to 1."""


def keyed_uniforms(purpose: str, task_ids: Ints) -> npt.NDArray[np.float64]:
    """Return a uniform random number in [0, 1) for each task: int64 (N,) to float64 (N,).

    Keyed BLAKE2b of the task's number (RFC 7693). Numbers of different purposes are independent.
    """
    key = hashlib.blake2b(purpose.encode(), digest_size=32).digest()
    digests = b"".join(
        hashlib.blake2b(task.to_bytes(8, "little", signed=True), digest_size=8, key=key).digest()
        for task in task_ids.tolist()
    )
    return (np.frombuffer(digests, "<u8") >> np.uint64(64 - _BITS)) / 2.0**_BITS


def keyed_generator(purpose: str) -> np.random.Generator:
    """Return a generator seeded by the purpose: Philox, keyed by its BLAKE2b (RFC 7693)."""
    key = hashlib.blake2b(purpose.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key)))
