"""The momentum encoder of ITC and the queues of its features (BLIP, section 3.2; He et al., MoCo, 2020).

A copy of image encoder, unimodal text encoder and projections that follows the trained one slowly. Its
features of past batches stand in two queues as further things to be told apart, and its similarities are
soft labels. The copy is fp32 whatever the training computes in: its steps are too small for less.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from capfilt.models.learner import Learner
    from capfilt.models.med import MED

NOBODY = -1
"""Id of an image or caption that a place in the queue does not hold yet; equal to none there is."""


class Momentum:
    """What follows a model in training, and what it saw of past batches."""

    def __init__(self, model: MED, *, keep: float, queue: int) -> None:
        self.keep = keep
        """What the copy keeps of itself at a step."""
        self.encoder = _unimodal(model)
        self.queue = Queue(queue, model.image_projection.out_features, model.device)

    @classmethod
    def of(cls, model: Learner, *, keep: float, queue: int) -> Momentum:
        """Return what follows a model; only MED has an encoder of texts alone that could be copied."""
        from capfilt.models.med import MED

        if not isinstance(model, MED):
            raise CapfiltError(
                "a momentum encoder follows BLIP's model, and a Q-Former is trained without",
                fix="leave momentum at 0 in every phase",
            )
        return cls(model, keep=keep, queue=queue)

    def follow(self, model: Learner) -> None:
        """Move a step towards the model, as it is before its own next step."""
        # An image encoder that is kept as it came has its batch norms' statistics kept in the copy too.
        self.encoder.image.train(model.get_submodule("image").training)
        theirs = dict(model.named_parameters())
        mine = list(self.encoder.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(
                [weights for _, weights in mine], [theirs[name].detach() for name, _ in mine], 1 - self.keep
            )

    @torch.no_grad()
    def features(self, pixels: Tensor, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return features of images and texts, each (rows, embed) and of unit length."""
        states = self.encoder.encode_image(pixels)
        return self.encoder.image_features(states), self.encoder.text_features(ids, real)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed training needs."""
        return {"encoder": self.encoder.state_dict(), "queue": self.queue.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.encoder.load_state_dict(state["encoder"])
        self.queue.load_state_dict(state["queue"])


class Queue(nn.Module):
    """Momentum features of the newest pairs, with what their images and captions are.

    Places that were never filled take no part. Batches need not divide the length: the writing place wraps,
    and of a batch longer than the queue its end stays.
    """

    images: Tensor
    texts: Tensor
    image_ids: Tensor
    caption_ids: Tensor

    def __init__(self, length: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.length = length
        for name in ("images", "texts"):
            self.register_buffer(name, torch.zeros(length, width, device=device))
        for name in ("image_ids", "caption_ids"):
            self.register_buffer(name, torch.full((length,), NOBODY, dtype=torch.int64, device=device))
        self.seen = 0
        """Pairs that it took in. It gives tensors their shapes, and asking a GPU would wait for it."""

    @property
    def filled(self) -> int:
        """How many pairs it holds."""
        return min(self.length, self.seen)

    def add(self, images: Tensor, texts: Tensor, image_ids: Tensor, caption_ids: Tensor) -> None:
        """Take in a batch, the oldest pairs making place: features (rows, embed) and ids (rows,)."""
        rows = len(images)
        first = max(0, rows - self.length)
        places = torch.arange(self.seen + first, self.seen + rows, device=images.device)
        if self.length:
            places = places % self.length
            for mine, new in (
                (self.images, images),
                (self.texts, texts),
                (self.image_ids, image_ids),
                (self.caption_ids, caption_ids),
            ):
                mine[places] = new[first:].to(mine.dtype)
        self.seen += rows

    def get_extra_state(self) -> int:
        """Return what a checkpoint holds beside the buffers."""
        return self.seen

    def set_extra_state(self, state: int) -> None:
        """Take up what `get_extra_state` gave."""
        self.seen = state


def _unimodal(model: MED) -> MED:
    """Return a copy of what gives ITC its features, without gradients; it drops out as the model does."""
    others = {
        name: module
        for name, module in model.named_modules()
        if name.endswith((".attention.decoder", ".cross")) or name in ("itm_head", "word_head")
    }
    # What is not wanted is not copied: it is known to the copying as already done.
    encoder = copy.deepcopy(model, {id(module): nn.Identity() for module in others.values()})
    encoder.checkpoint_gradients(False)
    return encoder.requires_grad_(False).train()
