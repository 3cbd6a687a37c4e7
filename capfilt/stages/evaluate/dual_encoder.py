"""A dual encoder of transformers (CLIP, SigLIP and their like) as a baseline: one cosine for each pair.

It is what datasets are filtered with today (DataComp keeps the best share by CLIP), and what ITC is without
the rest of the model. Pictures and texts are prepared by the model's own processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.data.images import flattened
from capfilt.errors import CapfiltError
from capfilt.models.checkpoints.hub import find_checkpoint
from capfilt.models.checkpoints.names import few
from capfilt.stages.given import content_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Features = NDArray[np.float32]

_PADDED_TO_THE_FULL = ("siglip", "siglip2")
"""Models that were trained on texts of one length, pads read like words."""


class DualEncoder:
    """Features of pictures and texts by a model of transformers, in fp32."""

    def __init__(self, source: str, device: str) -> None:
        """Load a folder, or a hub id; CapfiltError where it is none, or no dual encoder."""
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        found = find_checkpoint(source)
        try:
            model, loading = AutoModel.from_pretrained(
                found.path, local_files_only=True, output_loading_info=True
            )
            self._processor: Any = AutoImageProcessor.from_pretrained(found.path, local_files_only=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(found.path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CapfiltError(
                f"--clip {source} cannot be loaded: {_first_line(error)}", fix=_MEND
            ) from error
        kind = model.config.model_type
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise CapfiltError(
                f"--clip {source} is a {kind}, which has no features of pictures and texts", fix=_MEND
            )
        # transformers draws what is missing at random: the figures would look like those of a poor model.
        if missing := sorted(loading["missing_keys"]):
            raise CapfiltError(f"--clip {source} is a {kind} without {few(missing)}", fix=_MEND)
        self._model: Any = model.float()
        self._model.eval().requires_grad_(False).to(device)
        self._device = device
        config = self._model.config
        self._padding = "max_length" if kind in _PADDED_TO_THE_FULL else True
        self._most_tokens = config.text_config.max_position_embeddings
        self.facts = {
            "source": source,
            "revision": found.revision,
            "content": content_digest(found.path),
            "kind": kind,
        }
        """What it is, for the record."""

    def image_features(self, pictures: Sequence[Image]) -> Features:
        """Return features of unit length, shape (pictures, width)."""
        import torch

        prepared = self._processor(images=[flattened(one) for one in pictures], return_tensors="pt")
        with torch.inference_mode():
            return _unit(self._model.get_image_features(**prepared.to(self._device)))

    def text_features(self, texts: Sequence[str]) -> Features:
        """Return features of unit length, shape (texts, width); a text that is too long is cut."""
        import torch

        prepared = self._tokenizer(
            list(texts),
            padding=self._padding,
            truncation=True,
            max_length=self._most_tokens,
            return_tensors="pt",
        ).to(self._device)
        given = {name: prepared[name] for name in ("input_ids", "attention_mask") if name in prepared}
        with torch.inference_mode():
            return _unit(self._model.get_text_features(**given))


_MEND = (
    "give a folder, or a hub id, of a CLIP- or SigLIP-like model of transformers, its processor and "
    "tokenizer included"
)


def _unit(output: Any) -> Features:
    import torch

    # Before version 5 transformers returned the features themselves.
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    found: Features = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
