"""A small dual encoder of random weights, as transformers saves it, with its processor and tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import drawn
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

if TYPE_CHECKING:
    from pathlib import Path

_SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")
_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def clip(folder: Path) -> Path:
    words = {word: n for n, word in enumerate((*_SPECIAL, "a", "and", *drawn.WORDS))}
    torch.manual_seed(0)
    text = {**_TEXT, "vocab_size": len(words)}
    _loud(CLIPModel(CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=8))).save_pretrained(
        folder
    )
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    _tokenizer(words).save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    words = {word: n for n, word in enumerate((*_SPECIAL, "a", "and", *drawn.WORDS))}
    torch.manual_seed(0)
    text = {**_TEXT, "vocab_size": len(words), "projection_size": 16}
    _loud(SiglipModel(SiglipConfig(text_config=text, vision_config=_VISION))).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    _tokenizer(words).save_pretrained(folder)
    return folder


def _loud(model: torch.nn.Module) -> torch.nn.Module:
    """Make weights so large that features depend on what is seen and read."""
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.add_(torch.randn_like(weights) * 0.3)
    return model.eval()


def _tokenizer(words: dict[str, int]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=12,
    )
