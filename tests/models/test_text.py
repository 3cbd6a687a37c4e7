"""Our text transformer against BLIP of transformers: the same weights and pictures, the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from blip_names import (
    projection_weights,
    take,
    text_weights,
    transformers_vision_weights,
    word_head_weights,
)
from small_models import enlarge

from capfilt.models.captioner import Writing
from capfilt.models.med import MED
from capfilt.settings import Images, Model, Text, Vision

if TYPE_CHECKING:
    from torch import Tensor

VOCABULARY = 61
WITHIN = {torch.float32: 1e-5, torch.float64: 1e-9}
SETTINGS = Model(
    images=Images(size_px=24),
    vision=Vision(patch_px=8, width=40, layers=2, heads=4),
    text=Text(width=96, layers=3, heads=12, feed_forward=160, max_tokens=20, dropout=0.1),
    embed=24,
)


def their_settings():
    from transformers import BlipConfig

    return BlipConfig(
        vision_config={
            "hidden_size": 40,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 24,
            "patch_size": 8,
            "layer_norm_eps": 1e-6,  # its default is 1e-5, BLIP's is not
            "initializer_range": 0.1,
        },
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 96,
            "encoder_hidden_size": 40,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 12,  # its default is 8, BLIP's is not
            "max_position_embeddings": 64,
            "initializer_range": 0.1,
            "bos_token_id": 59,
        },
        image_text_hidden_size=24,
        initializer_range=0.1,
    )


@pytest.fixture(scope="module")
def their_matcher():
    from transformers import BlipForImageTextRetrieval

    model = BlipForImageTextRetrieval(their_settings())
    enlarge(model, seed=1)
    return model.eval()


@pytest.fixture(scope="module")
def their_writer():
    from transformers import BlipForConditionalGeneration

    model = BlipForConditionalGeneration(their_settings())
    enlarge(model, seed=2)
    return model.eval()


@pytest.fixture
def matcher(their_matcher) -> MED:
    theirs = their_matcher.float().state_dict()
    return take(
        MED(SETTINGS, VOCABULARY, ["itc", "itm"]),
        transformers_vision_weights(theirs, "vision_model."),
        text_weights(theirs, "text_encoder.", "encoder"),
        projection_weights(theirs),
    )


@pytest.fixture
def writer(their_writer) -> MED:
    theirs = their_writer.float().state_dict()
    return take(
        MED(SETTINGS, VOCABULARY, ["lm"]),
        transformers_vision_weights(theirs, "vision_model."),
        text_weights(theirs, "text_decoder.bert.", "decoder"),
        word_head_weights(theirs, "text_decoder."),
    )


def texts(rows: int = 6) -> tuple[Tensor, Tensor]:
    """Return ids and which of them are real, of texts of 2 to 12 tokens."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, VOCABULARY, (rows, 12), generator=generator)
    real = torch.arange(12)[None, :] < torch.tensor([12, 2, 7, 3, 11, 5])[:rows, None]
    return ids.masked_fill(~real, 0), real


def pixels(dtype: torch.dtype, images: int = 6) -> Tensor:
    return torch.randn(images, 3, 24, 24, generator=torch.Generator().manual_seed(4)).to(dtype)


@pytest.mark.parametrize("dtype", WITHIN)
@torch.no_grad()
def test_text_and_image_grounded_encoder_itm_and_itc_are_those_of_transformers(
    their_matcher,
    matcher: MED,
    dtype: torch.dtype,
) -> None:
    theirs, ours = their_matcher.to(dtype), matcher.to(dtype)
    ids, real = texts()
    matching = theirs(input_ids=ids, pixel_values=pixels(dtype), attention_mask=real.long())
    cosines = theirs(
        input_ids=ids, pixel_values=pixels(dtype), attention_mask=real.long(), use_itm_head=False
    )

    states = ours.encode_image(pixels(dtype))
    memory = ours.memory(states)
    close = {"atol": WITHIN[dtype], "rtol": 0.0}
    torch.testing.assert_close(states, matching.last_hidden_state, **close)
    torch.testing.assert_close(ours.text.read(ids, real)[real], cosines.question_embeds[real], **close)
    torch.testing.assert_close(
        ours.text.read(ids, real, memory)[real], matching.question_embeds[real], **close
    )
    torch.testing.assert_close(ours.itm_logits(ids, real, memory), matching.itm_score, **close)
    ours_itc = ours.image_features(states) @ ours.text_features(ids, real).T
    torch.testing.assert_close(ours_itc, cosines.itm_score, **close)
    # The numbers above are worth comparing: they differ from row to row by much more than is allowed.
    assert matching.itm_score.std(0).min() > 0.05
    assert ours_itc.std() > 0.05


@pytest.mark.parametrize("dtype", WITHIN)
@torch.no_grad()
def test_the_decoders_logits_are_those_of_transformers(
    their_writer,
    writer: MED,
    dtype: torch.dtype,
) -> None:
    theirs, ours = their_writer.to(dtype), writer.to(dtype)
    ids, real = texts()
    expected = theirs(pixel_values=pixels(dtype), input_ids=ids, attention_mask=real.long()).logits
    logits = ours.lm_logits(ids, ours.memory(ours.encode_image(pixels(dtype))))
    torch.testing.assert_close(logits[real], expected[real], atol=WITHIN[dtype], rtol=0.0)
    others = ours.lm_logits(ids, ours.memory(ours.encode_image(pixels(dtype).flip(0))))
    assert (logits - others)[real].abs().mean() > 0.01  # the picture is looked at


@torch.no_grad()
def test_several_texts_of_one_image_read_as_they_would_alone(matcher: MED) -> None:
    ours = matcher.double()
    ids, real = texts()
    states = ours.encode_image(pixels(torch.float64, 2))
    together = ours.itm_logits(ids, real, ours.memory(states))
    alone = [
        ours.itm_logits(ids[row : row + 1], real[row : row + 1], ours.memory(states[row // 3 : row // 3 + 1]))
        for row in range(6)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-12, rtol=0.0)


@torch.no_grad()
def test_a_memory_that_is_picked_apart_is_that_of_the_images_picked(matcher: MED) -> None:
    ours = matcher.double()
    ids, real = texts()
    states = ours.encode_image(pixels(torch.float64))
    order = torch.tensor([5, 5, 0, 2, 1, 0])
    picked = [layer.take(order) for layer in ours.memory(states)]
    expected = ours.itm_logits(ids, real, ours.memory(states[order]))
    torch.testing.assert_close(ours.itm_logits(ids, real, picked), expected, atol=1e-12, rtol=0.0)


@torch.no_grad()
def test_padding_changes_nothing(matcher: MED, writer: MED) -> None:
    ids, real = texts()
    wide_ids, wide_real = torch.nn.functional.pad(ids, (0, 5)), torch.nn.functional.pad(real, (0, 5))
    matcher, writer = matcher.double(), writer.double()
    narrow = matcher.text_features(ids, real)
    torch.testing.assert_close(matcher.text_features(wide_ids, wide_real), narrow, atol=1e-12, rtol=0.0)
    memory = writer.memory(writer.encode_image(pixels(torch.float64)))
    logits = writer.lm_logits(ids, memory)
    torch.testing.assert_close(writer.lm_logits(wide_ids, memory)[:, :12], logits, atol=1e-12, rtol=0.0)


@torch.no_grad()
def test_steps_over_cached_states_give_the_logits_of_the_whole_text(writer: MED) -> None:
    ours = writer.double()
    ids, _ = texts()
    memory = ours.memory(ours.encode_image(pixels(torch.float64)))
    writing = Writing(ours, memory, 16)
    steps = [writing.next_logits(ids[:, :4])]
    steps += [writing.next_logits(ids[:, n : n + 1]) for n in range(4, 12)]
    whole = ours.lm_logits(ids, memory)[:, 3:]
    torch.testing.assert_close(torch.stack(steps, 1), whole, atol=1e-12, rtol=0.0)


@torch.no_grad()
def test_reordered_caches_go_on_with_the_rows_they_were_given(writer: MED) -> None:
    ours = writer.double()
    ids, _ = texts()
    order = torch.tensor([3, 0, 0, 5, 1, 2])
    image = ours.encode_image(pixels(torch.float64, 1))
    memory = ours.memory(image)
    writing = Writing(ours, memory, 16)
    writing.next_logits(ids[:, :6])
    writing.reorder(order)
    step = writing.next_logits(ids[:, 6:7])
    whole = ours.lm_logits(torch.cat([ids[order, :6], ids[:, 6:7]], 1), memory)[:, -1]
    torch.testing.assert_close(step, whole, atol=1e-12, rtol=0.0)


def test_dropout_acts_in_training_alone(writer: MED) -> None:
    ids, _ = texts()
    memory = writer.memory(writer.encode_image(pixels(torch.float32)))
    assert torch.equal(writer.lm_logits(ids, memory), writer.lm_logits(ids, memory))
    writer.train()
    assert not torch.equal(writer.lm_logits(ids, memory), writer.lm_logits(ids, memory))
