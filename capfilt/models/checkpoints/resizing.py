"""A model for pictures of another side than the one it was trained on.

A ViT depends on the side in one place: it has a position embedding for each patch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.models.bundle import Bundle, Packed, built, empty, pack
from capfilt.models.checkpoints.names import few
from capfilt.models.vision import interpolated

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from capfilt.settings import Model

_POSITIONS = "image.vit.pos_embed"


def resized(bundle: Bundle, path: Path, size_px: int) -> Packed:
    """Return the bundle for pictures of another side, its position embeddings interpolated.

    Its weights are others and so are its scores: it has a digest of its own and no calibration. Raises
    CapfiltError for an encoder that cannot take the side.
    """
    card = bundle.card
    settings = with_side(card.med, size_px)
    weights = with_positions(bundle.model.state_dict(), card.med, settings)
    return pack(
        path,
        kind=card.kind,
        model=built(settings, len(bundle.vocabulary), card.objectives, weights),
        settings=settings,
        vocabulary=bundle.vocabulary,
        parent=card.weights,
        data=card.data,
        training={},
        versions=card.versions,
        conventions=card.conventions,
        origin=card.origin,
        resized_from_px=card.resized_from_px or card.med.images.size_px,
    )


def with_side(model: Model, size_px: int) -> Model:
    """Return how a model is built for pictures of another side; one its patches do not divide is refused."""
    patch = model.vision.patch_px
    if model.vision.timm is None and size_px % patch:
        near = max(1, round(size_px / patch)) * patch
        raise CapfiltError(
            f"a side of {size_px} px cannot be cut into patches of {patch} px",
            fix=f"set bundles.size_px to a multiple of {patch}, e.g. {near}",
        )
    return changed(model, {"images": {"size_px": size_px}})


def with_positions(weights: Mapping[str, Tensor], before: Model, after: Model) -> dict[str, Tensor]:
    """Return a model's weights for the side of `after`; where more would have to change it is refused.

    Source of the interpolation: BLIP's released code; see `vision.interpolated`.
    """
    old, new = (empty(model, 16, ["lm"]).image for model in (before, after))
    shapes = {name: tensor.shape for name, tensor in new.state_dict(prefix="image.").items()}
    others = {
        name: tensor.shape for name, tensor in old.state_dict(prefix="image.").items() if name != _POSITIONS
    }
    differing = [name for name, shape in others.items() if shapes.get(name) != shape]
    if differing or _POSITIONS not in weights:
        raise CapfiltError(
            f"the image encoder {before.vision.timm} cannot take pictures of {after.images.size_px} px: "
            f"{few(differing) or 'it has no position embeddings that could be interpolated'}",
            fix=f"leave bundles.size_px at {before.images.size_px}, or train at the other side",
        )
    patches: list[int] = [image.vit.patch_embed.num_patches for image in (old, new)]
    return {**weights, _POSITIONS: interpolated(weights[_POSITIONS], *patches)}
