"""Models of transformers and checkpoints of the released code, small, made on the spot.

Their weights are drawn by transformers itself, N(0, 0.02^2) everywhere; its own default for the image
encoder, 1e-10, would let any comparison pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.models.vocabulary import Vocabulary

HEADS = 12
"""Of the text part, as in every released checkpoint; transformers' default is 8."""


def blip_config(vocabulary: Vocabulary, **vision: Any) -> Any:
    """Return a small BlipConfig for 32 px."""
    from transformers import BlipConfig

    return BlipConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 48,
            "bos_token_id": vocabulary.dec,
            "eos_token_id": vocabulary.sep,
            "sep_token_id": vocabulary.sep,
            "pad_token_id": vocabulary.pad,
            "initializer_range": 0.02,
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "initializer_range": 0.02,
            **vision,
        },
        image_text_hidden_size=24,
        initializer_range=0.02,
    )


def transformers_folder(path: Path, architecture: str, vocabulary: Vocabulary, **vision: Any) -> Any:
    """Save a model of transformers with its processor; returns the model."""
    import transformers
    from transformers import BertTokenizer, BlipImageProcessor, BlipProcessor

    torch.manual_seed(3)
    config = blip_config(vocabulary, **vision)
    model = getattr(transformers, architecture)(config).eval()
    model.save_pretrained(path)
    (path / "words").mkdir()
    vocabulary.save(path / "words")
    side = config.vision_config.image_size
    pictures = BlipImageProcessor(size={"height": side, "width": side})
    BlipProcessor(pictures, BertTokenizer.from_pretrained(path / "words")).save_pretrained(path)
    return model


def pth(path: Path, weights: Path, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
    """Write a .pth as the released code's trainings do: the weights under `model`, beside other things."""
    state: dict[str, Any] = load_file(weights)
    if change is not None:
        change(state)
    torch.save({"model": state, "optimizer": {"state": {}}, "config": {"vit": "base"}, "epoch": 3}, path)
    return path
