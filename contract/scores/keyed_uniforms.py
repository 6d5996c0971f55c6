"""Random numbers that belong to a purpose, or to a task of it: the same in every process, whoever draws them."""

import hashlib

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_BITS = 53
"""As many as the fraction of a float64 has: every number is exact, and none is rounded up to 1."""


def keyed_uniforms(purpose: str, task_ids: Ints) -> npt.NDArray[np.float64]:
    """Return a uniform random number in [0, 1) for each task: int64 (N,) to float64 (N,).

    Keyed BLAKE2b of the task's number (RFC 7693). Under another `purpose` the numbers are independent of these.
    """
    key = hashlib.blake2b(purpose.encode(), digest_size=32).digest()
    digests = b"".join(
        hashlib.blake2b(task.to_bytes(8, "little", signed=True), digest_size=8, key=key).digest()
        for task in task_ids.tolist()
    )
    return (np.frombuffer(digests, "<u8") >> np.uint64(64 - _BITS)) / 2.0**_BITS


def keyed_generator(purpose: str) -> np.random.Generator:
    """Return a generator that begins alike for the same purpose: Philox, its key the purpose's BLAKE2b (RFC 7693)."""
    key = hashlib.blake2b(purpose.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key)))
