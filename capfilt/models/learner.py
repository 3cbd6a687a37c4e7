"""What a training asks of any model, and what the three objectives ask of one that has them.

MED and the Q-Former answer the same calls, so that one implementation of ITC, ITM and LM, with hard
negatives, several processes and held-out pairs, trains both.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from capfilt.models.cards import Objective
    from capfilt.models.memory import Seen
    from capfilt.models.vocabulary import First


class Learner(nn.Module):
    """A model that can be trained."""

    objectives: tuple[Objective, ...]
    """What it is trained for, which says which parts it has."""
    temperature: nn.Parameter
    """Of ITC, where the model has it."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @abstractmethod
    def checkpoint_gradients(self, on: bool) -> None:
        """Have the backward pass compute states again instead of keeping them, or not."""

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return image states, (images, states, width), of pixels (images, 3, side, side)."""

    def hold_image_encoder(self) -> None:
        """Keep the image encoder as it came: no gradients, and its batch norms' statistics stay."""

    def clamp_temperature(self) -> None:
        """Hold the learned temperature within its bounds; called after every step."""


class PairLearner(Learner):
    """A model of pairs: its parts for ITC, ITM and LM (BLIP, section 3.2; BLIP-2, section 3.2)."""

    match_token: First = "enc"
    """First token of a text whose match is judged."""

    @abstractmethod
    def memory(self, image_states: Tensor) -> Sequence[Seen]:
        """Return what texts look at of image states: of its own kind, which its other calls take."""

    @abstractmethod
    def image_features(self, image_states: Tensor) -> Tensor:
        """Return ITC features of pictures, (images, ..., embed), unit length in the last dimension."""

    @abstractmethod
    def text_features(self, ids: Tensor, real: Tensor) -> Tensor:
        """Return ITC features of texts that begin with [CLS], (rows, embed), unit length."""

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return cosines of image features with text features, (images, texts)."""
        return images @ texts.T

    @abstractmethod
    def itm_logits(self, ids: Tensor, real: Tensor, memory: Sequence[Any]) -> Tensor:
        """Return (rows, 2) logits, column 1 for a match, of texts that begin with `match_token`."""

    @abstractmethod
    def lm_logits(self, ids: Tensor, memory: Sequence[Any]) -> Tensor:
        """Return logits of each next token, (rows, tokens, vocabulary), of texts that begin with [DEC]."""
