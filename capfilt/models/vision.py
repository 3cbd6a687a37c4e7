"""The image encoder: a plain ViT of timm, with a convolutional stem as an option.

It is built here and nowhere else, so that another encoder is one function away.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from capfilt.settings import Images, Vision


CACHED_STATES = 1024
"""Image states that a CPU computes at a time."""


class ImageEncoder(nn.Module):
    """Pixels to image states, the state of the [class] token first.

    `passes` counts the images that went through, so that work done twice shows.
    """

    def __init__(self, vision: Vision, images: Images) -> None:
        super().__init__()
        vit: Any = _timm_vit(vision, images) if vision.timm else _plain_vit(vision, images)
        self.vit = vit
        self.width = int(vit.num_features)
        self.patches = int(vit.patch_embed.num_patches) if hasattr(vit, "patch_embed") else 1
        self.passes = 0

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers it computes in."""
        return next(self.parameters()).dtype

    def checkpoint_gradients(self, on: bool) -> None:
        """Have the backward pass compute the blocks' states again instead of keeping them, or not."""
        if hasattr(self.vit, "set_grad_checkpointing"):
            self.vit.set_grad_checkpointing(on)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return image states, shape (images, 1 + patches, width).

        `pixels` are normalised, shape (images, 3, side, side).
        """
        self.passes += len(pixels)
        vit: Any = self.vit
        pixels = pixels.to(self.dtype)
        # What trains, the momentum encoder too, has batch norms that must see the batch whole.
        if pixels.device.type != "cpu" or torch.is_grad_enabled() or self.training:
            states: Tensor = vit.forward_features(pixels)
            return states
        # A CPU is fastest with what fits its cache; a batch of large pictures only moves memory about.
        some = max(1, CACHED_STATES // max(1, self.patches))
        return torch.cat([vit.forward_features(few) for few in pixels.split(some)])


class ConvolutionalStem(nn.Module):
    """Patches by convolutions, each followed by max-pooling that halves the side, instead of one linear map.

    Small models trained from scratch learn shapes much sooner with it (Xiao et al., "Early convolutions
    help transformers see better", 2021; they halve by strides, and pooling was better here). It stands
    where timm's PatchEmbed stands and takes the same arguments.
    """

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int = 3, embed_dim: int = 768, **_: Any
    ) -> None:
        super().__init__()
        halvings = int(math.log2(patch_size))
        if 2**halvings != patch_size or halvings < 1:
            raise CapfiltError(
                f"model.vision.patch_px is {patch_size}; a convolutional stem halves the side each time",
                fix="set model.vision.patch_px to 2, 4, 8, 16 or 32, or model.vision.stem=patch",
            )
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        widths = [in_chans, *(max(32, embed_dim // 2**n) for n in range(halvings - 1, 0, -1)), embed_dim]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.MaxPool2d(2)]
            layers += [nn.BatchNorm2d(after), nn.GELU()]
        self.convolutions = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return patches, shape (images, patches, width)."""
        # Pooling with the channels last is several times faster on a CPU.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        patches: Tensor = self.convolutions(pixels).flatten(2).transpose(1, 2)
        return patches


def interpolated(positions: Tensor, before: int, after: int) -> Tensor:
    """Return position embeddings for another number of patches, shape (1, others + after, width).

    `positions` is (1, others + before, width); both numbers are squares. The patches' rows are resized as a
    picture, bicubically and without antialiasing, and the rows before them, the [class] token's, are kept
    (BLIP's released code).
    """
    others, patches = positions[:, :-before], positions[:, -before:]
    old, new = math.isqrt(before), math.isqrt(after)
    grid = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([others, resized.permute(0, 2, 3, 1).reshape(1, after, -1)], 1)


def _plain_vit(vision: Vision, images: Images) -> nn.Module:
    vit: nn.Module = VisionTransformer(
        img_size=images.size_px,
        patch_size=vision.patch_px,
        embed_dim=vision.width,
        depth=vision.layers,
        num_heads=vision.heads,
        mlp_ratio=vision.mlp_ratio,
        norm_layer=partial(nn.LayerNorm, eps=vision.norm_epsilon),
        num_classes=0,
        global_pool="",
        **({"embed_layer": ConvolutionalStem} if vision.stem == "convolution" else {}),
    )
    return vit


def _timm_vit(vision: Vision, images: Images) -> Any:
    try:
        vit: Any = timm.create_model(vision.timm, img_size=images.size_px, num_classes=0, global_pool="")
        with torch.no_grad():
            states = vit.eval().forward_features(torch.zeros(1, 3, images.size_px, images.size_px))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise CapfiltError(
            f"model.vision.timm={vision.timm} at {images.size_px} px cannot be built: {error}",
            fix="name a ViT that timm.list_models('vit_*') lists, and a side that its patches divide",
        ) from error
    if states.ndim != 3:
        raise CapfiltError(
            f"model.vision.timm={vision.timm} gives no sequence of states, but {tuple(states.shape)}",
            fix="name a ViT, e.g. --set model.vision.timm=vit_base_patch16_384",
        )
    return vit.train()
