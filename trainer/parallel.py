"""Training in several processes at once, one a GPU or one a group of cores, as torchrun starts them.

Owns what the processes tell each other: parts of work, the means of losses, gradients and batch statistics, and that
none waits for long for one that has ended. Each batch is split over them, so that what comes out is what one process
would train. Knows nothing of labels or versions. What passes data here is to be called by all ranks, in one order.
"""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from contract.errors import ConfigError, LabelnextError

T = TypeVar("T")

_PATIENCE: Final = timedelta(minutes=30)
"""For a rank that hangs, or has the slower images to read; one that has ended is noticed at once."""
_NUMBERS: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MEETING_POINT: Final = ("MASTER_ADDR", "MASTER_PORT")
_SENT_AT_ONCE_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class World:
    """The processes that train together, and which of them this is; by default it is alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine: the number of its GPU."""
    local_size: int = 1
    threads_are_set: bool = False
    """Whether OMP_NUM_THREADS says how many threads each process has; if not, those of a machine share its cores."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "World":
        """Read what torchrun, or whatever starts the processes in its place, sets; without WORLD_SIZE there is one.

        Raises:
            ConfigError: if a variable is missing or cannot be.
        """
        if "WORLD_SIZE" not in environ:
            return cls()
        numbers = [environ.get(name, "") for name in _NUMBERS]
        if all(map(str.isdecimal, numbers)) and all(environ.get(name) for name in _MEETING_POINT):
            rank, size, local_rank, local_size = map(int, numbers)
            if rank < size and local_rank < local_size <= size:
                return cls(rank, size, local_rank, local_size, threads_are_set=bool(environ.get("OMP_NUM_THREADS")))
        given = " ".join(f"{name}={environ.get(name, '')}" for name in (*_NUMBERS, *_MEETING_POINT))
        raise ConfigError(f"expected what torchrun sets, got {given}; start with torchrun, or unset WORLD_SIZE")

    @property
    def first(self) -> bool:
        """Whether this is the rank that reads labels, measures, publishes and talks."""
        return self.rank == 0

    @contextmanager
    def joined(self, device: torch.device, *, patience: timedelta = _PATIENCE) -> Iterator[None]:
        """Be one of the ranks for as long as the block lasts; each trains on `device` or, of several GPUs, on its own.

        Other ranks than the first then say only what the first cannot know. SIGTERM ends this process at once, also
        where it waits for others, which it does for as long as `patience`.

        Raises:
            ConfigError: if this machine has too few GPUs, or another has none.
            LabelnextError: if another rank ended before this one.
        """
        if self.size == 1:
            yield
            return
        with _settled(self):
            try:
                self._enter(device, patience)
                yield
            except RuntimeError as err:
                if not _is_of_peers(err):
                    raise
                raise LabelnextError(
                    f"rank {self.rank} of {self.size} cannot go on without another one that has ended, or has not "
                    f"answered for {patience}; what that one said is the reason ({str(err).partition(chr(10))[0]})"
                ) from err
            dist.destroy_process_group()  # not after an error: it may wait for the others

    def _enter(self, device: torch.device, patience: timedelta) -> None:
        if device.type == "cuda":
            if self.local_rank >= torch.cuda.device_count():
                raise ConfigError(
                    f"expected a GPU for each of {self.local_size} processes on this machine, got "
                    f"{torch.cuda.device_count()}; start as many with --nproc-per-node, or train with --device cpu"
                )
            torch.cuda.set_device(self.local_rank)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=self.rank, world_size=self.size, timeout=patience)
        kinds = sorted(set(self.gather(device.type)))
        if len(kinds) > 1:
            raise ConfigError(f"expected all machines to train alike, got {' and '.join(kinds)}; give --device cpu")

    def part(self, count: int) -> slice:
        """Return which of `count` rows are this rank's: neighbours, and at most one more or less than another's."""
        return self._part_of(self.rank, count)

    def _part_of(self, rank: int, count: int) -> slice:
        rows, more = divmod(count, self.size)
        start = rank * rows + min(rank, more)
        return slice(start, start + rows + (rank < more))

    def share_of_batch(self, samples: list[Any]) -> list[Tensor]:
        """Collate this rank's samples of a batch; where there are fewer samples than ranks, some have none."""
        return [column[self.rank :: self.size] for column in default_collate(samples)]

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns on the first rank, which alone calls it."""
        made: list[Any] = [make() if self.first else None]
        if self.size > 1:
            dist.broadcast_object_list(made)
        return cast(T, made[0])

    def gather(self, value: T) -> list[T]:
        """Return the value of each rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def complete(self, rows: npt.NDArray[Any]) -> None:
        """Fill in, in an array of any shape (N, ...) of which each rank has made its `part`, those of the others."""
        if self.size == 1 or not rows.size:
            return
        at_once = max(1, _SENT_AT_ONCE_BYTES // rows[:1].nbytes)
        for rank in range(self.size):
            for piece in torch.split(torch.from_numpy(rows[self._part_of(rank, len(rows))]), at_once):
                dist.broadcast(piece, src=rank)

    def completed(self, own: Tensor, *, rows: int) -> Tensor:
        """Return (N, ...) on the CPU, `rows` of them, of which each rank has made its `part`."""
        if self.size == 1:
            return own
        whole = own.new_empty(rows, *own.shape[1:])
        whole[self.part(rows)] = own
        self.complete(whole.numpy())
        return whole

    def align(self, module: nn.Module) -> None:
        """Give all ranks the first one's weights and buffers: equal seeds draw almost, not quite, alike everywhere."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let one rank of each machine go ahead: what it downloads, the others find."""
        if self.local_rank > 0:
            self.gather(None)
        yield
        if self.local_rank == 0:
            self.gather(None)

    def total(self, own: Tensor) -> Tensor:
        """Return the sum of each rank's tensor, which carries no gradient."""
        return own.detach() if self.size == 1 else _summed(own.detach())

    def mean(self, loss: Tensor, weight: Tensor) -> Tensor:
        """Return the mean of all ranks' losses, scalars, of which each counts by its weight.

        Its value is the same for all. Its gradient is that of this rank's share, such that the mean of the gradients
        over the ranks, which a replica takes, is the gradient of the mean.
        """
        if self.size == 1:
            return loss
        sums = torch.stack([loss.detach() * weight, weight])
        dist.all_reduce(sums)
        total, whole = sums
        own = loss * (weight * self.size / whole)
        return cast(Tensor, own + (total / whole - own).detach())

    @contextmanager
    def replicated(self, module: nn.Module) -> Iterator[nn.Module]:
        """Make a module a replica for as long as the block lasts: what is trained is then the same on all ranks.

        Gradients are the mean of all replicas', batch normalisation is over the images of all, and dropout is each
        replica's own. Its loss must be `mean`.
        """
        if self.size == 1:
            yield module
            return
        with _normalising_together(module):
            yield _Replica(module, forward_sync_buffers=False, gradient_as_bucket_view=True)


ALONE: Final = World()


@contextmanager
def _settled(world: World) -> Iterator[None]:
    """Share the cores, leave it to the first rank to speak, and die of SIGTERM: no handler runs while torch waits."""
    log, threads, handler = logging.getLogger("trainer"), torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    level = log.level
    if not world.threads_are_set:
        torch.set_num_threads(max(1, threads // world.local_size))
    if not world.first:
        log.setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        log.setLevel(level)
        torch.set_num_threads(threads)


def _is_of_peers(error: RuntimeError) -> bool:
    """Tell a lost connection from, say, a lack of memory: gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


class _Replica(DistributedDataParallel):
    """Draws dropout from a stream of its rank's, and leaves torch's global generator, which shuffles alike on all."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        self._seeds = np.random.default_rng([torch.initial_seed(), dist.get_rank()])

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Return what the module computes."""
        with torch.random.fork_rng(devices=[self.device] if self.device_type == "cuda" else []):
            torch.manual_seed(int(self._seeds.integers(1 << 63)))
            return super().forward(*inputs, **options)  # type: ignore[no-untyped-call]  # torch's


@contextmanager
def _normalising_together(module: nn.Module) -> Iterator[None]:
    """Have every batch normalisation in a module be over the images of all ranks."""
    replaced = [
        (parent, name, norm)
        for parent in module.modules()
        for name, norm in parent.named_children()
        if isinstance(norm, nn.BatchNorm2d)
    ]
    for parent, name, norm in replaced:
        setattr(parent, name, _JointNorm(norm))
    try:
        yield
    finally:
        for parent, name, norm in replaced:
            setattr(parent, name, norm)


class _JointNorm(nn.Module):
    """Batch normalisation by mean and variance of all ranks' images; SyncBatchNorm is this, but refuses processors."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, maps: Tensor) -> Tensor:
        """Return (N, D, H, W) normalised; N is of this rank, and may be 0."""
        norm, axes = self.norm, (0, 2, 3)
        if not norm.training:
            return cast(Tensor, norm(maps))
        values = maps.new_tensor([maps.numel() // maps.shape[1]])
        sums = cast(Tensor, _Sum.apply(torch.cat([maps.sum(axes), values])))
        count = sums[-1].detach()
        mean = sums[:-1] / count  # (D,)
        centred = maps - mean[:, None, None]
        variance = cast(Tensor, _Sum.apply(centred.square().sum(axes))) / count
        self._remember(mean, variance * count / (count - 1))
        scale = norm.weight * (variance + norm.eps).rsqrt()
        return centred * scale[:, None, None] + norm.bias[:, None, None]

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        momentum = cast(float, self.norm.momentum)
        cast(Tensor, self.norm.running_mean).lerp_(mean, momentum)
        cast(Tensor, self.norm.running_var).lerp_(variance, momentum)
        cast(Tensor, self.norm.num_batches_tracked).add_(1)


class _Sum(torch.autograd.Function):
    """The sum over the ranks, through which gradients flow."""

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        """Return the sum of each rank's tensor."""
        return _summed(own)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        """Return the sum of each rank's gradient."""
        return _summed(gradient)


def _summed(own: Tensor) -> Tensor:
    whole = own.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole)
    return whole
