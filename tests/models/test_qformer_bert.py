"""A Q-Former that starts from BERT reads texts alone as BERT does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_qformer import SMALL_BLIP2

from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.models.checkpoints.bert import bert_settings, bert_vocabulary, start_qformer
from capfilt.models.checkpoints.weight_files import read_folder
from capfilt.models.qformer import QFormer
from capfilt.models.qformer_masks import unimodal

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij")]


@pytest.fixture
def bert(tmp_path: Path) -> tuple[Any, Path]:
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
        initializer_range=0.3,
    )
    model = BertForPreTraining(config).eval()
    model.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert/vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return model, tmp_path / "bert"


def started(folder: Path) -> QFormer:
    short = changed(SMALL_BLIP2.qformer, {"max_tokens": 8})
    settings = SMALL_BLIP2.model_copy(update={"qformer": bert_settings(folder, short, "model.qformer")})
    model = QFormer(settings, len(bert_vocabulary(folder)), ("itc", "itm", "lm"))
    start_qformer(model, read_folder(folder).tensors, "bert")
    return model.eval()


@torch.no_grad()
def test_texts_alone_have_berts_own_states(bert: tuple[Any, Path]) -> None:
    theirs, folder = bert
    model, words = started(folder), bert_vocabulary(folder)
    ids, real = words.encode(["abc", "a b c d e"], "cls", 8)
    states = model._run(model.embeddings(input_ids=ids), unimodal(0, real), None)
    expected = theirs.bert(input_ids=ids, attention_mask=real.long()).last_hidden_state
    assert (states - expected)[real].abs().max() < 1e-5


@torch.no_grad()
def test_queries_begin_with_berts_feed_forward_and_words_with_its_head(bert: tuple[Any, Path]) -> None:
    theirs, folder = bert
    state = started(folder).state_dict()
    layer = "encoder.layer.1."
    own = theirs.bert.state_dict()
    for part in ("intermediate", "output"):
        for suffix in ("", "_query"):
            assert torch.equal(
                state[f"qformer.{layer}{part}{suffix}.dense.weight"], own[f"{layer}{part}.dense.weight"]
            )
    head = theirs.cls.predictions
    assert torch.equal(state["word_head.dense.weight"], head.transform.dense.weight)
    assert torch.equal(state["word_head.bias"][: len(WORDS)], head.bias)
    # [DEC] and [ENC] stand after BERT's words.
    assert len(state["embeddings.word_embeddings.weight"]) == len(WORDS) + 2


def test_a_bert_without_a_layer_is_refused_by_name(bert: tuple[Any, Path]) -> None:
    _, folder = bert
    model = started(folder)
    tensors = dict(read_folder(folder).tensors)
    lost = next(name for name in tensors if "encoder.layer.2.attention.self.query.weight" in name)
    del tensors[lost]
    with pytest.raises(CapfiltError, match=r"encoder\.layer\.2\.attention\.self\.query\.weight"):
        start_qformer(model, tensors, "bert")
