"""What a model from scratch may start its parts from: a ViT's weights, and a BERT's.

BLIP itself starts so (section 4.1: the image encoder from a ViT pre-trained on ImageNet, the text transformer
from BERT base). Finding and loading are apart: what was found is plain and crosses processes, it has the
digests that a training is known by, and files that changed in between are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.models.checkpoints.bert import bert_settings, bert_vocabulary, start_text
from capfilt.models.checkpoints.hub import find_checkpoint
from capfilt.models.checkpoints.vit import check_heads, start_image_encoder, timm_weights_of
from capfilt.models.checkpoints.weight_files import WeightFiles, read_folder, read_pth

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.med import MED
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Bundles, Model

TIMM = "timm"
"""Stands for the weights that timm itself takes for a ViT's name."""


@dataclass(frozen=True)
class Part:
    """Weights on this machine that a part of a model starts from."""

    path: Path
    """A folder or a file; absolute."""
    source: str
    """As it was given, or the hub id that it stands for, without its revision."""
    revision: str | None
    """Commit of the hub; None for what is no download."""
    sha256: str
    """Of the file of weights; of several, of their digests by name."""

    def __str__(self) -> str:
        return self.source + (f", commit {self.revision[:12]}" if self.revision is not None else "")


@dataclass(frozen=True)
class Start:
    """What a model from scratch starts from; None for a part that is drawn."""

    vision: Part | None
    text: Part | None
    vocabulary: str | None
    """Digest of the vocabulary that comes with the text part."""

    def facts(self) -> dict[str, str]:
        """Return the digests of all that the started weights depend on beside the model's settings.

        The same files found elsewhere have the same facts.
        """
        parts = {"vision": self.vision, "text": self.text}
        facts = {name: part.sha256 for name, part in parts.items() if part is not None}
        return facts | ({"vocabulary": self.vocabulary} if self.vocabulary is not None else {})

    def described(self) -> str:
        """Return where the parts come from, in words."""
        parts = {"image encoder": self.vision, "text": self.text}
        return "; ".join(f"{name} from {part}" for name, part in parts.items() if part is not None)


def find_start(bundles: Bundles, model: Model) -> Start | None:
    """Find what `bundles.vision` and `bundles.text` name, and read it; None where neither names anything.

    Each is a path or a hub id, which is downloaded unless it is in the cache; a ViT may also be `timm`, the
    weights that timm takes for `model.vision.timm`. Raises CapfiltError for what is not there, is no
    BERT, or holds damaged files, by the file's name.
    """
    if bundles.vision is None and bundles.text is None:
        return None
    vision = text = vocabulary = None
    if bundles.vision is not None:
        is_name = bundles.vision == TIMM
        vision = _found(timm_weights_of(model.vision.timm) if is_name else bundles.vision)
    if bundles.text is not None:
        text = _found(bundles.text)
        if not text.path.is_dir():
            raise CapfiltError(
                f"{text.path} is a file, and a BERT is a folder: its weights, config.json and vocabulary",
                fix="give bundles.text the folder, or a hub id such as bert-base-uncased",
            )
        bert_settings(text.path, model.text)
        vocabulary = bert_vocabulary(text.path).digest
    return Start(vision, text, vocabulary)


def settle(start: Start | None, model: Model) -> Model:
    """Return how the model is built: its text part of the sizes of the BERT that it starts from."""
    if start is None or start.text is None:
        return model
    return changed(model, {"text": bert_settings(start.text.path, model.text).model_dump()})


def start_vocabulary(start: Start | None) -> Vocabulary | None:
    """Return the vocabulary that comes with the text part; None where one is to be trained."""
    if start is None or start.text is None:
        return None
    vocabulary = bert_vocabulary(start.text.path)
    if vocabulary.digest != start.vocabulary:
        raise _has_changed(start.text)
    return vocabulary


def load_start(start: Start, med: MED, model: Model) -> dict[str, str]:
    """Give a fresh model its start; returns what was left out, a pattern of names -> what it is.

    `med` was built with `model`, which is what `settle` returns, and with `start_vocabulary`; its numbers
    were drawn under the training's seed, and parts that the start lacks keep them: cross-attention, the
    heads, the rows of [DEC] and [ENC]. Raises CapfiltError where the image encoder is built otherwise than
    the ViT, and for files that changed since they were found.
    """
    if settle(start, model) != model:
        raise ValueError("the model is not built as its start asks: see `settle`")
    left: dict[str, str] = {}
    if start.vision is not None:
        files, where = _again(start.vision), start.vision.source
        left |= start_image_encoder(med.image, files.tensors, where)
        check_heads(med.image, start.vision.path, where)
    if start.text is not None:
        left |= start_text(med, _again(start.text).tensors, start.text.source)
    return left


def _found(source: str) -> Part:
    found = find_checkpoint(source, may_lack_owner=True)
    path = found.path.absolute()
    return Part(path, found.source, found.revision, _read(path).sha256)


def _read(path: Path) -> WeightFiles:
    return read_folder(path) if path.is_dir() else read_pth(path)


def _again(part: Part) -> WeightFiles:
    files = _read(part.path)
    if files.sha256 != part.sha256:
        raise _has_changed(part)
    return files


def _has_changed(part: Part) -> CapfiltError:
    return CapfiltError(
        f"{part.path} changed while it was read", fix="give the same command again, with files that stay"
    )
