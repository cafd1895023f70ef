"""Several processes that learn as one, launched by ``torchrun``, each with its share of the rows of every batch.

    torchrun --nproc-per-node 2 train.py

Nothing in ``train.py`` changes: `popflow.learn.fit` finds the processes. All draw the same batch from the same streams, each keeps its
rows (`shard_rows`), and gradients are averaged before they are clipped and applied. As the mean of the means of equal shares is the mean,
``n`` processes follow the path of one with the same batch, to rounding. Only the first process calls recorders, shows progress and writes
checkpoints, from which any number of processes can resume.
"""

from __future__ import annotations

import atexit
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Shard = Callable[[Any, int, int], Any]
"""``shard(batch, rank, size)``: the part of a batch that one of ``size`` processes learns from."""


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a run, and which of them this one is. A single process sends nothing."""

    rank: int = 0
    size: int = 1

    def mean(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Average tensors over the processes, in one message; every process gets the same bits."""
        if self.size == 1:
            return tuple(tensors)
        real = [torch.view_as_real(x) if x.is_complex() else x for x in tensors]
        message = torch.cat([x.detach().reshape(-1) for x in real])
        _reduce(message, dist.ReduceOp.SUM)
        parts = (message / self.size).split([x.numel() for x in real])
        back = (part.reshape(x.shape).to(x.dtype) for part, x in zip(parts, real, strict=True))
        return tuple(torch.view_as_complex(y) if x.is_complex() else y for x, y in zip(tensors, back, strict=True))

    def in_shares(self, function: Callable[..., Any], *rows: Tensor) -> Any:
        """Apply a function of rows to this process's share of them; every process gets what all found.

        Args:
            function: Takes tensors of rows and returns tensors with as many rows, in any tree.
            rows: Tensors with equal first dimensions, a multiple of the number of processes; the same in every process.

        Raises:
            ValueError: when the rows cannot be shared equally.

        >>> Processes().in_shares(lambda x: {"square": x * x}, torch.tensor([1.0, 2.0]))
        {'square': tensor([1., 4.])}
        """
        if self.size == 1:
            return function(*rows)
        mine = function(*shard_rows(rows, self.rank, self.size))
        return tree_map(lambda part: self._whole(part) if isinstance(part, Tensor) else part, mine)

    def _whole(self, part: Tensor) -> Tensor:
        whole = part.new_zeros(self.size, *part.shape)
        whole[self.rank] = part.detach()
        _reduce(whole, dist.ReduceOp.SUM)
        return whole.flatten(0, 1)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag of any process is set; all return together."""
        return flag if self.size == 1 else self._largest(float(flag), device) > 0

    def first(self, flag: bool, device: torch.device) -> bool:
        """The flag of the first process."""
        return flag if self.size == 1 else self._largest(float(flag and self.rank == 0), device) > 0

    def same(self, params: Mapping[str, Tensor], seed: int) -> None:
        """Raise RuntimeError unless all processes hold the same parameters and seed; values that are not numbers are left to the guard."""
        if self.size == 1:
            return
        total = sum(float(torch.view_as_real(p).double().sum() if p.is_complex() else p.double().sum()) for p in params.values())
        device = next(iter(params.values())).device
        for name, value in {"the seed of rng": float(seed), "the sum of all parameters": total if math.isfinite(total) else 0.0}.items():
            high, low = self._largest(value, device), -self._largest(-value, device)
            if high != low:
                raise RuntimeError(
                    f"{name} is between {low!r} and {high!r} in the {self.size} processes, wanted one value: give all the same parameters, "
                    "data and seed, and an optimiser that depends on gradients alone."
                )

    def _largest(self, value: float, device: torch.device) -> float:
        message = torch.tensor(value, dtype=torch.float64, device=device)
        _reduce(message, dist.ReduceOp.MAX)
        return float(message)


def _reduce(message: Tensor, op: dist.ReduceOp.RedOpType) -> None:
    """Reduce in place, and return when gloo's thread has let go of the message.

    Letting go takes the interpreter's lock. A thread that has not done so when the program ends meets an interpreter that is being torn down, and the
    process aborts: "terminate called without an active exception".
    """
    held = sys.getrefcount(message)
    dist.all_reduce(message, op)
    end = time.monotonic() + 1
    while message.device.type == "cpu" and sys.getrefcount(message) > held and time.monotonic() < end:
        time.sleep(0)  # gives the lock away


def processes(device: torch.device) -> Processes:
    """Return the processes that ``torchrun`` launched (joining them at the first call), or this one alone.

    They communicate through gloo on CPUs and nccl on GPUs, or through the group that the caller has initialised.
    """
    if not dist.is_available() or not (dist.is_initialized() or dist.is_torchelastic_launched()):
        return Processes()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
    return Processes(dist.get_rank(), dist.get_world_size())


def shard_rows(batch: Any, rank: int, size: int) -> Any:
    """The ``rank``-th of ``size`` equal shares of the rows (the first dimension) of every tensor; tensors without dimensions are shared.

    The loss must be a mean over these rows. Where it is not, or a batch holds tensors without rows, give `fit` another ``shard``.

    Raises:
        ValueError: when the first dimensions differ, or cannot be shared equally.

    Example:
        >>> x, t = shard_rows((torch.arange(4), torch.tensor(0.5)), 1, 2)
        >>> x.tolist(), t.item()
        ([2, 3], 0.5)
    """
    if size == 1:
        return batch
    lengths = {len(x) for x in tree_leaves(batch) if isinstance(x, Tensor) and x.ndim}
    if len(lengths) != 1 or next(iter(lengths)) % size:
        raise ValueError(
            f"the tensors of a batch have first dimensions {sorted(lengths)}, wanted one and the same, a multiple of the {size} processes: "
            "put the rows first, change the batch size, or pass shard=... ."
        )
    share = next(iter(lengths)) // size
    return tree_map(lambda x: x[rank * share : (rank + 1) * share] if isinstance(x, Tensor) and x.ndim else x, batch)
