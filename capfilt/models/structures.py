"""How a model is built, as the few numbers that people ask for, and the released model that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.settings import Blip2, Model

if TYPE_CHECKING:
    from capfilt.settings import Vision

_SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, layers and heads of the released image encoders of BLIP."""
_TEXT = (768, 12, 12, 3072)
"""Width, layers, heads and feed-forward of BLIP's released text transformers."""
_PATCH_PX = 16
_RELEASED_VIT = (1408, 39, 16, 14)
"""Width, layers, heads and patch of the image encoder of BLIP-2 and InstructBLIP, EVA's ViT-g/14 (its second
last layer's states are used: BLIP-2, section 3.4)."""
_RELEASED_QFORMER = (32, 768, 12, 12, 3072, 2)
"""Queries, width, layers, heads, feed-forward, and how often queries look at the picture."""


def structure(model: Model | Blip2) -> dict[str, Any]:
    """Return the sizes of a model, and the name of the released structure that has them, else "other"."""
    return _med(model) if isinstance(model, Model) else _blip2(model)


def _med(model: Model) -> dict[str, Any]:
    vision, text = model.vision, model.text
    sizes = (vision.width, vision.layers, vision.heads)
    is_released = (
        vision.timm is None
        and (vision.stem, vision.patch_px, vision.mlp_ratio) == ("patch", _PATCH_PX, 4.0)
        and (text.width, text.layers, text.heads, text.feed_forward) == _TEXT
    )
    name = next((name for name, known in _SIZES.items() if known == sizes), None) if is_released else None
    return {
        "name": name or "other",
        "size_px": model.images.size_px,
        **_image_encoder(vision),
        "text_width": text.width,
        "text_layers": text.layers,
        "text_heads": text.heads,
        "embed": model.embed,
    }


def _blip2(model: Blip2) -> dict[str, Any]:
    vision, qformer, config = model.vision, model.qformer, model.language.config
    sizes = (vision.width, vision.layers, vision.heads, vision.patch_px)
    own = not model.vision_config and vision.timm is None and vision.stem == "patch"
    queries = (qformer.queries, qformer.width, qformer.layers, qformer.heads, qformer.feed_forward)
    is_released = own and sizes == _RELEASED_VIT and (*queries, qformer.cross_every) == _RELEASED_QFORMER
    return {
        "name": "ViT-g" if is_released else "other",
        "size_px": model.images.size_px,
        **(_of_transformers(model.vision_config) if model.vision_config else _image_encoder(vision)),
        "queries": qformer.queries,
        "qformer_width": qformer.width,
        "qformer_layers": qformer.layers,
        "qformer_heads": qformer.heads,
        "cross_every": qformer.cross_every,
        "embed": model.embed,
        "language_model": _language_model(config) if config else None,
    }


def _image_encoder(vision: Vision) -> dict[str, Any]:
    is_ours = vision.timm is None
    return {
        "image_encoder": vision.timm or {"patch_px": vision.patch_px, "stem": vision.stem},
        "image_width": vision.width if is_ours else None,
        "image_layers": vision.layers if is_ours else None,
        "image_heads": vision.heads if is_ours else None,
    }


def _of_transformers(config: dict[str, Any]) -> dict[str, Any]:
    # A dual encoder's configuration has one for its image encoder.
    own = config.get("vision_config", config)
    return {
        "image_encoder": own.get("model_type"),
        "image_width": own.get("hidden_size"),
        "image_layers": own.get("num_hidden_layers"),
        "image_heads": own.get("num_attention_heads"),
    }


def _language_model(config: dict[str, Any]) -> dict[str, Any]:
    """Return type and sizes of a language model, which T5 calls by names of its own."""

    def first(*names: str) -> Any:
        return next((config[name] for name in names if name in config), None)

    return {
        "type": config.get("model_type"),
        "width": first("hidden_size", "d_model", "n_embd"),
        "layers": first("num_hidden_layers", "num_layers", "n_layer"),
        "entries": config.get("vocab_size"),
    }
