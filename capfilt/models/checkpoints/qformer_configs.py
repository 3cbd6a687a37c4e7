"""Structures of models with a Q-Former as transformers writes them, and read from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.layers import validated
from capfilt.models.checkpoints.configs import images_of, mlp_ratio, square
from capfilt.settings import Blip2

if TYPE_CHECKING:
    from pathlib import Path

RETRIEVAL = "Blip2ForImageTextRetrieval"
GENERATION = "Blip2ForConditionalGeneration"
INSTRUCTED = "InstructBlipForConditionalGeneration"

_DTYPES = ("dtype", "torch_dtype")
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}
_QFORMER_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
    "hidden_act": "gelu",
}
"""What a config.json leaves out is this in transformers."""
LONGEST = {"blip2": 32, "instructblip": 128}
"""Tokens of a text, for the Q-Former and the language model, by family (LAVIS: max_txt_len)."""


def ending(family: str, language: dict[str, Any]) -> str:
    """Return the words that end a caption: OPT's end with a line break in LAVIS and its checkpoints."""
    return "\n" if language.get("model_type") == "opt" and family == "blip2" else ""


def is_of_the_family(model: Blip2) -> bool:
    """Return whether the image encoder is the family's own, which transformers' classes have."""
    return not model.vision_config and model.vision.timm is None and model.vision.stem == "patch"


def retrieval_config(model: Blip2, words: int, image_width: int) -> dict[str, Any]:
    """Return config.json of Blip2ForImageTextRetrieval: a Q-Former that reads `words` entries."""
    return {
        "architectures": [RETRIEVAL],
        "model_type": "blip-2",
        "image_text_hidden_size": model.embed,
        **_parts(model, words, image_width, reads=True),
    }


def prompted_config(
    model: Blip2, words: int, image_width: int, *, image_token: int, end: int
) -> dict[str, Any]:
    """Return config.json of Blip2ForConditionalGeneration, or of InstructBLIP's class.

    `image_token` is the id that holds a query's place in front of a text, `end` the one that ends a caption.
    """
    is_instructed = model.family == "instructblip"
    # It is read in fp32, whatever the language model's own numbers were and the file beside it holds.
    language = {name: one for name, one in model.language.config.items() if name not in _DTYPES}
    return {
        "architectures": [INSTRUCTED if is_instructed else GENERATION],
        "model_type": "instructblip" if is_instructed else "blip-2",
        "image_token_index": image_token,
        "text_config": {**language, "eos_token_id": end},
        **_parts(model, words, image_width, reads=False),
    }


def processor_config(model: Blip2) -> dict[str, Any]:
    """Return processor_config.json of a captioner: with it, transformers puts the queries' places itself."""
    is_instructed = model.family == "instructblip"
    return {
        "num_query_tokens": model.qformer.queries,
        "processor_class": "InstructBlipProcessor" if is_instructed else "Blip2Processor",
    }


def _parts(model: Blip2, words: int, image_width: int, *, reads: bool) -> dict[str, Any]:
    qformer = model.qformer
    is_instructed = model.family == "instructblip" and not reads
    return {
        "dtype": "float32",
        "num_query_tokens": qformer.queries,
        "vision_config": {
            "model_type": "instructblip_vision_model" if is_instructed else "blip_2_vision_model",
            "hidden_size": model.vision.width,
            "intermediate_size": int(model.vision.width * model.vision.mlp_ratio),
            "num_hidden_layers": model.vision.layers,
            "num_attention_heads": model.vision.heads,
            "image_size": model.images.size_px,
            "patch_size": model.vision.patch_px,
            "layer_norm_eps": model.vision.norm_epsilon,
            "hidden_act": "gelu",
            "qkv_bias": True,
        },
        "qformer_config": {
            "model_type": "instructblip_qformer" if is_instructed else "blip_2_qformer",
            "vocab_size": words,
            "hidden_size": qformer.width,
            "num_hidden_layers": qformer.layers,
            "num_attention_heads": qformer.heads,
            "intermediate_size": qformer.feed_forward,
            "hidden_dropout_prob": qformer.dropout,
            "attention_probs_dropout_prob": qformer.dropout,
            "max_position_embeddings": qformer.places,
            "layer_norm_eps": qformer.norm_epsilon,
            "cross_attention_frequency": qformer.cross_every,
            "encoder_hidden_size": image_width,
            **({} if is_instructed else {"use_qformer_text_input": reads}),
        },
    }


def blip2_of(config: dict[str, Any], preprocessor: dict[str, Any] | None, file: Path) -> Blip2:
    """Return how a transformers checkpoint of BLIP-2 or InstructBLIP is built and how it sees pictures.

    Raises CapfiltError for a configuration that asks for something else.
    """
    vision = {**_VISION_DEFAULTS, **(config.get("vision_config") or {})}
    qformer = {**_QFORMER_DEFAULTS, **(config.get("qformer_config") or {})}
    for part, name in ((vision, "image encoder"), (qformer, "Q-Former")):
        if part["hidden_act"] != "gelu":
            raise CapfiltError(
                f"{file}: the {name}'s hidden_act is {part['hidden_act']!r}, and BLIP-2's is 'gelu'",
                fix="give a checkpoint of BLIP-2 or InstructBLIP",
            )
    language = dict(config.get("text_config") or {})
    family = "instructblip" if config.get("model_type") == "instructblip" else "blip2"
    ends_with = ending(family, language)
    is_retrieval = RETRIEVAL in (config.get("architectures") or ())
    try:
        side = square(vision["image_size"], file)
        values = {
            "family": family,
            "images": images_of(preprocessor, side, file),
            "vision": {
                "patch_px": square(vision["patch_size"], file),
                "width": vision["hidden_size"],
                "layers": vision["num_hidden_layers"],
                "heads": vision["num_attention_heads"],
                "mlp_ratio": mlp_ratio(vision["hidden_size"], vision["intermediate_size"]),
                "norm_epsilon": vision["layer_norm_eps"],
            },
            "qformer": {
                "queries": config.get("num_query_tokens", 32),
                "width": qformer["hidden_size"],
                "layers": qformer["num_hidden_layers"],
                "heads": qformer["num_attention_heads"],
                "feed_forward": qformer["intermediate_size"],
                "cross_every": qformer["cross_attention_frequency"],
                "vocabulary": qformer["vocab_size"],
                "max_tokens": min(LONGEST[family], qformer["max_position_embeddings"]),
                "places": qformer["max_position_embeddings"],
                "norm_epsilon": qformer["layer_norm_eps"],
                "dropout": qformer["hidden_dropout_prob"],
            },
            "language": {
                "config": {} if is_retrieval else language,
                "max_tokens": LONGEST[family],
                "ends_with": ends_with,
            },
            "embed": config.get("image_text_hidden_size", 256),
        }
        return validated(Blip2, values)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CapfiltError(f"{file} is damaged: {error}", fix="copy the folder again, whole") from error
    except CapfiltError as error:
        raise CapfiltError(f"{file}: {error.what}", fix="give a checkpoint of BLIP-2") from error
