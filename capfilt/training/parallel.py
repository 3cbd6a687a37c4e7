"""Several processes that train one model: what each has is gathered, what each found is summed up.

Every process computes its rows of a batch against the rows of all, and a loss that is its share of the whole
batch's loss. So losses and gradients of processes add up, by sums and nothing else, to those of one process
with the whole batch. Alone, everything here hands back what it was given.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from capfilt.draws import seed_of
from capfilt.errors import CapfiltError
from capfilt.training import launch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_BUCKET_BYTES = 64 << 20
"""Gradients travel in pieces of about this size."""
_PATIENCE = timedelta(hours=2)
"""How long one process waits for another, which may be reading a large set or writing a checkpoint."""


@dataclass(frozen=True)
class World:
    """The processes of a training, and which of them this one is."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def mine(self, rows: int) -> slice:
        """Return which of a part's rows are this process's; `rows` is a multiple of the processes."""
        share = rows // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in their order, without a gradient; equally many of each."""
        return _gathered(rows.detach(), self.size)

    def gather_with_gradient(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes; what all of them do with mine comes back to me as gradient."""
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self.rank, self.size)
        return gathered

    def total(self, number: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, without a gradient."""
        if self.size == 1:
            return number.detach()
        total = number.detach().clone()
        distributed.all_reduce(total)
        return total

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its sum over the processes, in pieces of some size."""
        if self.size == 1:
            return
        gradients = [weights.grad for weights in model.parameters() if weights.grad is not None]
        bucket: list[Tensor] = []
        for number, gradient in enumerate(gradients, start=1):
            bucket.append(gradient)
            if number == len(gradients) or sum(g.nbytes for g in bucket) >= _BUCKET_BYTES:
                flat = _flatten_dense_tensors(bucket)
                distributed.all_reduce(flat)
                for old, new in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
                    old.copy_(new)
                bucket = []

    def share(self, model: nn.Module) -> None:
        """Have every process begin with the weights of the first."""
        if self.size == 1:
            return
        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, src=0)

    def agree(self, what: str, facts: str, device: torch.device) -> None:
        """Refuse to go on where the processes differ in something that all of them must share."""
        if self.size == 1:
            return
        mine = torch.tensor([seed_of(facts)], device=device)
        if len(set(self.gather(mine).tolist())) > 1:
            raise CapfiltError(
                f"the processes differ in {what}",
                fix="give all machines the same command and shards, and --out on a disk that they share",
            )

    def wait(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            distributed.barrier()


ALONE = World()


def local_device(device: str) -> str:
    """Return the device of this process: each process of a machine takes the GPU of its number."""
    number = os.environ.get("LOCAL_RANK")
    return f"cuda:{number}" if number is not None and device.startswith("cuda") else device


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that torchrun started for as long as the block lasts: NCCL on GPUs, else gloo."""
    world = World(launch.rank(), launch.launched())
    if world.size == 1:
        yield ALONE
        return
    if device.startswith("cuda"):
        if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise CapfiltError(
                f"this machine has {torch.cuda.device_count()} GPUs, and this process is to take {device}",
                fix="launch one process for each GPU of a machine: torchrun --nproc_per_node",
            )
        torch.cuda.set_device(torch.device(device))
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=_PATIENCE)
    yield world
    # After an error nothing is tidied up: that may wait for the others, and the process ends anyway.
    distributed.destroy_process_group()


def _gathered(rows: Tensor, size: int) -> Tensor:
    if size == 1:
        return rows
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(size)]
    distributed.all_gather(parts, rows)
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """All processes' rows; backwards, the sum of what all of them have to say of mine."""

    @staticmethod
    def forward(context: Any, rows: Tensor, rank: int, size: int) -> Tensor:
        context.mine = slice(rank * len(rows), (rank + 1) * len(rows))
        return _gathered(rows, size)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous()
        distributed.all_reduce(total)
        return total[context.mine], None, None
