"""Weights that timm has for a ViT, as the start of an image encoder.

timm's names are ours. A weight that nobody asks for is left out only where it stands behind the states: a ViT
that lacks any other part would give states that are nearly right.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from capfilt.errors import CapfiltError
from capfilt.models.checkpoints.configs import CONFIG_FILE, read_json
from capfilt.models.checkpoints.names import check_fit
from capfilt.models.vision import interpolated

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.vision import ImageEncoder

_PREFIXES = ("module.", "model.")
"""What a training puts before every name."""
_HEADS = {
    "head.": "classifier",
    "fc_norm.": "norm of the classifier",
    "pre_logits.": "hidden layer of the classifier",
    "attn_pool.": "pooling of the classifier",
}
"""Parts behind the states: a file may have them, an image encoder has none."""
_POSITIONS = "pos_embed"


def timm_weights_of(name: str | None) -> str:
    """Return the hub id of the weights that timm itself takes for a ViT of this name.

    Raises CapfiltError where timm knows no such ViT, or no weights of it on the hub.
    """
    import timm

    if name is None:
        raise CapfiltError(
            "bundles.vision=timm takes the weights that timm has for a ViT's name, and none is named",
            fix="name the ViT, e.g. --set model.vision=vit_base_patch16_224, or give its weights as a file",
        )
    try:
        config: Any = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise CapfiltError(
            f"model.vision.timm={name}: {error}", fix="take a name of timm.list_pretrained('vit_*')"
        ) from error
    if config is None or not config.hf_hub_id:
        raise CapfiltError(
            f"timm has no weights for model.vision.timm={name} on the hub",
            fix="take a name of timm.list_pretrained('vit_*'), or give bundles.vision a file",
        )
    return str(config.hf_hub_id)


def start_image_encoder(image: ImageEncoder, theirs: Mapping[str, Tensor], where: str) -> dict[str, str]:
    """Give an image encoder the weights of a ViT of timm, by timm's names.

    Position embeddings of another number of patches are interpolated (`vision.interpolated`). Returns what
    was left out, a pattern of names -> what it is: the classifier. Raises CapfiltError where the ViT is
    built differently, by the weights that differ; `where` names it there. How many heads share a width no
    weight says: see `check_heads`.
    """
    vit: Any = image.vit
    own: dict[str, Tensor] = vit.state_dict()
    theirs = _unwrapped(theirs)
    behind = [name for name in theirs if name.startswith(tuple(_HEADS)) and name not in own]
    weights = {name: tensor for name, tensor in theirs.items() if name not in behind}
    if _POSITIONS in own and _POSITIONS in weights:
        weights[_POSITIONS] = _fitted(weights[_POSITIONS], own[_POSITIONS], image.patches)
    check_fit(own, weights, where, _fix(vit, where))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    return {
        f"{part}*": what for part, what in _HEADS.items() if any(name.startswith(part) for name in behind)
    }


def check_heads(image: ImageEncoder, folder: Path, where: str) -> None:
    """Refuse a timm folder whose config.json names a ViT with another number of attention heads.

    The shapes of both would be the same. A file alone does not say it, and is believed.
    """
    import timm

    if not (folder / CONFIG_FILE).is_file():
        return
    name = read_json(folder / CONFIG_FILE).get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        return
    with torch.device("meta"):
        theirs = _heads(timm.create_model(name))
    if theirs not in (None, _heads(image.vit)):
        raise CapfiltError(
            f"{where} is a {name}, whose width {theirs} attention heads share; the image encoder has "
            f"{_heads(image.vit)}",
            fix=f"--set model.vision={name}, or --set model.vision.heads={theirs}",
        )


def _heads(vit: Any) -> int | None:
    blocks = getattr(vit, "blocks", None)
    return getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by their plain names."""
    for prefix in _PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return dict(weights)


def _fitted(theirs: Tensor, own: Tensor, patches: int) -> Tensor:
    """Return position embeddings for our patches; what is no square of patches is returned as it is."""
    others = own.shape[1] - patches
    if theirs.ndim != own.ndim or theirs.shape[1] in (own.shape[1], others):
        return theirs
    before = theirs.shape[1] - others
    if before < 1 or math.isqrt(before) ** 2 != before or math.isqrt(patches) ** 2 != patches:
        return theirs
    return interpolated(theirs.float(), before, patches)


def _fix(vit: Any, where: str) -> str:
    sizes = f"{vit.num_features} wide" + (f", {len(vit.blocks)} layers" if hasattr(vit, "blocks") else "")
    return (
        f"build the image encoder as {where} is built (this one is {sizes}): --set model.vision=NAME, the "
        "name that timm has for it; or give weights of a ViT that is built like this one"
    )
