from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from steps import PLAIN, SIZE, Words, double_model, double_momentum, joint_phase, random_batch

from capfilt.models.med import MED
from capfilt.settings import Vision
from capfilt.training.momentum import NOBODY, Momentum, Queue
from capfilt.training.objectives import Batch, Setting, step_losses

if TYPE_CHECKING:
    from torch import Tensor

WORDS: Any = Words()
CONVOLUTIONAL = PLAIN.model_copy(
    update={"vision": Vision(patch_px=2, width=16, layers=1, heads=2, stem="convolution")}
)


# -- the queue


@settings(max_examples=60)
@given(st.integers(0, 9), st.lists(st.integers(1, 12), max_size=6))
def test_the_queue_holds_the_newest_pairs_whatever_divides_what(length: int, batches: list[int]) -> None:
    queue, newest = Queue(length, 1, torch.device("cpu")), deque[int](maxlen=length)
    met = 0
    for rows in batches:
        numbers = torch.arange(met, met + rows)
        queue.add(numbers[:, None] / 4, -numbers[:, None] / 4, numbers, 1000 + numbers)
        newest.extend(numbers.tolist())
        met += rows

        held = slice(queue.filled)
        assert queue.filled == len(newest)
        assert sorted(queue.image_ids[held].tolist()) == list(newest)
        assert (queue.images[held, 0] * 4).tolist() == queue.image_ids[held].tolist()
        assert (queue.texts[held, 0] * -4).tolist() == queue.image_ids[held].tolist()
        assert (queue.caption_ids[held] - 1000).tolist() == queue.image_ids[held].tolist()
        assert (queue.image_ids[queue.filled :] == NOBODY).all()


def test_the_writing_place_wraps_within_a_batch() -> None:
    queue = Queue(7, 1, torch.device("cpu"))
    for first in (0, 3, 6):
        ids = torch.arange(first, first + 3)
        queue.add(ids[:, None], ids[:, None], ids, ids)
    assert queue.image_ids.tolist() == [7, 8, 2, 3, 4, 5, 6]


def test_a_queue_that_is_taken_up_goes_on_where_it_stopped() -> None:
    model = double_model()
    whole, cut = (Momentum(model, keep=0.9, queue=5) for _ in range(2))
    for number in range(4):
        batch = random_batch(3, number)
        for momentum in (whole, cut):
            features = momentum.features(batch.pixels, batch.ids, batch.real)
            momentum.queue.add(*features, batch.image_ids, batch.caption_ids)
        if number == 1:
            again = Momentum(double_model(seed=3), keep=0.9, queue=5)
            again.load_state_dict(cut.state_dict())
            cut = again

    assert whole.queue.seen == cut.queue.seen == 12
    for name, mine in whole.queue.named_buffers():
        assert torch.equal(mine, cut.queue.get_buffer(name)), name
    assert whole.queue.filled == cut.queue.filled == 5


# -- the encoder


def test_the_copy_has_what_the_features_need_and_nothing_else() -> None:
    model = double_model()
    momentum = Momentum(model, keep=0.995, queue=0)
    names = {name for name, _ in momentum.encoder.named_parameters()}

    assert not [n for n in names if "cross" in n or "decoder" in n or "head" in n]
    assert names < {name for name, _ in model.named_parameters()}
    batch = random_batch(4, 0)
    images, texts = momentum.features(batch.pixels, batch.ids, batch.real)
    assert torch.equal(images, model.image_features(model.encode_image(batch.pixels)))
    assert torch.equal(texts, model.text_features(batch.ids, batch.real))
    own = {weights.data_ptr() for weights in model.parameters()}
    assert not own & {weights.data_ptr() for weights in momentum.encoder.parameters()}


def test_a_fresh_copy_sees_a_batch_as_the_model_in_training_does() -> None:
    """With a convolutional stem a picture's features depend on the batch it is normalised in."""
    model = MED(CONVOLUTIONAL, SIZE, ["itc"]).double().train()
    momentum = Momentum(model, keep=0.995, queue=0)
    batch = random_batch(40, 0)  # of 64 patches each, more than are computed at once for captions

    images, _ = momentum.features(batch.pixels, batch.ids, batch.real)

    expected = model.image_features(model.encode_image(batch.pixels))
    torch.testing.assert_close(images, expected.detach(), atol=1e-12, rtol=0)


def test_the_copy_of_an_image_encoder_that_is_kept_sees_a_picture_as_that_does() -> None:
    """Not by the batch it stands in: the trainer keeps such an encoder out of training mode."""
    model = MED(CONVOLUTIONAL, SIZE, ["itc"]).double().train()
    model.encode_image(random_batch(8, 1).pixels)  # the statistics are not those of a new encoder
    model.image.eval()
    momentum = Momentum(model, keep=0.995, queue=0)
    batch = random_batch(5, 2)

    momentum.follow(model)
    images, _ = momentum.features(batch.pixels, batch.ids, batch.real)

    expected = model.image_features(model.encode_image(batch.pixels))
    torch.testing.assert_close(images, expected.detach(), atol=1e-12, rtol=0)


def test_no_gradient_reaches_the_momentum_encoder_or_the_queue() -> None:
    model = double_model()
    momentum = double_momentum(model, queue=4)
    phase = joint_phase(momentum=0.9, queue=4, alpha=0.4, negatives_by="momentum")
    for number in range(2):
        setting = Setting(with_itm=True, key=(number,), momentum=momentum, alpha=0.4)
        losses = step_losses(model, WORDS, random_batch(3, number), phase, setting)
        losses.total.backward()

    assert all(weights.grad is None for weights in momentum.encoder.parameters())
    assert not momentum.queue.images.requires_grad
    assert not momentum.queue.texts.requires_grad
    assert all(weights.grad is not None for weights in model.parameters())


def test_the_copy_follows_in_fp32_what_bf16_could_not() -> None:
    torch.manual_seed(0)
    model = MED(PLAIN, SIZE, ["itc", "itm", "lm"]).train()
    momentum = Momentum(model, keep=0.995, queue=6)
    before = [weights.detach().clone() for weights in momentum.encoder.parameters()]
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1 + 2**-8)
    trained = dict(model.named_parameters())
    expected = [
        0.995 * old + 0.005 * trained[name].detach()
        for (name, _), old in zip(momentum.encoder.named_parameters(), before, strict=True)
    ]

    batch = _single(random_batch(4, 0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        momentum.follow(model)
        phase = joint_phase(momentum=0.995, queue=6, alpha=0.4)
        losses = step_losses(model, WORDS, batch, phase, Setting(True, ("bf16",), momentum=momentum))
    losses.total.backward()

    for (name, weights), old, new in zip(momentum.encoder.named_parameters(), before, expected, strict=True):
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.detach(), new, rtol=3e-7, atol=0)
        if old.any():  # biases begin at nothing, and stay there
            assert not torch.equal(weights, old)
            narrow = torch.lerp(old.bfloat16(), trained[name].detach().bfloat16(), 0.005)
            assert torch.equal(narrow, old.bfloat16()), "bf16 would do, and this tests nothing"
    assert momentum.queue.images.dtype == torch.float32
    assert losses.total.isfinite()
    assert losses.parts["itc"].dtype == torch.float32


def _single(batch: Batch) -> Batch:
    pixels: Tensor = batch.pixels.float()
    return Batch(pixels, batch.ids, batch.real, batch.image_ids, batch.caption_ids)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.995])
def test_following_again_and_again_ends_at_the_model(keep: float) -> None:
    model = double_model()
    momentum = double_momentum(model, keep=keep)
    trained = dict(model.named_parameters())

    def distance() -> float:
        return max(
            float((weights - trained[name].detach()).abs().max())
            for name, weights in momentum.encoder.named_parameters()
        )

    first = distance()
    for _ in range(3):
        momentum.follow(model)
    assert distance() == pytest.approx(first * keep**3, abs=1e-12)
