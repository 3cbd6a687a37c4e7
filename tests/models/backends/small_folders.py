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


CHAT = (
    "{% for message in messages %}<user>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}<stop>{% endfor %}{% if add_generation_prompt %} {{ answers or '' }} <answer>{% endif %}"
)
"""A chat template; IMAGE is what stands for a picture."""
_PIECES = [
    "<pad>",
    "<unk>",
    "<end>",
    "<image>",
    "<user>",
    "<stop>",
    "<answer>",
    "<from>",
    "<to>",
    "<global-img>",
]
_PIECES += ["<fake_token_around_image>", "<end_of_utterance>"]
_PIECES += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
CHAT_WORDS = [*_PIECES, "Describe", "sentence", ".", *WORDS]
ENDS = [CHAT_WORDS.index("<end>"), CHAT_WORDS.index("<stop>")]
"""Two tokens that end an answer, as many chat models have them."""
_DECODER = {
    "vocab_size": len(CHAT_WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": ENDS[0],
    "tie_word_embeddings": False,
}
_IMAGE = CHAT_WORDS.index("<image>")


def llava(folder: Path) -> Path:
    """A CLIP tower and a Llama."""
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **_vision()},
        text_config={"model_type": "llama", **_DECODER},
        image_token_index=_IMAGE,
        vision_feature_layer=-1,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=_SIZE),
        chat_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return _chat(folder, lambda: transformers.LlavaForConditionalGeneration(config), processor)


def qwen2_vl(folder: Path) -> Path:
    """Pictures of any shape, as long a prompt as they are large, and positions on three axes."""
    config = transformers.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4},
        text_config={
            **_DECODER,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
        },
        image_token_id=_IMAGE,
        video_token_id=CHAT_WORDS.index("<row_1_col_1>"),
        vision_start_token_id=CHAT_WORDS.index("<from>"),
        vision_end_token_id=CHAT_WORDS.index("<to>"),
    )
    tokenizer = chat_tokenizer(image_token="<image>", video_token="<row_1_col_1>")
    sizes = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 1024}}
    processor = transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessorPil(**sizes),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT.replace("IMAGE", "<from><image><to>"),
    )
    return _chat(folder, lambda: transformers.Qwen2VLForConditionalGeneration(config), processor)


def idefics3(folder: Path) -> Path:
    """A picture cut into tiles, as SmolVLM has it."""
    config = transformers.Idefics3Config(
        vision_config={**_TOWER, "image_size": SIDE_PX, "patch_size": 4},
        text_config={"model_type": "llama", **_DECODER},
        image_token_id=_IMAGE,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * SIDE_PX}, max_image_size={"longest_edge": SIDE_PX}
        ),
        chat_tokenizer(),
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return _chat(folder, lambda: transformers.Idefics3ForConditionalGeneration(config), processor)


def gemma3(folder: Path) -> Path:
    """Sliding windows shorter than the prompt, and pictures whose tokens see each other both ways."""
    config = transformers.Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **_vision(), "vision_use_head": False},
        text_config={
            **_DECODER,
            "head_dim": 8,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
        image_token_index=_IMAGE,
        boi_token_index=CHAT_WORDS.index("<from>"),
        eoi_token_index=CHAT_WORDS.index("<to>"),
    )
    tokenizer = chat_tokenizer(image_token="<image>", boi_token="<from>", eoi_token="<to>")
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size=_SIZE, do_pan_and_scan=False),
        tokenizer,
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<from>"),
    )
    return _chat(folder, lambda: transformers.Gemma3ForConditionalGeneration(config), processor)


def qwen3_5(folder: Path) -> Path:
    """A decoder three layers out of four of which keep a state that does not grow, and no keys."""
    config = transformers.Qwen3_5Config(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 16,
            "num_position_embeddings": 16,
        },
        text_config={
            **_DECODER,
            "head_dim": 8,
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention"] * 3 + ["full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
        },
        image_token_id=_IMAGE,
        video_token_id=CHAT_WORDS.index("<row_1_col_1>"),
        vision_start_token_id=CHAT_WORDS.index("<from>"),
        vision_end_token_id=CHAT_WORDS.index("<to>"),
        tie_word_embeddings=False,
    )
    tokenizer = chat_tokenizer(
        image_token="<image>",
        video_token="<row_1_col_1>",
        vision_start_token="<from>",
        vision_end_token="<to>",
    )
    sizes = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 1024}}
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessorPil(**sizes),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(**sizes),
        chat_template=CHAT.replace("IMAGE", "<from><image><to>"),
    )
    return _chat(folder, lambda: transformers.Qwen3_5ForConditionalGeneration(config), processor)


def mllama(folder: Path) -> Path:
    """A decoder that looks at the picture by cross-attention, under a mask as long as the text."""
    config = transformers.MllamaConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": SIDE_PX,
            "patch_size": 8,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [1],
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        text_config={
            **_DECODER,
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        image_token_index=len(CHAT_WORDS),
        tie_word_embeddings=False,
    )
    tokenizer = chat_tokenizer()
    tokenizer.bos_token = "<user>"
    image = {"additional_special_tokens": ["<|image|>"]}
    tokenizer.add_special_tokens(image, replace_extra_special_tokens=False)
    processor = transformers.MllamaProcessor(
        transformers.MllamaImageProcessorPil(size=_SIZE, max_image_tiles=2),
        tokenizer,
        chat_template=CHAT.replace("IMAGE", "<|image|>"),
    )

    def make() -> Any:
        model = transformers.MllamaForConditionalGeneration(config)
        for name, weights in model.named_parameters():
            if name.endswith(("gate", "gate_attn", "gate_ffn")):
                weights.data.fill_(0.8)  # closed at first: the picture would not matter
        return model

    return _chat(folder, make, processor)


def chat_tokenizer(**specials: str) -> transformers.PreTrainedTokenizerFast:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_level(CHAT_WORDS, after="$A"),
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        extra_special_tokens=specials,
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": _PIECES[3:]}, replace_extra_special_tokens=False
    )
    return tokenizer


def _chat(folder: Path, make: Callable[[], Any], processor: Any) -> Path:
    model = loud(make)
    with torch.no_grad():  # or nearly all that is written are special tokens
        model.get_output_embeddings().weight[[n for n in range(len(_PIECES)) if n not in ENDS]] = 0
    model.generation_config = transformers.GenerationConfig(eos_token_id=ENDS, pad_token_id=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
