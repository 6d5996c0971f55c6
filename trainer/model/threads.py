"""In how many threads torch computes: in one what is small.

Threads that share a small product wait for each other longer than they compute and, where other processes want the
processors too, twenty times as long: 154 steps of a head of 256 units on 1,280 features took 0.7 s of a processor in
one thread, and in two 13.6 s beside a dozen other processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn

_SMALL: Final = 2_000_000
"""Parameters of a module up to which it is small."""


@contextmanager
def few_threads(module: nn.Module) -> Iterator[None]:
    """Have torch compute in one thread until the block ends, if the module is small."""
    threads = torch.get_num_threads()
    small = sum(parameter.numel() for parameter in module.parameters()) <= _SMALL
    torch.set_num_threads(1 if small else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
