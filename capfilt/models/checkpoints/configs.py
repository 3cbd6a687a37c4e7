"""BLIP's configuration files as transformers reads and writes them: config.json, preprocessor_config.json.

They are written without transformers, whose import costs seconds; the tests compare them with its own.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.layers import validated
from capfilt.settings import Images, Model, Text, Vision

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.checkpoints.names import Half
    from capfilt.models.vocabulary import Vocabulary

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
"""Holds the same among other things, where a processor was saved as one."""
ARCHITECTURES: dict[str, str] = {
    "captioner": "BlipForConditionalGeneration",
    "filter": "BlipForImageTextRetrieval",
}
TEXT_DEFAULTS: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.0,
    "bos_token_id": 30522,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "is_decoder": True,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "sep_token_id": 102,
    "vocab_size": 30524,
}
"""What a text configuration means that does not say it."""
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "hidden_size": 768,
    "image_size": 384,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 16,
}
"""What an image configuration means that does not say it."""
_BICUBIC = 3
"""Pillow's number of it."""
_LONGEST_TEXT = 35
"""Ids of a text that is judged (BLIP's released code)."""


def is_blip(model: Model) -> bool:
    """Return whether the image encoder is BLIP's own, so that transformers can build the model."""
    return model.vision.timm is None and model.vision.stem == "patch"


def blip_config(model: Model, vocabulary: Vocabulary, half: Half, dtype: str) -> dict[str, Any]:
    """Return config.json of a captioner or a filter whose image encoder is BLIP's own."""
    vision, text = model.vision, model.text
    return {
        "architectures": [ARCHITECTURES[half]],
        "dtype": dtype,
        "image_text_hidden_size": model.embed,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "label_smoothing": 0.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "blip",
        "projection_dim": 512,
        "text_config": {
            "attention_probs_dropout_prob": text.dropout,
            "bos_token_id": vocabulary.dec,
            "encoder_hidden_size": vision.width,
            "eos_token_id": vocabulary.sep,
            "hidden_act": "gelu",
            "hidden_dropout_prob": text.dropout,
            "hidden_size": text.width,
            "initializer_range": 0.02,
            "intermediate_size": text.feed_forward,
            "is_decoder": True,
            "label_smoothing": 0.0,
            "layer_norm_eps": text.norm_epsilon,
            "max_position_embeddings": text.places,
            "model_type": "blip_text_model",
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
            "pad_token_id": vocabulary.pad,
            "projection_dim": 768,
            "sep_token_id": vocabulary.sep,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": len(vocabulary),
        },
        "tie_word_embeddings": True,
        "vision_config": {
            "attention_dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": vision.width,
            "image_size": model.images.size_px,
            # transformers' own default, 1e-10, would give a fresh model that sees nothing.
            "initializer_range": 0.02,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "layer_norm_eps": vision.norm_epsilon,
            "model_type": "blip_vision_model",
            "num_attention_heads": vision.heads,
            "num_hidden_layers": vision.layers,
            "patch_size": vision.patch_px,
            "projection_dim": 512,
        },
    }


def preprocessor_config(images: Images) -> dict[str, Any]:
    """Return preprocessor_config.json: a square, bicubic, then mean and std."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(images.mean),
        "image_processor_type": "BlipImageProcessor",
        "image_std": list(images.std),
        "resample": _BICUBIC,
        "rescale_factor": 1 / 255,
        "size": {"height": images.size_px, "width": images.size_px},
    }


def preprocessor_of(folder: Path) -> dict[str, Any] | None:
    """Return what a folder says of its pictures, in a file of its own or, newer ones, among other things."""
    if (folder / PREPROCESSOR_FILE).is_file():
        return read_json(folder / PREPROCESSOR_FILE)
    if (folder / PROCESSOR_FILE).is_file():
        part: dict[str, Any] | None = read_json(folder / PROCESSOR_FILE).get("image_processor")
        return part
    return None


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CapfiltError(f"{file} cannot be read: {error}", fix="copy the folder again, whole") from error
    if not isinstance(value, dict):
        raise CapfiltError(f"{file} holds no object", fix="copy the folder again, whole")
    return value


def with_defaults(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the text part and the image part of a BlipConfig, in full."""
    for name in ("text_config", "vision_config"):
        if not isinstance(config.get(name) or {}, dict):
            raise CapfiltError(f"{CONFIG_FILE}: {name} holds no object", fix="copy the folder again, whole")
    return (
        {**TEXT_DEFAULTS, **(config.get("text_config") or {})},
        {**VISION_DEFAULTS, **(config.get("vision_config") or {})},
    )


def model_of(config: dict[str, Any], preprocessor: dict[str, Any] | None, file: Path) -> Model:
    """Return how a transformers checkpoint is built and how it sees pictures, as transformers reads it.

    A configuration that asks for something else than BLIP is refused.
    """
    text, vision = with_defaults(config)
    for part, name, wanted in (
        (text, "hidden_act", "gelu"),
        (vision, "hidden_act", "gelu"),
        (text, "is_decoder", True),
    ):
        if part[name] != wanted:
            raise CapfiltError(
                f"{file}: {name} is {part[name]!r}, and BLIP's is {wanted!r}", fix="give a BLIP checkpoint"
            )
    side = square(vision["image_size"], file)
    try:
        values = {
            "images": images_of(preprocessor, side, file),
            "vision": {
                "patch_px": square(vision["patch_size"], file),
                "width": vision["hidden_size"],
                "layers": vision["num_hidden_layers"],
                "heads": vision["num_attention_heads"],
                "mlp_ratio": mlp_ratio(vision["hidden_size"], vision["intermediate_size"]),
                "norm_epsilon": vision["layer_norm_eps"],
            },
            "text": {
                "width": text["hidden_size"],
                "layers": text["num_hidden_layers"],
                "heads": text["num_attention_heads"],
                "feed_forward": text["intermediate_size"],
                "vocabulary": text["vocab_size"],
                "max_tokens": min(_LONGEST_TEXT, text["max_position_embeddings"]),
                "places": text["max_position_embeddings"],
                "norm_epsilon": text["layer_norm_eps"],
                "dropout": text["hidden_dropout_prob"],
            },
            "embed": config.get("image_text_hidden_size", 256),
        }
        return validated(Model, values)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CapfiltError(f"{file} is damaged: {error}", fix="copy the folder again, whole") from error
    except CapfiltError as error:
        raise CapfiltError(f"{file}: {error.what}", fix="give a BLIP checkpoint") from error


def mlp_ratio(width: int, hidden: int) -> float:
    """Return the ratio that gives back exactly this hidden size."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def model_of_shapes(shapes: dict[str, tuple[int, ...]], text: str, heads: tuple[int, int]) -> Model:
    """Return how a released checkpoint is built: its shapes say all but the heads.

    `text` is where its text transformer's names begin, `heads` those of the image encoder and of text.
    """
    grid = math.isqrt(shapes["visual_encoder.pos_embed"][1] - 1)
    patch, width = (
        shapes["visual_encoder.patch_embed.proj.weight"][-1],
        shapes["visual_encoder.cls_token"][-1],
    )
    words, text_width = shapes[f"{text}embeddings.word_embeddings.weight"]
    projection = shapes.get("vision_proj.weight", shapes.get("text_proj.weight", (256,)))
    places = shapes[f"{text}embeddings.position_embeddings.weight"][0]
    return Model(
        # The released code had its pictures' transparency dropped.
        images=Images(size_px=grid * patch, transparency="drop"),
        vision=Vision(
            patch_px=patch,
            width=width,
            layers=_layers(shapes, "visual_encoder.blocks."),
            heads=heads[0],
            mlp_ratio=mlp_ratio(width, shapes["visual_encoder.blocks.0.mlp.fc1.weight"][0]),
        ),
        text=Text(
            width=text_width,
            layers=_layers(shapes, f"{text}encoder.layer."),
            heads=heads[1],
            feed_forward=shapes[f"{text}encoder.layer.0.intermediate.dense.weight"][0],
            vocabulary=words,
            max_tokens=min(_LONGEST_TEXT, places),
            places=places,
        ),
        embed=projection[0],
    )


def _layers(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)})


def images_of(preprocessor: dict[str, Any] | None, side: int, file: Path) -> dict[str, Any]:
    """Return image settings; a square of another side than the encoder's is left to `size_px`."""
    given = preprocessor or {}
    resample = given.get("resample", _BICUBIC)
    if (
        resample != _BICUBIC
        or not all(given.get(name, True) for name in ("do_resize", "do_rescale", "do_normalize"))
        or not math.isclose(given.get("rescale_factor", 1 / 255), 1 / 255)
    ):
        raise CapfiltError(
            f"{file.with_name(PREPROCESSOR_FILE)} asks for another image processing than BLIP's: a bicubic "
            "square, mean and std",
            fix="give a checkpoint with BLIP's image processing",
        )
    size = given.get("size", side)
    if isinstance(size, dict):
        size = (size.get("height"), size.get("width"))
    if square(size, file) != side:
        raise CapfiltError(
            f"{file.with_name(PREPROCESSOR_FILE)} gives {size} px to an image encoder of {side} px",
            fix="give a checkpoint whose two files agree",
        )
    images = Images()
    return {
        "size_px": side,
        "mean": tuple(given.get("image_mean", images.mean)),
        "std": tuple(given.get("image_std", images.std)),
        "transparency": "drop",
    }


def square(size: Any, file: Path) -> int:
    """Return the side of a size, which must be a square."""
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1 or not all(isinstance(side, int) for side in sides):
        raise CapfiltError(
            f"{file}: a size of {size} is no square", fix="give a checkpoint for square images"
        )
    side: int = sides.pop()
    return side
