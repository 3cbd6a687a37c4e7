"""The image encoder of BLIP-2, which is never trained, and the norm after it, which is.

It may be the family's own ViT, a ViT of timm or one of transformers. In the family's own every weight has
the name that transformers gives it, so that a bundle loads there as it stands.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from capfilt.data.images import normalise
from capfilt.errors import CapfiltError
from capfilt.models.vision import ImageEncoder

if TYPE_CHECKING:
    from capfilt.models.cards import Card
    from capfilt.models.protocols import ImageBatch
    from capfilt.settings import Blip2

_A_VIT = "give bundles.vision the folder of a ViT, e.g. one of CLIP, SigLIP or DINOv2"
STATES_NORM_EPSILON = 1e-5
"""Of the norm after the image encoder, whatever the encoder's own is (LAVIS, `ln_vision`)."""


class FrozenImageEncoder(nn.Module):
    """Pixels to normed image states, (images, states, width).

    `passes` counts the images that went through, so that work done twice shows.
    """

    def __init__(self, model: Blip2) -> None:
        """Build it without weights of use; CapfiltError where transformers or timm cannot."""
        super().__init__()
        self._plain = False
        self._options: dict[str, Any] = {}
        self.embeddings: nn.Module | None = None
        if model.vision_config:
            self.encoder, self.width = _of_transformers(model.vision_config)
            self._options = _resizing(self.encoder, model.images.size_px)
        elif model.vision.timm is not None or model.vision.stem != "patch":
            ours = ImageEncoder(model.vision, model.images)
            self.encoder, self.width = ours, ours.width
        else:
            self._plain = True
            self.embeddings, self.encoder, self.width = _of_the_family(model)
        self.post_layernorm = nn.LayerNorm(self.width, eps=STATES_NORM_EPSILON)
        self.passes = 0
        for part in self._frozen():
            part.requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers that the frozen part computes in."""
        return next(self.encoder.parameters()).dtype

    def train(self, mode: bool = True) -> Self:
        """Set the norm's mode; the rest is frozen, its batch norms and dropouts included."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def convert(self, dtype: torch.dtype) -> Self:
        """Have the frozen part compute in other numbers; the norm stays as it is, as the Q-Former does."""
        for part in self._frozen():
            part.to(dtype)
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Return normed image states, (images, states, width), in the numbers of the norm.

        `pixels` are normalised, (images, 3, side, side). A gradient reaches the norm and goes no further.
        """
        return self.normed(self.encoded(pixels))

    def encoded(self, pixels: Tensor) -> Tensor:
        """Return image states before the norm: the same for all models with this encoder."""
        self.passes += len(pixels)
        with torch.no_grad():
            return self._encoded(pixels.to(self.dtype))

    def normed(self, states: Tensor) -> Tensor:
        """Return what `encoded` gave through the norm, in its numbers."""
        found: Tensor = self.post_layernorm(states.to(self.post_layernorm.weight.dtype))
        return found

    def _frozen(self) -> list[nn.Module]:
        return [part for part in (self.embeddings, self.encoder) if part is not None]

    def _encoded(self, pixels: Tensor) -> Tensor:
        encoder: Any = self.encoder
        if isinstance(encoder, ImageEncoder):
            return encoder(pixels)  # type: ignore[no-any-return]
        if self.embeddings is not None:
            states: Tensor = encoder(inputs_embeds=self.embeddings(pixels)).last_hidden_state
            return states
        states = encoder(pixel_values=pixels, **self._options).last_hidden_state
        if states.ndim != 3 or states.shape[-1] != self.width:
            raise CapfiltError(
                f"the image encoder {encoder.config.model_type} gives {tuple(states.shape[1:])} for a "
                f"picture and not a sequence of states of width {self.width}",
                fix="name a ViT, e.g. one of CLIP, SigLIP or DINOv2",
            )
        return states


def frozen_states(
    batch: ImageBatch, encoder: FrozenImageEncoder, card: Card, precision: str, device: torch.device
) -> Tensor:
    """Return a batch's image states before the norm, (pictures, states, width).

    They are computed once for all models with an equal encoder: a captioner and a filter that were trained
    apart differ in the norm, and not before it.
    """
    images = card.blip2.images

    def encode() -> Tensor:
        pixels = torch.from_numpy(batch.squares(images))
        if device.type == "cuda":
            pixels = pixels.pin_memory().to(device, non_blocking=True)
        return encoder.encoded(normalise(pixels, images))

    return batch.states(("frozen", card.image_encoder or card.weights, precision, str(device)), encode)


def _of_the_family(model: Blip2) -> tuple[nn.Module, nn.Module, int]:
    """Return patch embeddings and layers of the ViT that the family has, and its width."""
    from transformers import Blip2VisionModel

    vit: Any = Blip2VisionModel(vision_config(model))
    return vit.embeddings, vit.encoder, model.vision.width


def vision_config(model: Blip2) -> Any:
    """Return transformers' configuration of the family's own ViT."""
    from transformers import Blip2VisionConfig

    vision = model.vision
    return Blip2VisionConfig(
        hidden_size=vision.width,
        intermediate_size=int(vision.width * vision.mlp_ratio),
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        image_size=model.images.size_px,
        patch_size=vision.patch_px,
        layer_norm_eps=vision.norm_epsilon,
        initializer_range=0.02,  # transformers' default of 1e-10 gives all pictures the same states
        attn_implementation="sdpa",
    )


def _of_transformers(values: dict[str, Any]) -> tuple[nn.Module, int]:
    """Return an image encoder that transformers builds, and its width."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModel

    # A dual encoder's configuration has one for its image encoder.
    values = values.get("vision_config", values)
    values = {name: value for name, value in values.items() if name != "transformers_version"}
    kind = values.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind, **values)
        encoder: Any = AutoModel.from_config(config)
        width = int(config.hidden_size)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise CapfiltError(
            f"transformers cannot build the image encoder of model.vision_config, a {kind}: "
            + str(error).partition("\n")[0],
            fix=_A_VIT,
        ) from error
    if encoder.main_input_name != "pixel_values":
        raise CapfiltError(f"model.vision_config is of the type {kind}, which sees no pictures", fix=_A_VIT)
    if "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters:
        encoder.pooler = None  # it stands behind the states, and many files have none
    return encoder, width


def _resizing(encoder: Any, side: int) -> dict[str, Any]:
    """Return what has an encoder take pictures of another side than it was made for."""
    made_for = getattr(encoder.config, "image_size", side)
    takes = inspect.signature(encoder.forward).parameters
    return (
        {"interpolate_pos_encoding": True} if made_for != side and "interpolate_pos_encoding" in takes else {}
    )
