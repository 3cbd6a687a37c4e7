"""Checkpoints of the Hugging Face hub: a hub id as a folder here, its commit known.

Downloads are huggingface_hub's own: its cache, its token, its HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from capfilt.errors import CapfiltError
from capfilt.models.foreign_bundle import FILES, FOLDERS

_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
_FILES = [*FILES, *(f"{folder}/*" for folder in FOLDERS)]
"""What a transformers checkpoint says beside its weights."""
_OURS = ["capfilt.json", "calibration.json", "metrics.json", "captioner/*", "filter/*"]
_SAFE = ["*.safetensors", "model.safetensors.index.json"]
_PICKLED = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]
"""Read only where a repository has no safetensors."""


@dataclass(frozen=True)
class Found:
    """Files of a checkpoint or of a vocabulary on this machine."""

    path: Path
    """A folder, or a file such as a .pth."""
    source: str
    """As it was given, without its revision."""
    revision: str | None = None
    """Commit of the hub; None for what is no download."""


def find_checkpoint(source: str | Path, *, may_lack_owner: bool = False) -> Found:
    """Return a checkpoint's path; a hub id is downloaded unless it is in the cache.

    A path that exists is a path, whatever it looks like. A few old models, BERT among them, have a hub id
    without an owner (bert-base-uncased), which otherwise is taken for a path that was mistyped.
    """
    if Path(source).exists():
        return Found(Path(source), str(source))
    match = _ID.fullmatch(str(source))
    if match is None or not (may_lack_owner or "/" in match["name"]):
        raise CapfiltError(
            f"there is no {source}",
            fix="give a folder, a .pth, or a hub id such as NAME/MODEL or NAME/MODEL@REVISION",
        )
    found = _download(match, [*_FILES, *_OURS, *_SAFE], str(source))
    if not any(found.path.glob("**/*.safetensors")):
        found = _download(match, [*_FILES, *_PICKLED], str(source))
    return found


def find_vocabulary(source: str | Path) -> Found:
    """Return the folder of a vocabulary; a hub id is downloaded unless it is in the cache."""
    if Path(source).exists():
        return Found(Path(source), str(source))
    match = _ID.fullmatch(str(source))
    if match is None:
        raise CapfiltError(
            f"there is no vocabulary {source}",
            fix="give bundles.vocabulary a folder with a vocab.txt, or a hub id such as bert-base-uncased",
        )
    return _download(match, ["tokenizer.json", "tokenizer_config.json", "vocab.txt"], str(source))


def _download(match: re.Match[str], patterns: list[str], source: str) -> Found:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = match["name"], match["revision"]
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise CapfiltError(
            f"{name} is on the hub and not open to everybody",
            fix="accept its terms there and log in: hf auth login",
        ) from error
    except RepositoryNotFoundError as error:
        raise CapfiltError(
            f"there is no folder {source} here and no open model {name} on the hub",
            fix="look at the name again; for a model of your own, log in: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise CapfiltError(
            f"{name} has no revision {revision} on the hub", fix="give a commit, a branch or a tag of it"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CapfiltError(
            f"{source} is no folder here, it is not whole in the hub's cache, and the hub cannot be reached",
            fix="download it where there is a network (without HF_HUB_OFFLINE), or give a folder",
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CapfiltError(
            f"{source} cannot be had from the hub: {error}", fix="try again later, or give a folder"
        ) from error
    return Found(path, name, path.name)
