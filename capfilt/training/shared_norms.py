"""Batch norms over the rows of all processes: what one process has is not the batch.

torch's SyncBatchNorm is for GPUs alone; this is the same in plain sums, so that it is tested where there are
none. Only the convolutional stem has batch norms, and they are small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from capfilt.training.parallel import World


def share_norms(model: nn.Module, world: World) -> None:
    """Have every batch norm of a model take its statistics over all processes; in place, names kept."""
    if world.size == 1:
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _Shared.of(child, world.size))
            elif isinstance(child, nn.modules.batchnorm._BatchNorm):
                raise CapfiltError(
                    f"the image encoder has a {type(child).__name__}, and each process would have its own",
                    fix="train it in one process, or take a ViT without batch norms",
                )


class _Shared(nn.BatchNorm2d):
    """A batch norm whose batch is that of all processes."""

    processes: int

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, processes: int) -> _Shared:
        shared = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum).to(norm.weight)
        shared.load_state_dict(norm.state_dict())
        shared.processes = processes
        return shared.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        numbers = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = numbers.numel() // numbers.shape[1] * self.processes
        mean = _total(numbers.sum((0, 2, 3))) / count
        centred = numbers - mean[:, None, None]
        # The mean first and then the squares around it: their difference would lose what is small.
        variance = _total(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            share = self.momentum or 0.0
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((variance * count / max(1, count - 1)).to(self.running_var.dtype), share)
            self.num_batches_tracked += 1
        normed = centred * (variance + self.eps).rsqrt()[:, None, None]
        return (normed * self.weight[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def _total(mine: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(mine)
    return total


class _Sum(torch.autograd.Function):
    """The sum over processes; backwards, the sum of what all of them have to say of it."""

    @staticmethod
    def forward(_context: Any, mine: Tensor) -> Tensor:
        total = mine.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total
