"""Stage 1 of BLIP-2 against LAVIS's numbers; golden/README.md says where they come from.

Their hard negatives are the likeliest columns instead of drawn ones, and so are they here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from lavis_golden import CLS, DEC, SEP, WORDS, Golden, Weights, golden

from capfilt.models import losses
from capfilt.models.qformer import QFormer
from capfilt.models.qformer_masks import additive, bidirectional, multimodal_causal, unimodal
from capfilt.settings import Phase
from capfilt.training.objectives import Batch, Losses, Setting, step_losses
from capfilt.training.parallel import World

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.vocabulary import First

QUERIES = 4
STAGE1 = Phase(itc=1, itm=1, lm=1, itc_smoothing=0.1, negatives="released")
MODULES = {
    "ln_vision": "vision_model.post_layernorm.",
    "Qformer": ("qformer.", "embeddings.", "word_head."),
    "vision_proj": "vision_projection.",
    "text_proj": "text_projection.",
    "itm_head": "itm_head.",
    "query_tokens": "query_tokens",
    "temp": "temperature",
}
"""Their modules, and how our names of the same weights begin."""


class Theirs:
    """The vocabulary of the recorded captions, as far as a step asks for it."""

    def first_id(self, first: First) -> int:
        return {"cls": CLS, "dec": DEC}[first]


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Golden:
    return golden(shared / "golden/blip2_qformer")


def model_of(recorded: Golden, dtype: torch.dtype = torch.float64) -> QFormer:
    model = QFormer(recorded.structure, WORDS, ["itc", "itm", "lm"]).to(dtype)
    model.load_state_dict(recorded.weights)
    return model.eval()


@pytest.fixture(scope="module")
def model(recorded: Golden) -> QFormer:
    return model_of(recorded)


@pytest.fixture(scope="module")
def states(recorded: Golden, model: QFormer) -> Tensor:
    with torch.no_grad():
        return model.encode_image(recorded.inputs["images"])


@torch.no_grad()
def test_states_and_features_are_those_of_the_released_code(
    recorded: Golden, model: QFormer, states: Tensor
) -> None:
    ids, real = recorded.inputs["input_ids"], recorded.inputs["attention_mask"].bool()
    recorded.close(states, "image_embeds")
    recorded.close(model.query_states(states), "query_output")
    images, texts = model.image_features(states), model.text_features(ids, real)
    recorded.close(images, "image_feats")
    recorded.close(texts, "text_feat")
    similarities = model.similarity(images, texts)
    recorded.close(similarities / model.temperature, "sim_i2t")
    recorded.close(similarities.T / model.temperature, "sim_t2i")
    recorded.close(similarities, "itm_head.itc")
    recorded.close(model.query_states(states, (ids, real)), "multimodal_embeds")


@torch.no_grad()
def test_each_pair_has_the_match_logits_of_the_released_matcher(
    recorded: Golden, model: QFormer, states: Tensor
) -> None:
    ids, real = recorded.inputs["input_ids"], recorded.inputs["attention_mask"].bool()
    found = torch.stack(
        [model.itm_logits(ids, real, model.memory(states[[n]])) for n in range(6)]
    )  # (image, text, 2): six neighbouring rows of one image
    recorded.close(found, "itm_head.logits")
    recorded.close(found[..., 1], "compute_itm")


@torch.no_grad()
def test_a_single_pair_has_the_numbers_it_has_in_a_batch(recorded: Golden, model: QFormer) -> None:
    for row in range(6):
        one = slice(row, row + 1)
        ids = recorded.inputs["input_ids"][one]
        real = recorded.inputs["attention_mask"][one].bool()
        own = model.encode_image(recorded.inputs["images"][one])
        cosine = model.similarity(model.image_features(own), model.text_features(ids, real))
        assert cosine.shape == (1, 1)
        assert float(cosine) == pytest.approx(float(recorded.expected["itm_head.itc"][row, row]), abs=1e-9)
        logits = model.itm_logits(ids, real, model.memory(own))
        expected = recorded.expected["itm_head.logits"][row, row]
        torch.testing.assert_close(logits[0], expected, atol=1e-9, rtol=0.0)


@torch.no_grad()
def test_language_logits_are_those_of_both_ways_the_released_code_has(
    recorded: Golden, model: QFormer, states: Tensor
) -> None:
    real = recorded.inputs["attention_mask"].bool()
    logits = model.lm_logits(recorded.expected["lm_input_ids"], model.memory(states))
    recorded.close(logits, "lm_logits", real)
    recorded.close(logits, "lm_unilm_logits", real)


@torch.no_grad()
def test_greedy_captions_are_those_of_the_released_code(
    recorded: Golden, model: QFormer, states: Tensor
) -> None:
    expected, memory = recorded.expected["generate_greedy.sequences"], model.memory(states)
    settings = recorded.record["generate"]["greedy"]["args"]
    ids = torch.full((6, 1), DEC)
    while ids.shape[1] < settings["max_length"]:
        logits = model.lm_logits(ids, memory)[:, -1]
        if ids.shape[1] < settings["min_length"]:
            logits[:, SEP] = -torch.inf
        following = logits.argmax(-1).masked_fill((ids[:, 1:] == SEP).any(1), 0)
        ids = torch.cat([ids, following[:, None]], 1)
    ended = (ids == SEP).cumsum(1) - (ids == SEP).long() > 0
    assert torch.equal(ids.masked_fill(ended, 0), expected)
    assert (expected == SEP).any()


def test_masks_are_those_of_the_released_code(recorded: Golden) -> None:
    real = recorded.inputs["attention_mask"].bool()
    hidden = {
        name: recorded.expected[f"mask_{name}"] < -5000 for name in ("text", "itm", "lm", "unilm", "query")
    }
    assert torch.equal(~multimodal_causal(QUERIES, real), hidden["unilm"])
    assert torch.equal(~multimodal_causal(QUERIES, real)[:, :, QUERIES:], hidden["lm"])
    assert torch.equal(~unimodal(0, real), hidden["text"].expand(-1, -1, 32, -1))
    assert torch.equal(
        ~unimodal(QUERIES, real)[:, :, :QUERIES, :QUERIES], hidden["query"].expand(-1, -1, 4, -1)
    )
    # The pairs of ITM: six right ones, each text with another image, each image with another text.
    others = recorded.expected["neg_text_for_image"]
    every = torch.cat([real, real, real[others]])
    assert torch.equal(~bidirectional(QUERIES, every), hidden["itm"].expand(-1, -1, 36, -1))


@torch.no_grad()
def test_minus_ten_thousand_and_the_lowest_number_hide_alike(
    recorded: Golden, model: QFormer, states: Tensor
) -> None:
    real, ids = recorded.inputs["attention_mask"].bool(), recorded.expected["lm_input_ids"]
    embedded = model.embeddings(input_ids=ids, query_embeds=model.query_tokens.expand(6, -1, -1))
    found = []
    for mask in (recorded.expected["mask_unilm"], additive(multimodal_causal(QUERIES, real), torch.float64)):
        for kind in ("eager", "sdpa"):
            model.qformer.set_attn_implementation(kind)
            found.append(
                model.qformer(
                    query_embeds=embedded,
                    query_length=QUERIES,
                    attention_mask=mask,
                    encoder_hidden_states=states,
                ).last_hidden_state
            )
    counts = torch.cat([torch.ones(6, QUERIES, dtype=torch.bool), real], 1)
    for other in found[1:]:
        torch.testing.assert_close(other[counts], found[0][counts], atol=1e-12, rtol=0.0)


# -- whole steps


@dataclass
class Step:
    """What one step gave, and which hard negatives it picked."""

    losses: Losses
    texts: list[int]
    images: list[int]
    weights: list[Tensor]
    gradients: Weights


def step(model: QFormer, recorded: Golden, image_ids: Tensor) -> Step:
    weights: list[Tensor] = []

    def likeliest(some: Tensor, _: Tensor) -> Tensor:
        weights.append(some)
        return some.argmax(1)

    model.zero_grad()
    dtype = model.query_tokens.dtype
    batch = Batch(
        recorded.inputs["images"].to(dtype),
        recorded.inputs["input_ids"],
        recorded.inputs["attention_mask"].bool(),
        image_ids,
        torch.arange(6),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "drawn", likeliest)
        done = step_losses(model, Theirs(), batch, STAGE1, Setting(with_itm=True, key=("golden",)))  # type: ignore[arg-type]
    done.total.backward()  # type: ignore[no-untyped-call]
    texts, images = (some.argmax(1).tolist() for some in weights)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return Step(done, texts, images, weights, gradients)


@pytest.fixture(scope="module")
def taken(recorded: Golden) -> Step:
    """Their features gathered from all processes, their own one's too, carry no gradient; ours do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "gather_with_gradient", lambda _, rows: rows.detach())
        return step(model_of(recorded).train(), recorded, torch.arange(6))


@pytest.mark.parametrize("variant", ["", "image_id."])
def test_a_step_has_the_losses_and_hard_negatives_of_the_released_code(
    recorded: Golden, variant: str
) -> None:
    image_ids = recorded.inputs["image_id"] if variant else torch.arange(6)
    found, expected = step(model_of(recorded).train(), recorded, image_ids), recorded.expected
    assert found.texts == expected[f"{variant}neg_text_for_image"].tolist()
    assert found.images == expected[f"{variant}neg_image_for_text"].tolist()
    for weights, name in zip(found.weights, ("neg_weights_i2t", "neg_weights_t2i"), strict=True):
        torch.testing.assert_close(weights, expected[f"{variant}{name}"], atol=1e-9, rtol=0.0)
    for name in ("itc", "itm", "lm"):
        recorded.close(found.losses.parts[name], f"{variant}loss_{name}")
    recorded.close(found.losses.total.detach(), f"{variant}loss")


def test_a_step_in_float32_is_as_close_as_the_released_code_is_to_itself(recorded: Golden) -> None:
    model = model_of(recorded, torch.float32).train()
    found = step(model, recorded, torch.arange(6))
    for name in ("itc", "itm", "lm"):
        assert float(found.losses.parts[name]) == pytest.approx(
            float(recorded.expected[f"loss_{name}"]), abs=2e-5
        )
    with torch.no_grad():
        states = model.encode_image(recorded.inputs["images"].float())
        features = model.image_features(states).double()
    torch.testing.assert_close(features, recorded.expected["image_feats"], atol=2e-5, rtol=0.0)


def test_gradients_are_those_of_the_released_code(recorded: Golden, taken: Step) -> None:
    expected = recorded.gradients()
    assert set(taken.gradients) == set(expected)
    for name, gradient in taken.gradients.items():
        if name.endswith("key.bias"):
            # A bias of keys has no effect, so its gradient is nothing but rounding.
            assert float(gradient.abs().max()) < 1e-12
            continue
        error = (gradient - expected[name]).abs().max()
        assert float(error) <= 5e-6 * float(expected[name].abs().max()), name


def test_our_gradient_of_itc_reaches_the_columns_too(recorded: Golden, taken: Step) -> None:
    model = model_of(recorded).train()
    found = step(model, recorded, torch.arange(6))
    assert found.losses.total.item() == taken.losses.total.item()
    generator = torch.Generator().manual_seed(0)
    weight, direction = model.vision_projection.weight, torch.randn(16, 48, generator=generator).double()
    totals = []
    for size in (1e-5, -1e-5):
        with torch.no_grad():
            weight.add_(direction, alpha=size)
        totals.append(step(model, recorded, torch.arange(6)).losses.total.item())
        with torch.no_grad():
            weight.sub_(direction, alpha=size)
    slope = (totals[0] - totals[1]) / 2e-5
    name = "vision_projection.weight"
    assert float((found.gradients[name] * direction).sum()) == pytest.approx(slope, rel=1e-5)
    assert float((taken.gradients[name] * direction).sum()) != pytest.approx(slope, rel=1e-2)


def test_the_gradients_norm_of_each_module_is_that_of_the_released_code(
    recorded: Golden, taken: Step
) -> None:
    norms = recorded.record["grad_norms_sum"]
    for theirs, mine in MODULES.items():
        some = [g for name, g in taken.gradients.items() if name.startswith(mine)]
        assert some
        assert sum(float(g.square().sum()) for g in some) ** 0.5 == pytest.approx(norms[theirs], rel=1e-5)
    assert norms["visual_encoder"] == 0.0
    assert not [name for name in taken.gradients if name.startswith("vision_model.e")]
