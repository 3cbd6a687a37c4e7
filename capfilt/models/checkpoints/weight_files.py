"""Files of weights that others wrote: safetensors in one file or several, pytorch_model.bin, .pth.

A pickle is read with torch's `weights_only`, which builds tensors and plain values and runs nothing.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.models.checkpoints.configs import read_json
from capfilt.models.checkpoints.names import few

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_KINDS = ("model.safetensors", "pytorch_model.bin")
"""In this order: where both are there, they are the same weights."""
_STATES = ("model", "state_dict")
"""Where a training keeps the weights beside its optimizer."""


@dataclass(frozen=True)
class WeightFiles:
    """Weights, and the digest of the file or files they came from."""

    tensors: dict[str, Tensor]
    sha256: str


def read_folder(folder: Path) -> WeightFiles:
    """Read the weights of a transformers folder."""
    for name in _KINDS:
        if (folder / name).is_file():
            return WeightFiles(_tensors(folder / name), _sha256(folder / name))
        if (folder / f"{name}.index.json").is_file():
            return _read_parts(folder, f"{name}.index.json")
    raise CapfiltError(
        f"{folder} holds no weights: neither {' nor '.join(_KINDS)}", fix="copy the folder again, whole"
    )


def read_pth(file: Path) -> WeightFiles:
    """Read a .pth of BLIP's released code or of LAVIS: weights, or a training that holds them."""
    return WeightFiles(_tensors(file), _sha256(file))


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a file's weights, without reading their numbers where they lie apart."""
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in _named(_pickled(file), file).items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CapfiltError(f"{file} cannot be read: {error}", fix="copy the file again, whole") from error


def _read_parts(folder: Path, index: str) -> WeightFiles:
    """Read weights that an index spreads over several files of the same folder."""
    places = read_json(folder / index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(place, str) and "/" not in place and "\\" not in place for place in places.values()
    ):
        raise CapfiltError(
            f"{folder / index} does not name files of its folder", fix="copy the folder again, whole"
        )
    names = sorted(set(places.values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= _tensors(folder / name)
    if set(tensors) != set(places):
        raise CapfiltError(
            f"{folder}: {index} and the files it names hold different weights",
            fix="copy the folder again, whole",
        )
    return WeightFiles(tensors, digest_of({name: _sha256(folder / name) for name in names}))


def _tensors(file: Path) -> dict[str, Tensor]:
    state = _named(_safe(file) if file.suffix == ".safetensors" else _pickled(file), file)
    broken = [
        name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise CapfiltError(
            f"{file} holds numbers that are not finite: {few(broken)}",
            fix="give a checkpoint of a training that did not diverge",
        )
    return state


def _named(state: Any, file: Path) -> dict[str, Tensor]:
    """Return the weights that a file holds, alone or beside what a training keeps with them."""
    for name in _STATES:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not state:
        raise CapfiltError(f"{file} holds no weights", fix="give a checkpoint of BLIP or LAVIS")
    odd = [
        name
        for name, value in state.items()
        if not isinstance(name, str) or not isinstance(value, torch.Tensor)
    ]
    if odd:
        raise CapfiltError(
            f"{file} holds {odd[0]!r} where weights are expected",
            fix="give a checkpoint whose weights stand alone or under `model`",
        )
    return state


def _safe(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CapfiltError(f"{file} cannot be read: {error}", fix="copy the file again, whole") from error


def _pickled(file: Path) -> Any:
    try:
        # A file of today's format stays on the disk until a number is asked for.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise CapfiltError(
            f"{file} is damaged, or holds more than weights and plain values, which would have to be run "
            "as code to be read",
            fix="copy it again; or, where you trust it: torch.save({'model': torch.load(FILE, "
            "weights_only=False)['model']}, 'weights.pth')",
        ) from error
    # torch raises what it meets in a broken archive.
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CapfiltError(
            f"{file} cannot be read: {str(error).splitlines()[0] if str(error) else 'it ends too early'}",
            fix="copy the file again, whole",
        ) from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
