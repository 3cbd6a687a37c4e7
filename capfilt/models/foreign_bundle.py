"""Models that other software runs, as bundles: which backend runs a folder or a file, its card, its files.

A bundle of such a model is its own files, unchanged, beside the card: what built it still loads it. All of
them stand on the card by their digests, the weights too, since they may be many.
"""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.files import whole_folder
from capfilt.models.backends import backend
from capfilt.models.bundle_files import json_bytes
from capfilt.models.cards import CARD_FILE, Card, Conventions, Kind
from capfilt.models.checkpoints.configs import CONFIG_FILE, read_json
from capfilt.settings import Foreign

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILES: tuple[str, ...] = (
    CONFIG_FILE,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
"""What a folder of transformers holds beside its weights that captions or scores may depend on."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In this order, as transformers reads them; either may be spread over files that an index names."""
FOLDERS = ("qformer_tokenizer",)
"""Folders in such a folder that hold further ones of these files."""
_OF_FOLDERS = ("dual_encoder", "chat")
"""Backends that are asked whether they know a folder."""
_NEEDS: dict[Kind, str] = {"captioner": "write captions", "filter": "score pairs"}


def recognised(path: Path) -> str | None:
    """Return the backend that runs what lies at a path, None where none does.

    It may be a user's own .py, or a folder of transformers, whose config.json alone is looked at.
    """
    if path.is_file():
        return "python" if path.suffix == backend("python").SUFFIX else None
    if not (path / CONFIG_FILE).is_file():
        return None
    config = read_json(path / CONFIG_FILE)
    return next((name for name in _OF_FOLDERS if backend(name).recognises(config) is not None), None)


def roles(path: Path) -> tuple[Kind, ...]:
    """Return what a folder or a file that a backend runs can be: captioner, filter, or both.

    Raises CapfiltError for a file that is no Python.
    """
    name = recognised(path)
    if name is None:
        return ()
    if name == "python":
        found: tuple[Kind, ...] = backend(name).roles(path)
        return found
    return (backend(name).recognises(read_json(path / CONFIG_FILE)),)


def describe(path: Path, role: Kind, options: Mapping[str, Any] | None = None) -> Card:
    """Return the card of a folder or a file as a captioner or a filter; `options` are its backend's.

    No weights are loaded, but all files are read for their digests. Raises CapfiltError for what no backend
    runs, what cannot do what the role needs, and a folder that is not whole.
    """
    name, options = recognised(path), options or {}
    if name == "python":
        card: Card = backend(name).describe(path, role, options)
        return card
    config = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {}
    if name is None:
        kind = config.get("model_type")
        raise CapfiltError(
            f"{path} holds {f'a model of the type {kind}' if kind else 'no model'}, which nothing here runs",
            fix="give BLIP, BLIP-2 or InstructBLIP; as a filter CLIP, SigLIP or their like; as a captioner "
            "an image-text-to-text model of transformers, or the address of a server; or a .py of your own",
        )
    module = backend(name)
    if module.recognises(config) != role:
        raise CapfiltError(
            f"{path} is a {config['model_type']} and cannot {_NEEDS.get(role, 'be trained')}",
            fix=f"give it as the {module.recognises(config)}",
        )
    module.check(path, options)
    weights = {one: _sha256(path / one) for one in _weight_files(path)}
    others = {one: _sha256(path / one) for one in FILES if (path / one).is_file()}
    loaded = [digest for one, digest in weights.items() if not one.endswith(".json")]
    return Card(
        kind=role,
        objectives=("lm",) if role == "captioner" else ("itc",),
        weights=loaded[0] if len(loaded) == 1 else digest_of(weights),
        files=dict(sorted({**others, **weights}.items())),
        model=Foreign(backend=name, options=dict(options)),
        vocabulary=0,
        conventions=getattr(module, "CONVENTIONS", Conventions()),
    )


def described_by(folder: Path) -> list[str]:
    """Return the files beside the weights that captions or scores may depend on, by name, as far as there."""
    names = [*FILES, *(f"{inner}/{name}" for inner in FOLDERS for name in FILES)]
    return [name for name in names if (folder / name).is_file()]


def take(path: Path, card: Card, to: Path) -> None:
    """Write what lies at a path as a bundle, all or nothing: the files that its card names, and the card.

    Raises CapfiltError where one of them is no longer the file that was described.
    """
    with whole_folder(to) as folder:
        for name, digest in card.files.items():
            source = path if path.is_file() else path / name
            try:
                shutil.copyfile(source, folder / name)
            except OSError as error:
                raise CapfiltError(
                    f"{source} cannot be copied: {error.strerror}", fix="give the same command again"
                ) from error
            if _sha256(folder / name) != digest:
                raise CapfiltError(f"{source} changed while it was read", fix="give the same command again")
        (folder / CARD_FILE).write_bytes(json_bytes(card.model_dump(mode="json")))


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the files that hold a folder's weights, with their index if there is one."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            places = read_json(index).get("weight_map")
            names = set(places.values()) if isinstance(places, dict) else set()
            if not names or not all((folder / one).is_file() and "/" not in one for one in names):
                raise CapfiltError(
                    f"{index} does not name files of its folder", fix="copy the folder again, whole"
                )
            return [index.name, *sorted(names)]
    raise CapfiltError(
        f"{folder} holds no weights: neither {' nor '.join(_WEIGHTS)}", fix="copy the folder again, whole"
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
