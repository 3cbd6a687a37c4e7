"""The Q-Former beside transformers and beside what its masks promise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from small_models import WORDS
from small_qformer import SMALL_BLIP2, small_qformer
from torch.nn import functional as F

from capfilt.models.frozen import vision_config
from capfilt.models.qformer import LOWEST_TEMPERATURE, QFormer, qformer_config
from capfilt.models.qformer_masks import multimodal_causal, unimodal
from capfilt.settings import Phase
from capfilt.training.objectives import Batch, Setting, step_losses

if TYPE_CHECKING:
    from torch import Tensor

    from capfilt.models.cards import Objective
    from capfilt.models.vocabulary import Vocabulary

TEXTS = ["a red circle", WORDS[2], "the cat sleeps under the table", "two"]
ALL: tuple[Objective, ...] = ("itc", "itm", "lm")


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary) -> QFormer:
    return small_qformer(ALL, len(vocabulary)).double()


def pixels(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(3)).double()


def read(vocabulary: Vocabulary, texts: list[str]) -> tuple[Tensor, Tensor]:
    return vocabulary.encode(texts, "cls", 16)


def batch_of(vocabulary: Vocabulary, rows: int, dtype: torch.dtype = torch.float64) -> Batch:
    ids, real = read(vocabulary, TEXTS[:rows])
    return Batch(pixels(rows).to(dtype), ids, real, torch.arange(rows), torch.arange(rows))


def trained(model: QFormer, vocabulary: Vocabulary, rows: int) -> dict[str, float]:
    """Take one step's losses and their gradients, and return the losses."""
    model.zero_grad()
    phase = Phase(itc=1, itm=1, lm=1, itc_smoothing=0.1)
    batch = batch_of(vocabulary, rows, model.query_tokens.dtype)
    found = step_losses(model, vocabulary, batch, phase, Setting(with_itm=True, key=(0,)))
    found.total.backward()  # type: ignore[no-untyped-call]
    return {name: float(found.parts[name]) for name in ALL}


# -- beside transformers


def test_its_weights_load_in_transformers_with_the_same_scores(vocabulary: Vocabulary) -> None:
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, OPTConfig

    model = small_qformer(ALL, len(vocabulary))
    config = Blip2Config(
        vision_config=vision_config(SMALL_BLIP2).to_dict(),
        qformer_config=qformer_config(SMALL_BLIP2, 32, words=len(vocabulary), reads=True).to_dict(),
        text_config=OPTConfig(
            hidden_size=8, num_hidden_layers=0, vocab_size=8, word_embed_proj_dim=8
        ).to_dict(),
        num_query_tokens=3,
        image_text_hidden_size=16,
    )
    theirs = Blip2ForImageTextRetrieval(config).eval()
    own = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(("word_head.", "temperature"))
    }
    theirs.load_state_dict(own, strict=True)
    theirs.vision_model.post_layernorm.eps = 1e-5  # it knows one epsilon, and the released norm has another
    ids, real = read(vocabulary, TEXTS)
    images = pixels().float()
    given = {"pixel_values": images, "input_ids": ids, "attention_mask": real.long()}
    with torch.no_grad():
        states = model.encode_image(images)
        logits = model.itm_logits(ids, real, model.memory(states))
        cosines = model.similarity(model.image_features(states), model.text_features(ids, real))
        their_logits = theirs(**given, use_image_text_matching_head=True).logits_per_image
        their_cosines = theirs(**given, use_image_text_matching_head=False).logits_per_image
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(cosines, their_cosines, atol=1e-5, rtol=0.0)
    assert float(cosines.std()) > 0.05  # or nothing was compared
    assert float(logits[:, 1].std()) > 0.05


# -- what is asked of it


@pytest.mark.parametrize(
    ("objectives", "parts"),
    [
        (["itc"], {"vision_projection", "text_projection", "temperature"}),
        (["itm"], {"itm_head"}),
        (["lm"], {"word_head"}),
        (["lm", "itc"], {"vision_projection", "text_projection", "temperature", "word_head"}),
    ],
)
def test_a_model_has_the_heads_of_its_objectives(objectives: list[Objective], parts: set[str]) -> None:
    model = QFormer(SMALL_BLIP2, 50, objectives)
    names = {name.partition(".")[0] for name in model.state_dict()}
    assert names - {"vision_model", "query_tokens", "embeddings", "qformer"} == parts


@torch.no_grad()
def test_the_similarity_is_that_of_the_best_query() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(3, 5, 8, generator=generator), dim=-1)
    texts = F.normalize(torch.randn(4, 8, generator=generator), dim=-1)
    found = QFormer(SMALL_BLIP2, 20, ["itc"]).similarity(images, texts)
    for image in range(3):
        for text in range(4):
            best = max(float(query @ texts[text]) for query in images[image])
            assert float(found[image, text]) == pytest.approx(best, abs=1e-6)


@torch.no_grad()
def test_the_unimodal_mask_in_one_pass_gives_the_states_of_two_passes(
    model: QFormer, vocabulary: Vocabulary
) -> None:
    ids, real = read(vocabulary, TEXTS)
    states = model.encode_image(pixels())
    joint = model._joint(ids, unimodal(3, real), states)
    torch.testing.assert_close(joint[:, :3], model.query_states(states), atol=1e-12, rtol=0.0)
    own = F.normalize(model.text_projection(joint[:, 3]), dim=-1)
    torch.testing.assert_close(own, model.text_features(ids, real), atol=1e-12, rtol=0.0)


@torch.no_grad()
def test_while_it_writes_queries_know_no_text_and_words_no_later_word(
    model: QFormer, vocabulary: Vocabulary
) -> None:
    ids, real = read(vocabulary, TEXTS)
    states = model.encode_image(pixels())
    joint = model._joint(ids, multimodal_causal(3, real), states)
    torch.testing.assert_close(joint[:, :3], model.query_states(states), atol=1e-12, rtol=0.0)
    logits = model.lm_logits(ids, model.memory(states))
    for tokens in range(1, ids.shape[1]):
        shorter = model.lm_logits(ids[:, :tokens], model.memory(states))
        torch.testing.assert_close(logits[:, :tokens], shorter, atol=1e-12, rtol=0.0)
    changed = model.lm_logits(ids, model.memory(model.encode_image(-pixels())))
    assert not torch.allclose(changed, logits, atol=1e-2)


@torch.no_grad()
def test_an_image_serves_several_neighbouring_rows(model: QFormer, vocabulary: Vocabulary) -> None:
    ids, real = read(vocabulary, TEXTS)
    states = model.encode_image(pixels(2))
    found = model.itm_logits(ids, real, model.memory(states))
    memory = [seen.take(torch.tensor([0, 0, 1, 1])) for seen in model.memory(states)]
    torch.testing.assert_close(found, model.itm_logits(ids, real, memory), atol=1e-12, rtol=0.0)


@torch.no_grad()
def test_padding_changes_nothing(model: QFormer, vocabulary: Vocabulary) -> None:
    ids, real = read(vocabulary, TEXTS)
    states = model.encode_image(pixels())
    together = model.itm_logits(ids, real, model.memory(states)), model.text_features(ids, real)
    for row, text in enumerate(TEXTS):
        alone = read(vocabulary, [text])
        logits = model.itm_logits(*alone, model.memory(states[[row]]))
        torch.testing.assert_close(together[0][[row]], logits, atol=1e-12, rtol=0.0)
        torch.testing.assert_close(together[1][[row]], model.text_features(*alone), atol=1e-12, rtol=0.0)


# -- numbers


@torch.no_grad()
def test_the_qformer_computes_in_fp32_where_autocast_is_on(vocabulary: Vocabulary) -> None:
    model = small_qformer(ALL, len(vocabulary))
    ids, real = read(vocabulary, TEXTS)
    states = model.encode_image(pixels().float())
    expected = (
        model.query_states(states),
        model.image_features(states),
        model.text_features(ids, real),
        model.itm_logits(ids, real, model.memory(states)),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(model.vision_model(pixels().float()), states)  # the frozen part does not
        found = (
            model.query_states(states),
            model.image_features(states),
            model.text_features(ids, real),
            model.itm_logits(ids, real, model.memory(states)),
        )
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)


def test_the_temperature_stays_above_zero(vocabulary: Vocabulary) -> None:
    model = QFormer(SMALL_BLIP2, 20, ["itc"])
    for value, expected in ((-0.3, LOWEST_TEMPERATURE), (0.07, 0.07), (3.0, 3.0)):
        model.temperature.data.fill_(value)
        model.clamp_temperature()
        assert float(model.temperature.detach()) == pytest.approx(expected)
    QFormer(SMALL_BLIP2, len(vocabulary), ["lm"]).clamp_temperature()


# -- training


def test_a_batch_of_one_trains(model: QFormer, vocabulary: Vocabulary) -> None:
    found = trained(model, vocabulary, 1)
    # One pair is its own only column, and has no negative: what is left of ITM is that it matches.
    assert found["itc"] == 0.0
    ids, real = read(vocabulary, TEXTS[:1])
    with torch.no_grad():
        logits = model.itm_logits(ids, real, model.memory(model.encode_image(pixels(1))))
    assert found["itm"] == pytest.approx(float(-logits.log_softmax(1)[0, 1]), abs=1e-9)
    assert math.isfinite(found["lm"])
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name


def test_a_step_trains_everything_but_the_image_encoder(vocabulary: Vocabulary) -> None:
    model = small_qformer(ALL, len(vocabulary)).train()
    trained(model, vocabulary, 4)
    frozen = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert frozen == {
        name
        for name in model.state_dict()
        if name.startswith(("vision_model.embeddings", "vision_model.encoder"))
    }
    still = {n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any()}
    assert still == set()


def test_states_computed_again_give_the_same_gradients(vocabulary: Vocabulary) -> None:
    model = small_qformer(ALL, len(vocabulary)).double().train()
    passes = []
    layer = model.qformer.encoder.layer[0].attention
    layer.register_forward_hook(lambda *_: passes.append(1))
    found = []
    for on in (False, True, False):
        model.checkpoint_gradients(on)
        passes.clear()
        trained(model, vocabulary, 4)
        found.append(
            (len(passes), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    assert [count for count, _ in found] == [found[0][0], 2 * found[0][0], found[0][0]]
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-12, rtol=1e-9)


def test_a_fresh_model_guesses_words_by_chance_and_its_queries_differ(vocabulary: Vocabulary) -> None:
    torch.manual_seed(0)
    model = QFormer(SMALL_BLIP2, len(vocabulary), ALL).eval()
    found = trained(model, vocabulary, 4)
    assert found["lm"] == pytest.approx(math.log(len(vocabulary)), abs=0.3)
    with torch.no_grad():
        states = model.query_states(model.encode_image(pixels().float()))
    for one in range(3):
        for other in range(one):
            assert not torch.allclose(states[:, one], states[:, other], atol=0.1)
