"""MED against numbers of BLIP's released code, in float64; golden/README.md says where they come from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from blip_names import (
    Weights,
    projection_weights,
    take,
    text_weights,
    timm_weights,
    word_head_weights,
)
from safetensors.torch import load_file
from small_models import SMALL, small_med

from capfilt.errors import CapfiltError
from capfilt.models.captioner import Writing
from capfilt.models.decoding import scored_beam, write
from capfilt.models.losses import itm_loss, lm_loss
from capfilt.models.med import MED, adopt
from capfilt.settings import Images, Model, SettledDecoding, Text, Vision

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.memory import ImageMemory

SETTINGS = Model(
    images=Images(size_px=32),
    vision=Vision(patch_px=8, width=32, layers=3, heads=4),
    text=Text(width=48, layers=3, heads=4, feed_forward=96, dropout=0.0),
    embed=16,
)
VOCABULARY, CLS, SEP, DEC, ENC = 202, 2, 3, 200, 201
Norms = dict[str, tuple[float, float]]
"""Norms of a loss's gradient: of the image encoder, and of everything."""
CLOSE = {"atol": 1e-9, "rtol": 0.0}


def doubles(path: Path) -> Weights:
    return {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(path).items()
    }


def begun_with(ids: Tensor, first: int) -> Tensor:
    return torch.cat([torch.full_like(ids[:, :1], first), ids[:, 1:]], 1)


# -- the captioner of the released code


@pytest.fixture(scope="module")
def captioning(repository: Path) -> Weights:
    return doubles(repository / "tests/models/golden/blip_decoder.safetensors")


@pytest.fixture(scope="module")
def captioner(captioning: Weights) -> MED:
    theirs = {n.removeprefix("weights."): w for n, w in captioning.items() if n.startswith("weights.")}
    return take(
        MED(SETTINGS, VOCABULARY, ["lm"]).double(),
        timm_weights(theirs, "visual_encoder."),
        text_weights(theirs, "text_decoder.bert.", "decoder"),
        word_head_weights(theirs, "text_decoder."),
    )


@pytest.fixture(scope="module")
def memory(captioner: MED, captioning: Weights) -> list[ImageMemory]:
    with torch.no_grad():
        states = captioner.encode_image(captioning["images"])
        torch.testing.assert_close(states, captioning["image_embeds"], **CLOSE)
        return captioner.memory(states)


def captions(
    model: MED,
    memory: list[ImageMemory],
    decoding: SettledDecoding,
    prompt: Tensor,
    numbers: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Return the ids written after the prompt, and the logits of every step."""
    writing, steps = Writing(model, memory, 40), []

    def next_logits(new: Tensor) -> Tensor:
        steps.append(writing.next_logits(new))
        return steps[-1]

    with torch.no_grad():
        return write(next_logits, prompt, decoding, SEP, numbers), steps


@pytest.mark.parametrize("name", ["lm_prompted", "lm_unprompted"])
@torch.no_grad()
def test_the_language_modelling_loss_is_that_of_the_released_code(
    captioner: MED, memory: list[ImageMemory], captioning: Weights, name: str
) -> None:
    ids, real = captioning[f"{name}.input_ids"], captioning[f"{name}.attention_mask"].bool()
    targets = real & (torch.arange(ids.shape[1]) >= 4)  # the prompt is no target there
    loss = lm_loss(captioner.lm_logits(ids, memory), ids, targets, label_smoothing=0.1)
    torch.testing.assert_close(loss, captioning[f"{name}.loss"], **CLOSE)


def filled_up(ids: Tensor) -> Tensor:
    """What follows [SEP] is filled up with it, as we do; theirs is filled up with [PAD]."""
    return ids.masked_fill((ids == SEP).cumsum(1).cumsum(1) > 1, SEP)


# `min_length` and `max_length` of the released code count the four ids of the prompt: 5 to 20 there are
# 1 to 16 here.
WRITTEN = {
    "greedy_coco": SettledDecoding(method="greedy", min_tokens=1, max_tokens=16),
    "greedy_default": SettledDecoding(method="greedy", min_tokens=6, max_tokens=26),
    "greedy_coco_rp1.3": SettledDecoding(
        method="greedy", min_tokens=1, max_tokens=16, repetition_penalty=1.3
    ),
    "sample": SettledDecoding(min_tokens=1, max_tokens=16, top_p=0.9, top_k=50, repetition_penalty=1.1),
    "sample_p999": SettledDecoding(
        min_tokens=1, max_tokens=16, top_p=0.999, top_k=50, repetition_penalty=1.1
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_captions_are_those_of_the_released_code_token_for_token(
    captioner: MED, memory: list[ImageMemory], captioning: Weights, name: str
) -> None:
    expected = captioning[f"{name}.sequences"]
    numbers = captioning[f"{name}.uniforms"].T if name.startswith("sample") else None
    ids, _ = captions(captioner, memory, WRITTEN[name], expected[:, :4], numbers)
    filled = filled_up(expected[:, 4:])
    assert ids.tolist() == filled[:, : ids.shape[1]].tolist()
    assert (filled[:, ids.shape[1] :] == SEP).all()
    assert len({tuple(row) for row in ids.tolist()}) == 8  # every picture has a caption of its own


SEARCHED = {
    "beam3_coco": {"min_tokens": 1, "max_tokens": 16},
    "beam3_default": {"min_tokens": 6, "max_tokens": 26},
    "beam3_coco_rp1.3": {"min_tokens": 1, "max_tokens": 16, "repetition_penalty": 1.3},
}


@pytest.mark.parametrize("name", SEARCHED)
@torch.no_grad()
def test_beam_search_finds_the_captions_and_scores_of_the_released_code(
    captioner: MED, memory: list[ImageMemory], shared: Path, name: str
) -> None:
    recorded = doubles(shared / "golden/blip_decoder/expected_f64.safetensors")
    expected = recorded[f"{name}.sequences"]
    decoding = SettledDecoding.model_validate(
        {"method": "beam", "beams": 3, "length_counts": "whole", **SEARCHED[name]}
    )
    writing = Writing(captioner, memory, 40)
    ids, scores = scored_beam(
        writing.next_logits,
        writing.reorder,
        expected[:, :4],
        decoding,
        SEP,
    )
    assert ids.tolist() == filled_up(expected[:, 4:]).tolist()
    torch.testing.assert_close(scores, recorded[f"{name}.sequences_scores"], atol=1e-6, rtol=0.0)


def test_the_logits_of_each_step_are_those_of_the_released_code(
    captioner: MED, memory: list[ImageMemory], captioning: Weights
) -> None:
    prompt = captioning["greedy_coco.sequences"][:, :4]
    _, steps = captions(captioner, memory, WRITTEN["greedy_coco"], prompt)
    expected = captioning["greedy_coco.step_logits"]
    torch.testing.assert_close(torch.stack(steps[: len(expected)]), expected, atol=2e-5, rtol=0.0)


# -- the matcher of the released code


@pytest.fixture(scope="module")
def matching(shared: Path) -> Weights:
    folder = shared / "golden/blip_itm"
    return doubles(folder / "inputs.safetensors") | doubles(folder / "expected_f64.safetensors")


@pytest.fixture(scope="module")
def matcher(shared: Path) -> MED:
    theirs = doubles(shared / "golden/blip_itm/weights.safetensors")
    return take(
        MED(SETTINGS, VOCABULARY, ["itc", "itm"]).double(),
        timm_weights(theirs, "visual_encoder."),
        text_weights(theirs, "text_encoder.", "encoder"),
        projection_weights(theirs),
    )


@pytest.mark.parametrize(("first", "expected"), [(CLS, "itm_logits_cls"), (ENC, "itm_logits_enc")])
@torch.no_grad()
def test_itm_logits_of_all_pairs_are_those_of_the_released_code(
    matcher: MED, matching: Weights, first: int, expected: str
) -> None:
    memory = matcher.memory(matcher.encode_image(matching["images"]))
    ids = begun_with(matching["input_ids"], first).repeat(8, 1)
    real = matching["attention_mask"].bool().repeat(8, 1)
    logits = matcher.itm_logits(ids, real, memory).view(8, 8, 2)  # eight texts an image, side by side
    torch.testing.assert_close(logits, matching[expected], **CLOSE)


@torch.no_grad()
def test_itc_cosines_are_those_of_the_released_code(matcher: MED, matching: Weights) -> None:
    images = matcher.image_features(matcher.encode_image(matching["images"]))
    texts = matcher.text_features(matching["input_ids"], matching["attention_mask"].bool())
    assert images.dtype == torch.float64
    torch.testing.assert_close(images @ texts.T, matching["itc_sim"], **CLOSE)


@torch.no_grad()
def test_unpadded_states_are_those_of_the_released_code(matcher: MED, matching: Weights) -> None:
    real = matching["attention_mask"][:1].bool()
    ids = matching["input_ids"][:1, : int(real.sum())]
    everything = torch.ones_like(ids, dtype=torch.bool)
    memory = matcher.memory(matcher.encode_image(matching["images"][:1]))
    text = matcher.text.read(ids, everything)
    both = matcher.text.read(begun_with(ids, ENC), everything, memory)
    torch.testing.assert_close(text, matching["base_text_hidden_0"], **CLOSE)
    torch.testing.assert_close(both, matching["base_multimodal_hidden_0"], **CLOSE)


# -- the joint model of the released code


@pytest.fixture(scope="module")
def joint(shared: Path) -> MED:
    theirs = doubles(shared / "golden/blip_pretrain/weights.safetensors")
    return take(
        MED(SETTINGS, VOCABULARY, ["itc", "itm", "lm"]).double(),
        timm_weights(theirs, "visual_encoder."),
        text_weights(theirs, "text_encoder.", "encoder"),
        text_weights(theirs, "text_decoder.bert.", "decoder"),
        projection_weights(theirs),
        word_head_weights(theirs, "text_decoder."),
        {"temperature": theirs["temp"].view(())},
    )


@pytest.fixture(scope="module")
def pretraining(shared: Path) -> Weights:
    folder = shared / "golden/blip_pretrain"
    found = doubles(folder / "inputs.safetensors") | doubles(folder / "expected_f64.safetensors")
    return {
        name.removeprefix("step1."): tensor for name, tensor in found.items() if name.startswith("step1.")
    }


@pytest.fixture(scope="module")
def pretraining_norms(shared: Path) -> Norms:
    recorded = json.loads((shared / "golden/blip_pretrain/expected_f64.json").read_text())["grad_norms_step1"]
    return {loss: (norms["visual_encoder"], norms["total_unique"]) for loss, norms in recorded.items()}


def gradient_norms(model: MED, loss: Tensor) -> tuple[float, float]:
    model.zero_grad()
    loss.backward()
    squares = {n: float(p.grad.square().sum()) for n, p in model.named_parameters() if p.grad is not None}
    image = sum(square for name, square in squares.items() if name.startswith("image."))
    return image**0.5, sum(squares.values()) ** 0.5


@torch.no_grad()
def test_features_of_the_joint_model_are_those_of_the_released_code(joint: MED, pretraining: Weights) -> None:
    states = joint.encode_image(pretraining["images"])
    texts = joint.text_features(pretraining["input_ids"], pretraining["attention_mask"].bool())
    torch.testing.assert_close(states, pretraining["image_embeds"], **CLOSE)
    torch.testing.assert_close(joint.image_features(states), pretraining["image_feat"], **CLOSE)
    torch.testing.assert_close(texts, pretraining["text_feat"], **CLOSE)


def test_matching_with_given_negatives_has_the_released_codes_logits_loss_and_gradient(
    joint: MED, pretraining: Weights, pretraining_norms: Norms
) -> None:
    rows = torch.arange(8)
    images = torch.cat([rows, pretraining["neg_image_for_text"], rows])
    texts = torch.cat([rows, rows, pretraining["neg_text_for_image"]])
    ids, real = begun_with(pretraining["input_ids"], ENC)[texts], pretraining["attention_mask"].bool()[texts]
    memory = [layer.take(images) for layer in joint.memory(joint.encode_image(pretraining["images"]))]
    logits = joint.itm_logits(ids, real, memory)
    loss = itm_loss(logits, pretraining["itm_labels"].bool())
    torch.testing.assert_close(logits, pretraining["itm_logits"], **CLOSE)
    torch.testing.assert_close(loss, pretraining["loss_itm"], **CLOSE)
    assert gradient_norms(joint, loss) == pytest.approx(pretraining_norms["loss_itm"], rel=1e-9)


def test_writing_has_the_released_codes_loss_and_gradient(
    joint: MED, pretraining: Weights, pretraining_norms: Norms
) -> None:
    ids, real = begun_with(pretraining["input_ids"], DEC), pretraining["attention_mask"].bool()
    logits = joint.lm_logits(ids, joint.memory(joint.encode_image(pretraining["images"])))
    loss = lm_loss(logits, ids, real, label_smoothing=0.1)
    torch.testing.assert_close(loss, pretraining["loss_lm"], **CLOSE)
    assert gradient_norms(joint, loss) == pytest.approx(pretraining_norms["loss_lm"], rel=1e-9)


# -- parts of a model


@pytest.mark.parametrize("objectives", [["itc"], ["itm"], ["lm"], ["lm", "itc"], ["itm", "itc", "lm"]])
def test_a_model_has_the_parts_of_its_objectives_and_no_others(objectives: list[str]) -> None:
    names = set(small_med(objectives, 30).state_dict())

    def has(part: str) -> bool:
        return any(part in name for name in names)

    assert has("text_projection") == has("image_projection") == has("temperature") == ("itc" in objectives)
    assert has("itm_head") == ("itm" in objectives)
    assert has("word_head") == has("attention.decoder") == ("lm" in objectives)
    assert has("attention.encoder") == bool({"itc", "itm"} & set(objectives))
    assert has("cross.") == bool({"itm", "lm"} & set(objectives))


def test_a_captioner_adopts_from_a_filter_what_it_has_and_the_twin_of_its_self_attention() -> None:
    reader, writer = small_med(["itc", "itm"], 30, seed=1), small_med(["lm"], 30, seed=2)
    weights = reader.state_dict()
    own_head = {n: w.clone() for n, w in writer.state_dict().items() if n.startswith("word_head.")}
    fresh, left = adopt(writer, weights)
    assert set(fresh) == set(own_head)
    assert {name.partition(".")[0] for name in left} == {
        "image_projection",
        "text_projection",
        "temperature",
        "itm_head",
        "text",
    }
    assert all(".attention.encoder." in name for name in left if name.startswith("text."))
    for name, tensor in writer.state_dict().items():
        if name in own_head:
            assert torch.equal(tensor, own_head[name])
        else:
            assert torch.equal(tensor, weights[name.replace("decoder", "encoder")])


def test_what_does_not_fit_by_shape_is_refused_by_name_and_nothing_is_taken() -> None:
    small, larger = small_med(["lm"], 30, seed=1), small_med(["lm"], 31, seed=2)
    before = {name: tensor.clone() for name, tensor in larger.state_dict().items()}
    with pytest.raises(CapfiltError, match=r"other sizes: text\.words\.weight, word_head\.bias\n") as refused:
        adopt(larger, small.state_dict())
    assert "built alike" in refused.value.fix
    assert all(torch.equal(tensor, before[name]) for name, tensor in larger.state_dict().items())


def test_the_temperature_stays_within_its_bounds() -> None:
    model = MED(SMALL, 30, ["itc"])
    for value, held in [(-1.0, 0.001), (0.2, 0.2), (9.0, 0.5)]:
        with torch.no_grad():
            model.temperature.fill_(value)
        model.clamp_temperature()
        assert model.temperature.item() == pytest.approx(held)
    MED(SMALL, 30, ["lm"]).clamp_temperature()  # a model without one has nothing to hold
