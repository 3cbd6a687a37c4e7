"""Products with a matrix that oneDNN has laid out beforehand for the processor, on a CPU in fp32 or bf16.

A matrix product first copies one side into blocks that the processor likes. Where that side is used
again and again (weights; an image's states, for every token of its captions) the copy is made once.
"""

from __future__ import annotations

import torch
from torch import Tensor

_OPS = torch.ops.mkldnn
IS_THERE = bool(torch.backends.mkldnn.is_available()) and all(
    hasattr(_OPS, name)
    for name in ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
)
"""Whether this build of torch can; inductor uses the same operations."""


def can_lay_out(matrix: Tensor) -> bool:
    """Return whether a matrix can be laid out: oneDNN is there, and has products of its kind."""
    if not IS_THERE or matrix.device.type != "cpu":
        return False
    if matrix.dtype == torch.bfloat16:
        return bool(_OPS._is_mkldnn_bf16_supported())  # older processors have no such products
    return matrix.dtype == torch.float32


def laid_out(matrix: Tensor) -> Tensor:
    """Return a matrix (outputs, inputs) in blocks; only `product` can read it."""
    blocks: Tensor = _OPS._reorder_linear_weight(matrix.detach(), 512)  # the rows of a product, as a hint
    return blocks


def product(states: Tensor, blocks: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """Return states (..., inputs) times the matrix plus the bias, (..., outputs); through GELU if asked."""
    after, algorithm = ("gelu", "none") if gelu else ("none", "")
    found: Tensor = _OPS._linear_pointwise(states, blocks, bias, after, [], algorithm)
    return found
