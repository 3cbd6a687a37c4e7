"""A bundle in memory and as files, whichever kind of model it holds; see `cards` for the files.

Every file is made before any is written, so that the card can name each by its digest; where a language model
may be in it, tensor by tensor (`tensor_files`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from capfilt.canonical import canonical_json
from capfilt.errors import CapfiltError
from capfilt.files import flush_folder, whole_folder
from capfilt.models.cards import (
    CALIBRATION_FILE,
    CARD_FILE,
    METRICS_FILE,
    OWN_WEIGHTS_FILE,
    WEIGHTS_FILE,
    Card,
    read_card,
)
from capfilt.models.checkpoints.names import check_fit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from capfilt.models.tensor_files import TensorFile
    from capfilt.models.vocabulary import Vocabulary

M = TypeVar("M")
V = TypeVar("V")


@dataclass(frozen=True)
class BundleOf(Generic[M, V]):
    """A bundle in memory: a model, and the vocabulary of what it reads or writes."""

    path: Path
    card: Card
    model: M
    vocabulary: V
    calibration: dict[str, Any] | None = None
    """What calibration.json holds; None for a filter that nobody calibrated."""
    reader: Vocabulary | None = None
    """What a Q-Former reads instructions with, where the vocabulary is its language model's."""


@dataclass(frozen=True)
class PackedOf(Generic[M, V]):
    """A bundle that is not written yet: its card needs the weights, its calibration needs the card."""

    bundle: BundleOf[M, V]
    files: Mapping[str, bytes | TensorFile]
    """Every file that the card names."""

    def write(
        self, calibration: dict[str, Any] | None = None, metrics: list[dict[str, Any]] | None = None
    ) -> None:
        """Write the bundle, all or nothing, with a filter's calibration and the training's rows."""
        files: dict[str, bytes | TensorFile] = {
            **self.files,
            CARD_FILE: json_bytes(self.bundle.card.model_dump(mode="json")),
        }
        if calibration is not None:
            files[CALIBRATION_FILE] = json_bytes(calibration)
        if metrics is not None:
            files[METRICS_FILE] = json_bytes(metrics)
        with whole_folder(self.bundle.path) as folder:
            for name, data in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                if isinstance(data, bytes):
                    (folder / name).write_bytes(data)
                else:
                    data.write(folder / name, self.bundle.card.files.get(name, self.bundle.card.weights))
            for part in folder.glob("*/"):
                flush_folder(part)


def sha256(data: bytes) -> str:
    """Return the digest of a file's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_of_file(file: bytes | TensorFile) -> str:
    """Return the digest of a file that is not written yet."""
    return sha256(file) if isinstance(file, bytes) else file.sha256()


def json_bytes(value: Any) -> bytes:
    """Return JSON as capfilt writes it, the same bytes for equal values."""
    return (canonical_json(value) + "\n").encode("utf-8")


def pretty_json(value: Any) -> bytes:
    """Return JSON as transformers lays it out."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode("utf-8")


COPY_AGAIN = "copy the bundle again, whole; a bundle is never changed in place"


def check_files(path: Path, digests: Mapping[str, str]) -> None:
    """Refuse a bundle one of whose files is not the one that its card describes."""
    for name, digest in digests.items():
        try:
            with (path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CapfiltError(
                f"{path / name} cannot be read: {error.strerror}", fix="copy the bundle again, whole"
            ) from error
        if found != digest:
            raise CapfiltError(
                f"{path / name} is not the file that {CARD_FILE} describes: its digest differs",
                fix=COPY_AGAIN,
            )


def read_tensors(file: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a file of tensors; it must have the expected ones, by name and shape, and no others."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CapfiltError(f"{file} cannot be read: {error}", fix="copy the bundle again, whole") from error
    check_fit(expected, tensors, str(file), "give a bundle as capfilt wrote it")
    return tensors


def copy_bundle(bundle: Path, to: Path) -> None:
    """Copy a bundle of ours, all or nothing: its files and no others."""
    with whole_folder(to) as folder:
        for name in _files_of(bundle):
            (folder / name).parent.mkdir(exist_ok=True)
            try:
                shutil.copyfile(bundle / name, folder / name)
            except FileNotFoundError as error:
                raise CapfiltError(
                    f"{bundle / name} is missing, and the bundle's card names it",
                    fix="copy the bundle again, whole",
                ) from error
        for part in folder.glob("*/"):
            flush_folder(part)


def _files_of(bundle: Path) -> list[str]:
    card = read_card(bundle)
    names = [CARD_FILE, *card.files]
    names += [name for name in (CALIBRATION_FILE, METRICS_FILE) if (bundle / name).exists()]
    halves = [Path(name).parent.name for name in card.files if name.endswith(f"/{CARD_FILE}")]
    for half in halves:
        names += [f"{half}/{name}" for name in _files_of(bundle / half) if name != CARD_FILE]
    names += [name for name in (WEIGHTS_FILE, OWN_WEIGHTS_FILE) if (bundle / name).exists()]
    return list(dict.fromkeys(names))
