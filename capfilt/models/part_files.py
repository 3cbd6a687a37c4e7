"""Files of models that are taken into a Q-Former: which of them are read, and by what they are known.

A README beside the weights, or weights of another format, make no other model.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.models.cards import CARD_FILE, identity, read_card
from capfilt.models.checkpoints.configs import CONFIG_FILE, read_json
from capfilt.models.language_vocabulary import LANGUAGE_FILES

if TYPE_CHECKING:
    from pathlib import Path

_DESCRIBES = (
    CONFIG_FILE,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    *LANGUAGE_FILES,
)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In this order, as they are read."""


def folder_digest(path: Path) -> str:
    """Return the digest of a model: of a bundle what its card says, else of the bytes of what is read.

    Raises CapfiltError where there is nothing.
    """
    if not path.exists():
        raise CapfiltError(
            f"there is no {path}, and a model that is still to be trained takes its weights from there",
            fix="put it back, or give it from where it is now",
        )
    if (path / CARD_FILE).exists():
        return identity(read_card(path))
    if path.is_file():
        return _sha256(path)
    names = [name for name in _DESCRIBES if (path / name).is_file()] + _weights(path)
    return digest_of({name: _sha256(path / name) for name in names})


def read_by_transformers(kind: Any, path: Path, config: Any) -> tuple[Any, dict[str, Any]]:
    """Return the model that a class of transformers reads from a folder, in fp32, and its loading report.

    Raises CapfiltError for a folder that it cannot read.
    """
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options = {"config": config} if config is not None else {}
    try:
        model, loading = kind.from_pretrained(
            path, local_files_only=True, output_loading_info=True, dtype=torch.float32, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise CapfiltError(f"{path} cannot be loaded: {first}", fix="copy the folder again, whole") from error
    return model, loading


def _weights(folder: Path) -> list[str]:
    """Return the files that hold a folder's weights, with their index if there is one."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            places = read_json(index).get("weight_map")
            parts = sorted(set(places.values())) if isinstance(places, dict) else []
            return [index.name, *(one for one in parts if isinstance(one, str) and (folder / one).is_file())]
    return []


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
