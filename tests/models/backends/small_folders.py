"""Folders of small random models, as transformers saves them: weights, processor, tokenizer.

Weights are so large that what is seen and what is read decides what comes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS = ("a", "red", "blue", "green", "circle", "square", "star", "and", "the", "image", "in", "one", "short")
PLACES = 12
"""Tokens that the dual encoders read at most."""
SIDE_PX = 16
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_SIZE = {"height": SIDE_PX, "width": SIDE_PX}


def clip(folder: Path) -> Path:
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    text = _text(len(pieces), bos_token_id=len(pieces) - 2, eos_token_id=len(pieces) - 1)
    config = transformers.CLIPConfig(text_config=text, vision_config=_vision(), projection_dim=8)
    loud(lambda: transformers.CLIPModel(config)).save_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=_SIZE)
    processor.save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=PLACES)
    tokenizer.save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    """A SigLIP of pictures of one size, with a tokenizer that keeps capitals and masks its pads."""
    words = word_level(["<pad>", "<unk>", "<end>", *WORDS, "Red"], after="$A <end>")
    config = transformers.SiglipConfig(
        text_config={**_text(words.get_vocab_size(), eos_token_id=2), "projection_size": 16},
        vision_config=_vision(),
    )
    loud(lambda: transformers.SiglipModel(config)).save_pretrained(folder)
    transformers.SiglipImageProcessorPil(size=_SIZE).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        model_max_length=PLACES,
    ).save_pretrained(folder)
    return folder


def siglip2(folder: Path) -> Path:
    """A SigLIP 2 of pictures of any shape (NaFlex), with its own tokenizer."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    vision = {**_TOWER, "patch_size": 8, "num_patches": 4}
    config = transformers.Siglip2Config(
        text_config={**_text(len(pieces), eos_token_id=1), "projection_size": 16}, vision_config=vision
    )
    loud(lambda: transformers.Siglip2Model(config)).save_pretrained(folder)
    transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=4).save_pretrained(folder)
    transformers.Siglip2Tokenizer(
        vocab=vocabulary, merges=[], model_max_length=PLACES, padding_side="right"
    ).save_pretrained(folder)
    return folder


def _text(vocabulary: int, **ids: int) -> dict[str, Any]:
    return {**_TOWER, "vocab_size": vocabulary, "max_position_embeddings": PLACES, "pad_token_id": 0, **ids}


def _vision() -> dict[str, Any]:
    return {**_TOWER, "image_size": SIDE_PX, "patch_size": 8}


def word_level(words: list[str], after: str) -> Tokenizer:
    """Return a tokenizer of whole words; `after` says which specials stand around a text."""
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [(piece, numbers[piece]) for piece in after.split() if piece in numbers]
    tokenizer.post_processor = processors.TemplateProcessing(single=after, special_tokens=specials)
    return tokenizer


def loud(make: Callable[[], Any], *, seed: int = 0, scale: float = 0.3) -> Any:
    """Return a model whose weights are large and, whatever the library draws, the same every time."""
    model = make()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weights in sorted(model.named_parameters()):
            if weights.dim() > 1:
                weights.copy_(torch.randn(weights.shape, generator=generator) * scale)
    return model.eval()
