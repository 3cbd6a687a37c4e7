"""What is done to a model for speed changes nothing but roundings, and saves what it says it saves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from small_models import pictures, small_bundle, small_med

from capfilt.errors import RunFailedError
from capfilt.models.captioner import MedCaptioner, Writing
from capfilt.models.decoding import write
from capfilt.models.filter import MedFilter
from capfilt.models.inference import (
    HeadwiseAttention,
    Int8Linear,
    PackedLinear,
    _replace_feed_forward,
    image_states,
    prepare,
)
from capfilt.models.med import MED, absorbs
from capfilt.models.packed import IS_THERE
from capfilt.settings import Images, Model, SettledDecoding, Text, Vision

if TYPE_CHECKING:
    from capfilt.models.bundle import Bundle
    from capfilt.models.cards import Kind, Objective
    from capfilt.models.vocabulary import Vocabulary

CPU = torch.device("cpu")
WIDE = Model(
    images=Images(size_px=32),
    vision=Vision(patch_px=8, width=64, layers=3, heads=4),
    text=Text(width=64, layers=3, heads=4, feed_forward=128, max_tokens=16, dropout=0.0),
    embed=16,
)
END = 3


def middling() -> MED:
    """Return a model whose scores are neither all alike nor so large that bf16 loses them."""
    torch.manual_seed(0)
    model = MED(WIDE, 40, ["itc", "itm", "lm"])
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    return model.eval()


def pixels(images: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)


def spread(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the root of the mean squared difference, as a share of the expected numbers' spread."""
    return float((found.float() - expected).pow(2).mean().sqrt() / expected.std())


@pytest.mark.parametrize(
    ("precision", "within"), [("fp32", 1e-5), ("bf16", 0.03), ("int8", 0.06)], ids=["fp32", "bf16", "int8"]
)
@torch.no_grad()
def test_a_prepared_model_gives_the_numbers_of_the_plain_one(precision: str, within: float) -> None:
    plain, ready = middling(), prepare(middling(), CPU, precision)
    ids = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(1))
    real = torch.ones_like(ids, dtype=torch.bool)
    states, ours = plain.encode_image(pixels(4)), ready.encode_image(pixels(4))
    assert 0 < spread(ours, states) < within
    assert spread(ready.image_features(ours), plain.image_features(states)) < within
    assert spread(ready.text_features(ids, real), plain.text_features(ids, real)) < within
    for absorbed in (True, False):
        memory, theirs = ready.memory(ours, absorbed=absorbed), plain.memory(states)
        assert spread(ready.itm_logits(ids, real, memory), plain.itm_logits(ids, real, theirs)) < within
        assert spread(ready.lm_logits(ids, memory), plain.lm_logits(ids, theirs)) < within


def test_maps_are_replaced_by_those_of_their_precision() -> None:
    def kinds(precision: str, part: str) -> set[str]:
        model = prepare(small_med(["itm", "lm"], 40, WIDE), CPU, precision)
        return {type(module).__name__ for name, module in model.named_modules() if f"{part}." in f"{name}."}

    packed = "PackedLinear" if IS_THERE else "Linear"
    assert packed in kinds("fp32", "image.vit.blocks.0.mlp.fc1")
    assert kinds("int8", "image.vit.blocks.0.mlp.fc1") == {"Int8Linear"}
    assert "HeadwiseAttention" in kinds("bf16", "image.vit.blocks.0.attn")
    assert "HeadwiseAttention" not in kinds("fp32", "image.vit.blocks.0.attn")
    assert packed in kinds("int8", "text.layers.0.feed_forward.up")


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch16_18x2_224",  # two attentions and two feed-forwards side by side
        "vit_giant_patch14_dinov2",  # a gated feed-forward
        "vit_base_patch16_rope_reg1_gap_256",
    ],
)
@torch.no_grad()
def test_encoders_of_other_blocks_keep_what_is_theirs(name: str) -> None:
    import timm

    def encoder() -> torch.nn.Module:
        torch.manual_seed(0)
        return timm.create_model(name, depth=1, embed_dim=96, num_heads=2, img_size=56).eval()

    plain, model = encoder(), small_med(["lm"], 40, WIDE)
    model.image.vit = encoder()
    prepare(model, CPU, "fp32")
    pictures_ = torch.randn(1, 3, 56, 56)
    expected = plain.forward_features(pictures_)
    torch.testing.assert_close(model.image.vit.forward_features(pictures_), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_gated_feed_forward_is_not_taken_for_a_plain_one() -> None:
    from timm.layers import GluMlp

    torch.manual_seed(0)
    gated = GluMlp(16, 32, act_layer=torch.nn.GELU)
    states = torch.randn(3, 16)
    expected = gated(states)
    _replace_feed_forward(gated, "fc1", "fc2", "fp32")
    torch.testing.assert_close(gated(states), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_head_by_head_is_attention() -> None:
    block = small_med(["lm"], 40, WIDE).image.vit.blocks[0].attn.bfloat16()
    states = torch.randn(2, 17, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = block.float()(states.float())
    assert spread(HeadwiseAttention(block.bfloat16())(states), expected) < 0.02


@torch.no_grad()
def test_eight_bits_lose_a_hundredth_however_the_rows_differ_in_size() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 40)
    states = torch.randn(20, 96) * torch.logspace(-3, 3, 20)[:, None]
    expected = torch.nn.functional.linear(states, linear.weight)
    found = Int8Linear(linear)(states) - linear.bias
    errors = (found - expected).pow(2).mean(1).sqrt() / expected.pow(2).mean(1).sqrt()
    assert errors.max() < 0.02
    assert torch.equal(Int8Linear(linear)(torch.zeros(1, 96))[0], linear.bias)


@torch.no_grad()
def test_a_processor_without_such_products_computes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capfilt.models.packed.IS_THERE", False)
    plain, ready = middling(), prepare(middling(), CPU, "fp32")
    assert not any(isinstance(module, PackedLinear) for module in ready.modules())
    states = plain.encode_image(pixels(2))
    ids = torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = plain.lm_logits(ids, plain.memory(states))
    found = ready.lm_logits(ids, ready.memory(ready.encode_image(pixels(2)), absorbed=True))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not IS_THERE, reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("gelu", [False, True])
@torch.no_grad()
def test_a_matrix_laid_out_gives_the_same_products(gelu: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 40)
    for rows in (1, 7, 300):
        states = torch.randn(2, rows, 96)
        expected = torch.nn.functional.gelu(linear(states)) if gelu else linear(states)
        torch.testing.assert_close(PackedLinear(linear, gelu=gelu)(states), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def exact() -> MED:
    model = small_med(["itc", "itm", "lm"], 40, WIDE).double()
    with torch.no_grad():
        model.word_head.bias[END] += 3  # captions shall end
    return model


@torch.no_grad()
def test_absorbed_cross_attention_is_that_over_keys_and_values(exact: MED) -> None:
    states = exact.encode_image(pixels(3, torch.float64))
    ids = torch.randint(5, 40, (6, 9), generator=torch.Generator().manual_seed(3))  # two texts an image
    plain, absorbed = exact.memory(states), exact.memory(states, absorbed=True)
    torch.testing.assert_close(
        exact.lm_logits(ids, absorbed), exact.lm_logits(ids, plain), atol=1e-10, rtol=0
    )
    order = torch.tensor([2, 0])
    taken = [layer.take(order) for layer in absorbed]
    expected = exact.lm_logits(ids[:4], [layer.take(order) for layer in plain])
    torch.testing.assert_close(exact.lm_logits(ids[:4], taken), expected, atol=1e-10, rtol=0)
    assert absorbs(20)
    assert not absorbs(200)


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("absorbed", [True, False], ids=["absorbed", "keys and values"])
@torch.no_grad()
def test_captions_that_ended_leave_the_batch_and_the_others_go_on_as_before(
    exact: MED, each: int, absorbed: bool
) -> None:
    states = exact.encode_image(pixels(16, torch.float64))
    decoding = SettledDecoding(
        min_tokens=0, max_tokens=12, top_p=1.0, temperature=2.0, repetition_penalty=1.2
    )
    start = torch.tensor([[5, 7]]).expand(16, -1)
    numbers = torch.rand(16 * each, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def written(*, keeps: bool) -> tuple[torch.Tensor, int]:
        writing = Writing(exact, exact.memory(states, absorbed=absorbed), 14)
        keep = writing.keep if keeps else None
        ids = write(writing.next_logits, start, decoding, END, numbers, each=each, keep=keep)
        return ids, writing.computed

    (ids, computed), (expected, all_along) = written(keeps=True), written(keeps=False)
    assert torch.equal(ids, expected)
    lengths = ((ids == END).cumsum(1) == 0).sum(1)
    assert len(set(lengths.tolist())) > 3  # they ended at different times
    assert computed < all_along


@torch.no_grad()
def test_a_token_is_computed_hardly_more_often_than_it_is_needed(vocabulary: Vocabulary) -> None:
    captioner = MedCaptioner(small_bundle(Path("nowhere"), "captioner", ["lm"], vocabulary), CPU)
    decoding = SettledDecoding(min_tokens=1, max_tokens=14, top_p=1.0, temperature=1.5)
    captioner.caption(pictures(64), decoding, seed=0, candidates=2)
    assert captioner.tokens.needed > 200
    # The first token of both candidates comes of one row.
    assert captioner.tokens.needed - 64 <= captioner.tokens.computed <= 1.35 * captioner.tokens.needed


def test_models_with_one_image_encoder_encode_a_picture_once(vocabulary: Vocabulary) -> None:
    def of(kind: Kind, objectives: list[Objective], encoder: str) -> Bundle:
        bundle = small_bundle(Path("nowhere"), kind, objectives, vocabulary)
        return replace(bundle, card=bundle.card.model_copy(update={"image_encoder": encoder}))

    captioner = MedCaptioner(of("captioner", ["lm"], "one"), CPU)
    same = MedFilter(of("filter", ["itm"], "one"), CPU)
    other = MedFilter(of("filter", ["itm"], "another"), CPU)
    batch, decoding = pictures(5), SettledDecoding(min_tokens=1, max_tokens=4)
    captions = captioner.caption(batch, decoding, seed=0, candidates=2)
    same.score(batch, captions)
    assert captioner.model.image.passes + same.model.image.passes == 5
    other.score(batch, captions)
    assert other.model.image.passes == 5


@torch.no_grad()
def test_scores_of_packed_texts_are_those_of_each_alone(vocabulary: Vocabulary) -> None:
    filter_ = MedFilter(small_bundle(Path("nowhere"), "filter", ["itc", "itm"], vocabulary), CPU)
    batch = pictures(3)
    texts = [["a red cat", "two dogs run on the long beach"], [], ["the small green circle"] * 3]
    together = filter_.score(batch, texts)
    assert [len(mine) for mine in together] == [2, 0, 3]
    states = image_states(batch, filter_.model, filter_._card, "fp32")
    for picture, mine in enumerate(texts):
        memory = filter_.model.memory(states[[picture]])
        for text, scores in zip(mine, together[picture], strict=True):
            ids, real = vocabulary.encode([text], "enc", 16)
            itm = filter_.model.itm_logits(ids, real, memory).softmax(-1)[0, 1]
            ids, real = vocabulary.encode([text], "cls", 16)
            cosine = (
                filter_.model.image_features(states[[picture]]) @ filter_.model.text_features(ids, real).T
            )
            assert scores.itm == pytest.approx(float(itm), abs=1e-5)
            assert scores.itc == pytest.approx(float(cosine), abs=1e-5)


def test_more_texts_and_candidates_than_fit_side_by_side_come_after_one_another(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = MedCaptioner(small_bundle(Path("nowhere"), "captioner", ["lm"], vocabulary), CPU)
    filter_ = MedFilter(small_bundle(Path("nowhere"), "filter", ["itc", "itm"], vocabulary), CPU)
    decoding = SettledDecoding(min_tokens=1, max_tokens=6)
    whole = captioner.caption(pictures(3), decoding, seed=0, candidates=7)
    scores = filter_.score(pictures(3), [whole[0], whole[1][:2], whole[2][:5]])
    monkeypatch.setattr("capfilt.models.captioner.ROWS_AT_ONCE", 6)
    monkeypatch.setattr("capfilt.models.filter.TEXTS_AT_ONCE", 3)
    batch = pictures(3)
    assert captioner.caption(batch, decoding, seed=0, candidates=7) == whole
    passes, batch = filter_.model.image.passes, pictures(3)
    for mine, expected in zip(
        filter_.score(batch, [whole[0], whole[1][:2], whole[2][:5]]), scores, strict=True
    ):
        assert [one.itm for one in mine] == pytest.approx([one.itm for one in expected], abs=1e-5)
        assert [one.itc for one in mine] == pytest.approx([one.itc for one in expected], abs=1e-5)
    assert filter_.model.image.passes == passes + 3  # still once a picture


@pytest.mark.parametrize("method", ["nucleus", "greedy", "beam"])
def test_models_of_no_numbers_are_refused_and_write_nothing(vocabulary: Vocabulary, method: str) -> None:
    broken = small_bundle(Path("nowhere"), "captioner", ["lm"], vocabulary)
    judge = small_bundle(Path("nowhere"), "filter", ["itc", "itm"], vocabulary)
    with torch.no_grad():
        broken.model.text.words.weight[7] = float("nan")
        judge.model.itm_head.bias.fill_(float("inf"))
    decoding = SettledDecoding.model_validate({"method": method, "min_tokens": 1, "max_tokens": 4})
    with pytest.raises(RunFailedError, match="logits are no finite numbers"):
        MedCaptioner(broken, CPU).caption(pictures(2), decoding, seed=0, candidates=1)
    with pytest.raises(RunFailedError, match="scores are no finite numbers"):
        MedFilter(judge, CPU).score(pictures(2), [["a cat"], ["a dog"]])
