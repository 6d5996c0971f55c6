"""Processes that train together, as torchrun would start them on this machine."""

import multiprocessing
import os
import traceback
from datetime import timedelta

import torch

from demo.processes import free_port
from trainer.parallel import World

CPU = torch.device("cpu")


def in_ranks(size, work, folder, *arguments, patience_s=300):
    """Call `work(world, *arguments)` in so many processes, and return what each came to, an exception where it raised.

    None stands for a process that left nothing behind.
    """
    context = multiprocessing.get_context("spawn")
    port = free_port()
    children = [
        context.Process(target=_work, args=(World(rank, size, rank, size), port, patience_s, work, folder, arguments))
        for rank in range(size)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    outcomes = [folder / f"{rank}.pt" for rank in range(size)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in outcomes]


def _work(world, port, patience_s, work, folder, arguments):
    torch.set_num_threads(2 * world.size)
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        with world.joined(CPU, patience=timedelta(seconds=patience_s)):
            outcome = work(world, *arguments)
    except Exception as err:
        traceback.print_exc()
        outcome = err
    torch.save(outcome, folder / f"{world.rank}.pt")
