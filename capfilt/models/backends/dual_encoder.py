"""Dual encoders of transformers (CLIP, SigLIP 1 and 2, and their like) as filters: `itc` is the cosine.

Pictures and texts are prepared by the folder's own processor and tokenizer. Of a processor's two forms the
one on Pillow is taken, where it has both: as CLIP's own pictures were resized, and the same with every
version of torchvision. The other form differs from it by about a hundredth of a standard deviation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from capfilt.errors import CapfiltError, RunFailedError
from capfilt.models.backends.folders import LOCAL, load, load_model, presentable
from capfilt.models.bundle_files import check_files
from capfilt.records import Scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from capfilt.models.cards import Card, Kind
    from capfilt.models.protocols import ImageBatch

TEXTS_AT_ONCE = 256
"""Texts that are read side by side."""
_SIGLIP = ("siglip", "siglip2")
"""Trained on lower-cased texts of one length, pads read like words: with less padding, or with a mask over
them, they give other features. Not every tokenizer that was released with them says so."""
_OTHERS = ("blip", "blip-2", "videoprism")
"""In transformers' list of dual encoders, and none: they score pairs in other ways, or see videos."""
_MEND = (
    "give a folder, or a hub id, of a CLIP- or SigLIP-like model of transformers, its processor and "
    "tokenizer included"
)


def recognises(config: Mapping[str, Any]) -> Kind | None:
    """Return "filter" for the config.json of a dual encoder, None for any other."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

    kind = config.get("model_type")
    known = kind in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES and kind not in _OTHERS
    return "filter" if known else None


def check(folder: Path, options: Mapping[str, Any]) -> None:
    """Refuse options: there is nothing to choose."""
    if options:
        raise CapfiltError(
            f"{folder}: a dual encoder has no option {next(iter(options))}", fix="leave it out"
        )


def filter(bundle: Path, card: Card, device: str, precision: str) -> DualEncoderFilter:
    """Return the filter of a bundle, whose files are looked at; raises as `DualEncoder` does."""
    check_files(bundle, card.files)
    return DualEncoderFilter(DualEncoder(bundle, device, precision), card.digest)


class DualEncoder:
    """Features of pictures and texts, of unit length."""

    def __init__(self, folder: Path, device: str, precision: str = "fp32", *, called: str = "") -> None:
        """Load a folder; CapfiltError, which says `called`, where it holds no dual encoder."""
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        called = called or str(folder)
        self._model = load_model(AutoModel, folder, device, precision, called=called, fix=_MEND)
        self.kind: str = self._model.config.model_type
        """Its type, as transformers calls it."""
        if not hasattr(self._model, "get_image_features") or not hasattr(self._model, "get_text_features"):
            raise CapfiltError(
                f"{called} is a {self.kind}, which has no features of pictures and texts", fix=_MEND
            )
        self._processor = load(
            lambda: AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL), called, _MEND
        )
        self._tokenizer = load(lambda: AutoTokenizer.from_pretrained(folder, **LOCAL), called, _MEND)
        self.name = (str(folder), precision, device)
        """What its numbers depend on, while the folder stays as it is."""
        self.passes = 0
        """Pictures encoded so far."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self._model.device
        return device

    @torch.inference_mode()
    def image_features(self, pictures: Sequence[Image]) -> Tensor:
        """Return features of unit length, fp32, shape (pictures, width); transparency shows white."""
        prepared = self._processor(images=[presentable(one) for one in pictures], return_tensors="pt")
        self.passes += len(pictures)
        return _unit(self._model.get_image_features(**prepared.to(self._model.device, self._model.dtype)))

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return features of unit length, fp32, shape (texts, width); a text that is too long is cut."""
        if not texts:
            raise ValueError("no texts")
        some = [texts[first : first + TEXTS_AT_ONCE] for first in range(0, len(texts), TEXTS_AT_ONCE)]
        return torch.cat([self._read(few) for few in some])

    def _read(self, texts: Sequence[str]) -> Tensor:
        is_siglip = self.kind in _SIGLIP
        prepared = self._tokenizer(
            [text.lower() for text in texts] if is_siglip else list(texts),
            padding="max_length" if is_siglip else True,
            truncation=True,
            max_length=self._most_tokens,
            return_attention_mask=not is_siglip,
            return_tensors="pt",
        ).to(self._model.device)
        names = ["input_ids"] if is_siglip else ["input_ids", "attention_mask"]
        return _unit(self._model.get_text_features(**{name: prepared[name] for name in names}))

    @property
    def _most_tokens(self) -> int:
        """Longest text, by the model's places and by what its tokenizer says, if it says anything."""
        places: int = self._model.config.get_text_config().max_position_embeddings
        longest: int = self._tokenizer.model_max_length
        return min(places, longest)


class DualEncoderFilter:
    """Scores pairs by the cosine of their features; see `protocols.Filter`."""

    has_itc = True
    """It gives a cosine."""
    has_itm = False
    """It gives no probability of a match."""

    def __init__(self, encoder: DualEncoder, digest: str) -> None:
        self.digest = digest
        self._encoder = encoder

    @property
    def encoder_passes(self) -> int:
        """Pictures encoded so far: once for all texts, and for all that ask of one batch."""
        return self._encoder.passes

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._encoder.device

    @torch.inference_mode()
    def score(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scores]]:
        """Return scores by picture and text; raises RunFailedError where they are no finite numbers."""
        if not any(texts):
            return [[] for _ in texts]
        pictures = self.image_features(batch)
        place = {text: n for n, text in enumerate(dict.fromkeys(text for mine in texts for text in mine))}
        read = self.text_features(list(place))
        owners = [number for number, mine in enumerate(texts) for _ in mine]
        wanted = [place[text] for mine in texts for text in mine]
        cosines = iter((pictures[owners] * read[wanted]).sum(-1).tolist())
        scores = [[Scores(itc=next(cosines)) for _ in mine] for mine in texts]
        if not all(score.itc is not None and math.isfinite(score.itc) for mine in scores for score in mine):
            raise RunFailedError(
                "the filter's scores are no finite numbers", fix="give a whole model, or try --precision fp32"
            )
        return scores

    def image_features(self, batch: ImageBatch) -> Tensor:
        """Return features of pictures, unit length, shape (pictures, width)."""
        name = ("dual_encoder", self.digest, *self._encoder.name)
        return batch.states(name, lambda: self._encoder.image_features(batch.pictures))

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return features of texts, unit length, shape (texts, width)."""
        return self._encoder.text_features(texts)


def _unit(output: Any) -> Tensor:
    # Before version 5 transformers returned the features themselves.
    features = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(features.float(), dim=-1)
