"""A safetensors file that is not written yet, its bytes made tensor by tensor.

A card names the weights by the digest of their file, which therefore is known before anything is written. To
hold the file in memory for that would be a second copy of a language model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from capfilt.errors import RunFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""What the format calls numbers, in the order in which it has them: wide ones first, as they are aligned."""
_ALIGNED = 8
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class TensorFile:
    """Tensors as the bytes of a safetensors file: those that safetensors itself writes."""

    tensors: Mapping[str, Tensor]
    """Contiguous, on the CPU. What is written is what they are then: they must not change in between."""
    remarks: Mapping[str, str] = field(default_factory=dict)

    def sha256(self) -> str:
        """Return the digest of the file."""
        digest = hashlib.sha256()
        for part in self._parts():
            digest.update(part)
        return digest.hexdigest()

    def write(self, path: Path, expected: str) -> None:
        """Write the file; RunFailedError where it is no longer the one of the `expected` digest."""
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for part in self._parts():
                digest.update(part)
                file.write(part)
        if digest.hexdigest() != expected:
            raise RunFailedError(
                f"the weights of {path} changed between their digest and their file", fix="report it"
            )

    def _parts(self) -> Iterator[bytes | memoryview]:
        order = list(_NAMES)
        names = sorted(self.tensors, key=lambda name: (order.index(self.tensors[name].dtype), name))
        yield self._header(names)
        for name in names:
            if self.tensors[name].numel():
                yield self.tensors[name].reshape(-1).view(torch.uint8).numpy().data

    def _header(self, names: list[str]) -> bytes:
        """Return the length of what follows, and where which tensor stands."""
        header: dict[str, object] = {"__metadata__": dict(self.remarks)} if self.remarks else {}
        begin = 0
        for name in names:
            tensor = self.tensors[name]
            end = begin + tensor.nbytes
            place = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
            header[name], begin = place, end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNED)
        return len(text).to_bytes(8, "little") + text


def in_halves(matrix: Tensor) -> Tensor:
    """Return a matrix in half precision where that holds every one of its numbers, else as it is.

    So a language model that was published in halves takes no more room than it did, and reads the same.
    """
    if matrix.dtype != torch.float32 or matrix.ndim < 2:
        return matrix
    for dtype in _HALVES:
        halved = matrix.to(dtype)
        if torch.equal(halved.to(matrix.dtype), matrix):
            return halved
    return matrix
