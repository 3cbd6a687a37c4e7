"""Language models that are small and random, their tokenizers made on the spot, in transformers' layout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from small_models import WORDS, enlarge
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)

from capfilt.models.bundle_files import BundleOf
from capfilt.models.cards import Card
from capfilt.models.frozen import vision_config
from capfilt.models.language_vocabulary import LanguageVocabulary, load_language_vocabulary
from capfilt.models.prompted import SoftPrompted
from capfilt.settings import Blip2, Images, Language, QFormer, Vision

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.qformer_bundle import PromptedBundle
    from capfilt.models.vocabulary import Vocabulary

LanguageKind = Literal["opt", "t5", "llama"]
Family = Literal["blip2", "instructblip"]
KINDS: tuple[LanguageKind, ...] = ("opt", "t5", "llama")
ENDING = 3.0
"""How much larger the output's weights of the end token are than those of other tokens."""
SPARE = 3
"""Rows of the embeddings that no token has: released models have some too."""

_SIZES: dict[LanguageKind, dict[str, Any]] = {
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 48,
        "dropout": 0.5,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    },
    "t5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "dropout_rate": 0.5,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "is_encoder_decoder": True,
    },
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 48,
        "attention_dropout": 0.5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
_SPECIAL: dict[LanguageKind, list[str]] = {
    "opt": ["<s>", "<pad>", "</s>", "<unk>"],
    "t5": ["<pad>", "</s>", "<unk>"],
    "llama": ["<unk>", "<s>", "</s>"],
}
_NAMED: dict[LanguageKind, dict[str, str]] = {
    "opt": {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"},
    "t5": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
}


def language_folder(kind: LanguageKind, folder: Path) -> Path:
    """Write the tokenizer of a language model, of its kind's shape, and its config.json into a new folder."""
    folder.mkdir()
    tokenizer = _word_pieces(kind) if kind == "t5" else _byte_pieces(kind)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **_NAMED[kind]})
    )
    config = {"model_type": kind, "vocab_size": tokenizer.get_vocab_size() + SPARE, **_SIZES[kind]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def small_structure(kind: LanguageKind, folder: Path, family: Family = "blip2") -> Blip2:
    """Return how a small model with the language model of a folder is built; OPT's captions end in a line."""
    return Blip2(
        family=family,
        images=Images(size_px=16),
        vision=Vision(patch_px=8, width=32, layers=2, heads=4, mlp_ratio=2.0),
        qformer=QFormer(
            queries=3, width=32, layers=3, heads=4, feed_forward=48, max_tokens=12, places=32, dropout=0.0
        ),
        language=Language(
            config=json.loads((folder / "config.json").read_text()),
            max_tokens=16,
            ends_with="\n" if kind == "opt" else "",
        ),
    )


def small_prompted(structure: Blip2, entries: int | None = None, *, seed: int = 0) -> SoftPrompted:
    """Return a model with large random weights, in evaluation mode, fp32 on the CPU."""
    model = SoftPrompted(structure, entries)
    enlarge(model, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_projection.weight" in name or "crossattention" in name or name == "query_tokens":
                parameter.mul_(3)  # or captions hardly depend on the picture
            if "vision_model.embeddings" in name:
                parameter.mul_(4)  # or the epsilon of the norm after the encoder would count
            # T5 does not scale its attention: larger weights would make much of every rounding.
            if "language_model" in name and parameter.ndim > 1 and not model.is_encoder_decoder:
                parameter.mul_(2)
    return model.eval()


def small_prompted_bundle(
    kind: LanguageKind, folder: Path, family: Family = "blip2", reader: Vocabulary | None = None
) -> PromptedBundle:
    """Return a captioner with the language model of a folder; nothing is written."""
    structure = small_structure(kind, folder, family)
    entries = None if reader is None else len(reader)
    vocabulary = load_language_vocabulary(folder, structure.language)
    model = small_prompted(structure, entries)
    with torch.no_grad():  # or captions of random weights hardly ever end
        model.language_model.get_output_embeddings().weight[vocabulary.sep].mul_(ENDING)
    card = Card(
        kind="captioner",
        objectives=("lm",),
        weights=f"{family} {kind}",
        model=structure,
        vocabulary=len(reader or vocabulary),
    )
    return BundleOf[SoftPrompted, LanguageVocabulary](folder, card, model, vocabulary, reader=reader)


def in_transformers(model: SoftPrompted, structure: Blip2, folder: Path) -> Any:
    """Return the model as transformers loads it from a folder, every tensor of it once in the file."""
    vision, qformer = vision_config(structure).to_dict(), model.qformer.config.to_dict()
    sizes: dict[str, Any] = {
        "num_query_tokens": structure.qformer.queries,
        "image_token_index": structure.language.config["vocab_size"] - 1,
        "text_config": structure.language.config,
        "qformer_config": qformer,
    }
    if structure.family == "blip2":
        config: Any = Blip2Config(vision_config=vision, **sizes)
        loaded: Any = Blip2ForConditionalGeneration
    else:
        config = InstructBlipConfig(
            vision_config=vision | {"model_type": "instructblip_vision_model"}, **sizes
        )
        loaded = InstructBlipForConditionalGeneration
    text = config.to_dict() | {"text_config": structure.language.config}
    (folder / "config.json").write_text(json.dumps(text))
    weights, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            weights[name] = tensor.contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    theirs, report = loaded.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return theirs.eval()


def _byte_pieces(kind: LanguageKind) -> Tokenizer:
    """Return a byte-level BPE that puts its begin token before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=_SPECIAL[kind],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    begin = _NAMED[kind]["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return tokenizer


def _word_pieces(kind: LanguageKind) -> Tokenizer:
    """Return a unigram model over words with their blank that puts </s> after a text, as T5's does."""
    letters = sorted({letter for text in WORDS for letter in text if letter != " "})
    words = sorted({f"▁{word}" for text in WORDS for word in text.split()})
    pieces = [(token, 0.0) for token in _SPECIAL[kind]]
    pieces += [(word, -2.0) for word in words]
    pieces += [(letter, -6.0) for letter in ["▁", *letters]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=_SPECIAL[kind].index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(_SPECIAL[kind])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer
