"""Image encoders that stand frozen before a Q-Former, whatever they came as.

What one says of itself and its weights are read apart: how a model is built is known before it is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.models.cards import CARD_FILE, read_card
from capfilt.models.checkpoints.configs import CONFIG_FILE, is_blip, preprocessor_of, read_json
from capfilt.models.checkpoints.lavis_names import LavisNaming, as_lavis_vision, is_lavis_vision
from capfilt.models.checkpoints.lavis_sizes import has_usual_heads, vision_settings_of
from capfilt.models.checkpoints.names import Naming, few
from capfilt.models.checkpoints.qformer import is_qformer_folder
from capfilt.models.checkpoints.qformer_configs import blip2_of
from capfilt.models.checkpoints.vit import check_heads, start_image_encoder
from capfilt.models.checkpoints.weight_files import read_folder, read_pth, read_shapes
from capfilt.models.part_files import read_by_transformers

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.prompted import SoftPrompted
    from capfilt.models.qformer import QFormer
    from capfilt.models.qformer_parts import Taken
    from capfilt.settings import Blip2


def image_settings(path: Path, model: Blip2) -> dict[str, Any]:
    """Return the settings that an image encoder says of itself; none for bare weights of timm.

    A .pth of LAVIS says all but the heads, which are those of `model` where its width is not EVA-CLIP's.
    """
    if (path / CARD_FILE).exists():
        own = read_card(path).model
        if not hasattr(own, "vision"):
            raise _no_vision(path)
        settings = own.model_dump(mode="json", include={"images", "vision"})
        return {**settings, "vision_config": getattr(own, "vision_config", {})}
    if path.is_file():
        shapes = as_lavis_vision(read_shapes(path))
        if not shapes:
            return {}
        return vision_settings_of(shapes, None if has_usual_heads(shapes) else model.vision.heads, str(path))
    if not (path / CONFIG_FILE).is_file() or _is_timm(path):
        return {}
    if is_qformer_folder(path):
        # Its image encoder is the family's own.
        found = blip2_of(read_json(path / CONFIG_FILE), preprocessor_of(path), path / CONFIG_FILE)
        return {**found.model_dump(mode="json", include={"images", "vision"}), "vision_config": {}}
    config = read_json(path / CONFIG_FILE)
    vision = config.get("vision_config", config)
    images: dict[str, Any] = {}
    if isinstance(vision.get("image_size"), int):
        images["size_px"] = vision["image_size"]
    says = preprocessor_of(path) or {}
    images |= {
        ours: says[name] for ours, name in (("mean", "image_mean"), ("std", "image_std")) if name in says
    }
    return {"vision_config": vision, "images": images}


def _is_timm(path: Path) -> bool:
    """Whether a folder is one of timm, whose config.json says so by the name of an architecture."""
    return "model_type" not in read_json(path / CONFIG_FILE).get(
        "vision_config", read_json(path / CONFIG_FILE)
    )


def _no_vision(path: Path) -> CapfiltError:
    return CapfiltError(
        f"{path} has no image encoder that could be taken",
        fix="give bundles.vision a bundle, a folder of a ViT of transformers, or weights of timm",
    )


def load_image_encoder(part: Taken, model: QFormer | SoftPrompted, settings: Blip2) -> None:
    """Give a model the weights of its image encoder; `settings` are how it is built.

    Raises CapfiltError for weights that do not fit it.
    """
    from capfilt.models.vision import ImageEncoder

    if (part.path / CARD_FILE).exists():
        _fill_vision(model, _vision_of_bundle(part.path), part)
    elif is_qformer_folder(part.path):
        tensors = read_folder(part.path).tensors
        _fill_vision(model, {n: t for n, t in tensors.items() if n.startswith("vision_model.")}, part)
    elif part.path.is_file() and is_lavis_vision(read_shapes(part.path)):
        _fill_vision(model, _vision_of_lavis(part.path, model), part)
    elif settings.vision_config:
        _load_transformers_vision(part, model)
    else:
        encoder = model.vision_model.encoder
        if not isinstance(encoder, ImageEncoder):
            raise CapfiltError(
                f"{part.source} are weights of timm, and the image encoder is BLIP-2's own",
                fix="name the ViT, e.g. --set model.vision=vit_base_patch16_224",
            )
        files = read_folder(part.path) if part.path.is_dir() else read_pth(part.path)
        start_image_encoder(encoder, files.tensors, part.source)
        check_heads(encoder, part.path, part.source)


def _vision_of_bundle(path: Path) -> dict[str, Any]:
    """Return the weights of a bundle's image encoder by the names they have here."""
    from capfilt.models.loading import open_bundle

    card = read_card(path)
    state = open_bundle(path).model.state_dict()
    if not hasattr(card.model, "text"):  # it has a Q-Former itself
        return {name: one for name, one in state.items() if name.startswith("vision_model.")}
    own = {name: tensor for name, tensor in state.items() if name.startswith("image.")}
    if is_blip(card.med):
        return Naming("filter", "transformers").write(own)
    return {name.replace("image.", "vision_model.encoder.", 1): tensor for name, tensor in own.items()}


def _vision_of_lavis(path: Path, model: QFormer | SoftPrompted) -> dict[str, Any]:
    """Return the weights of LAVIS's ViT by the names they have here; layers that LAVIS leaves out are not."""
    own = [n for n in model.vision_model.state_dict(prefix="vision_model.") if ".post_layernorm." not in n]
    return LavisNaming("").read(as_lavis_vision(read_pth(path).tensors), own)


def _fill_vision(model: QFormer | SoftPrompted, weights: dict[str, Any], part: Taken) -> None:
    import torch

    own = {n: t for n, t in model.state_dict().items() if n.startswith("vision_model.")}
    # The norm after the encoder is the Q-Former's own where the encoder has none of that name.
    lacking = [n for n in own if n not in weights and not n.startswith("vision_model.post_layernorm.")]
    if lacking or any(own[n].shape != t.shape for n, t in weights.items() if n in own):
        raise CapfiltError(
            f"the image encoder of {part.source} does not fit: {few(lacking or list(weights))}",
            fix="give the bundle as it was written",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in weights:
                tensor.copy_(weights[name])


def _load_transformers_vision(part: Taken, model: QFormer | SoftPrompted) -> None:
    encoder: Any = model.vision_model.encoder
    read, loading = read_by_transformers(type(encoder), part.path, encoder.config)
    own = encoder.state_dict()
    if missing := sorted(set(loading["missing_keys"]) & set(own)):
        raise CapfiltError(
            f"{part.source} lacks {few(missing)} of its image encoder",
            fix="copy the folder again, whole; or give the folder of the image encoder by itself, where this "
            "one holds more",
        )
    encoder.load_state_dict({name: one for name, one in read.state_dict().items() if name in own})
