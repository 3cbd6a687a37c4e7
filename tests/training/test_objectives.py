from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional as F
from trainings import ALL, TINY, batches, phase, same_pairs, words_of

from capfilt.models.losses import draw_hard_negatives, itc_loss
from capfilt.models.med import MED
from capfilt.training import objectives
from capfilt.training.objectives import Batch, Setting, step_losses, with_first

if TYPE_CHECKING:
    from capfilt.data.clean import CleanSet
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.training.objectives import Losses


@pytest.fixture(scope="module")
def vocabulary(pairs: CleanSet) -> Vocabulary:
    return words_of(pairs)


@pytest.fixture
def model(vocabulary: Vocabulary) -> MED:
    torch.manual_seed(1)
    model = MED(TINY, len(vocabulary), ALL).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    return model


def _losses(model: MED, vocabulary: Vocabulary, batch: Batch, *, step: int = 0) -> Losses:
    return step_losses(model, vocabulary, batch, phase(), Setting(with_itm=True, key=(0, "joint", 0, step)))


def _positives_alone(model: MED, vocabulary: Vocabulary, batch: Batch) -> torch.Tensor:
    """ITM of the right pairs and of nothing else, worked out without the code under test."""
    memory = model.memory(model.encode_image(batch.pixels))
    logits = model.itm_logits(with_first(batch.ids, vocabulary.enc), batch.real, memory)
    return -F.log_softmax(logits, dim=1)[:, 1].mean()


def test_a_batch_of_one_has_no_itc_and_the_itm_of_its_only_pair(
    pairs: CleanSet, model: MED, vocabulary: Vocabulary
) -> None:
    batch = batches(pairs, range(29), vocabulary).rows([4])

    losses = _losses(model, vocabulary, batch)
    losses.total.backward()

    assert losses.parts["itc"] == 0
    assert losses.negatives == 0
    torch.testing.assert_close(losses.parts["itm"], _positives_alone(model, vocabulary, batch).detach())
    gradients = [weights.grad for weights in model.parameters() if weights.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_where_all_captions_are_equal_itm_is_that_of_the_positives_alone(
    pairs: CleanSet, model: MED, vocabulary: Vocabulary
) -> None:
    drawn = batches(pairs, range(29), vocabulary).rows([0, 1, 2, 3])
    equal = Batch(
        pixels=drawn.pixels,
        ids=drawn.ids[:1].expand(4, -1),
        real=drawn.real[:1].expand(4, -1),
        image_ids=torch.arange(4),
        caption_ids=torch.zeros(4, dtype=torch.int64),
    )

    losses = _losses(model, vocabulary, equal)

    assert losses.negatives == 0
    torch.testing.assert_close(losses.parts["itm"], _positives_alone(model, vocabulary, equal).detach())
    assert losses.parts["itm"] != _losses(model, vocabulary, drawn).parts["itm"]


def test_a_pair_with_nobody_to_be_confused_with_does_not_spoil_the_others(
    pairs: CleanSet, model: MED, vocabulary: Vocabulary
) -> None:
    batch = batches(pairs, range(29), vocabulary).rows([0, 1, 2])
    # The first pair is like both others, which differ: only these two can serve each other.
    images_alike, captions_alike = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])

    losses = _losses(
        model, vocabulary, Batch(batch.pixels, batch.ids, batch.real, images_alike, captions_alike)
    )

    memory = model.memory(model.encode_image(batch.pixels))
    images, texts = torch.tensor([0, 1, 2, 2, 1, 1, 2]), torch.tensor([0, 1, 2, 1, 2, 2, 1])
    logits = model.itm_logits(
        with_first(batch.ids, vocabulary.enc)[texts],
        batch.real[texts],
        [layer.take(images) for layer in memory],
    )
    expected = F.cross_entropy(logits, torch.tensor([1, 1, 1, 0, 0, 0, 0]))
    assert losses.negatives == 4
    torch.testing.assert_close(losses.parts["itm"], expected.detach())


def test_negatives_are_drawn_by_the_key_and_never_right(
    pairs: CleanSet, model: MED, vocabulary: Vocabulary
) -> None:
    batch = batches(pairs, range(29), vocabulary).rows(range(8))

    first, again, later = (_losses(model, vocabulary, batch, step=step) for step in (0, 0, 1))

    assert first.parts["itm"] == again.parts["itm"]
    assert first.parts["itm"] != later.parts["itm"]
    assert first.negatives == 16


def test_the_total_is_the_weighted_sum_and_zero_leaves_a_loss_out(
    pairs: CleanSet, model: MED, vocabulary: Vocabulary
) -> None:
    batch = batches(pairs, range(29), vocabulary).rows(range(6))
    weighted = phase(itc=0.5, itm=2.0, lm=3.0)

    losses = step_losses(model, vocabulary, batch, weighted, Setting(with_itm=True, key=(0,)))
    alone = step_losses(model, vocabulary, batch, phase(itc=0, itm=0), Setting(with_itm=False, key=(0,)))

    parts = losses.parts
    torch.testing.assert_close(losses.total.detach(), 0.5 * parts["itc"] + 2 * parts["itm"] + 3 * parts["lm"])
    assert set(alone.parts) == {"lm"}
    assert alone.negatives is None
    torch.testing.assert_close(alone.parts["lm"], parts["lm"])


def test_itc_of_a_step_is_that_of_the_features(pairs: CleanSet, model: MED, vocabulary: Vocabulary) -> None:
    batch = batches(pairs, range(29), vocabulary).rows(range(7))

    losses = _losses(model, vocabulary, batch)

    images = model.image_features(model.encode_image(batch.pixels))
    texts = model.text_features(batch.ids, batch.real)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(
        losses.parts["itc"], itc_loss(images @ texts.T, same_pairs(batch), model.temperature).detach()
    )


def test_by_chance_every_wrong_pair_is_equally_likely_a_negative(
    pairs: CleanSet, model: MED, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batches(pairs, range(29), vocabulary).rows(range(8))
    drawn: list[torch.Tensor] = []

    def remembered(*arguments: torch.Tensor) -> torch.Tensor:
        drawn.append(draw_hard_negatives(*arguments))
        return drawn[-1]

    monkeypatch.setattr(objectives, "draw_hard_negatives", remembered)
    for step in range(200):
        setting = Setting(with_itm=True, key=("chance", step))
        with torch.no_grad():
            step_losses(model, vocabulary, batch, phase(lm=0, negatives_by="chance"), setting)

    wrong = ~same_pairs(batch)
    assert wrong.sum() > 40
    for row in range(8):
        columns = torch.stack([one[row] for one in drawn])
        counts = torch.bincount(columns, minlength=8)
        assert counts[~wrong[row]].sum() == 0
        expected = len(drawn) / int(wrong[row].sum())
        # Six standard deviations of a count: a column that is favoured, or never drawn, lies far outside.
        assert (counts[wrong[row]] - expected).abs().max() < 6 * expected**0.5
