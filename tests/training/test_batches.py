from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from trainings import TINY, batches, drawn_pairs, same_pairs, words_of

from capfilt.data.images import normalise, to_square
from capfilt.draws import permutation
from capfilt.settings import Augment
from capfilt.training.batches import PairBatches

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.data.clean import CleanSet
    from capfilt.training.objectives import Batch


def test_the_same_pixels_come_with_and_without_the_cache(pairs: CleanSet, tmp_path: Path) -> None:
    read_again = drawn_pairs(tmp_path, 29, cache_mb=0)
    assert read_again.pairs[3].text == pairs.pairs[3].text
    vocabulary = words_of(pairs)
    rows = [28, 0, 17, 5]

    kept = batches(pairs, range(29), vocabulary).rows(rows)
    read = batches(read_again, range(29), vocabulary).rows(rows)

    expected = np.stack([to_square(read_again.picture(row), TINY.images) for row in rows])
    assert torch.equal(kept.pixels, read.pixels)
    assert torch.equal(kept.pixels, normalise(torch.from_numpy(expected), TINY.images))
    assert kept.pixels.shape == (4, 3, 16, 16)


def test_an_epoch_is_the_permutation_of_its_key_and_sees_every_pair_once(pairs: CleanSet) -> None:
    some = list(range(3, 29))
    made = batches(pairs, some, words_of(pairs))

    for epoch in (0, 1, 2):
        seen = [
            row
            for position in range(made.steps_in_epoch(8))
            for row in _images(made.at(epoch * 4 + position, 8, 1, 11, "joint", 0), pairs)
        ]
        order = permutation(26, "epoch", 11, "joint", 0, epoch)
        assert seen == [pairs.pairs[some[row]].image_sha256 for row in order]
        assert Counter(seen) == Counter(pairs.pairs[index].image_sha256 for index in some)


def test_epochs_and_seeds_differ_in_their_order(pairs: CleanSet) -> None:
    made = batches(pairs, range(29), words_of(pairs))

    orders = {
        tuple(_images(made.at(step, 29, 1, seed, "joint", phase), pairs))
        for step in (0, 1)
        for seed in (0, 1)
        for phase in (0, 1)
    }

    assert len(orders) == 8


def test_the_last_batch_of_an_epoch_holds_what_is_left(pairs: CleanSet) -> None:
    made = batches(pairs, range(29), words_of(pairs))

    sizes = [len(made.at(step, 8, 1, 0).ids) for step in range(8)]

    assert sizes == [8, 8, 8, 5, 8, 8, 8, 5]
    assert made.steps_in_epoch(8) == 4
    assert made.steps_in_epoch(29) == made.steps_in_epoch(1000) == 1


def test_ids_are_cut_to_the_longest_text_of_the_batch(pairs: CleanSet) -> None:
    vocabulary = words_of(pairs)
    made = batches(pairs, range(29), vocabulary)
    lengths = [
        len(vocabulary.prompt(pair.text)) + 1  # [DEC] stands where [CLS] does, and [SEP] follows
        for pair in pairs.pairs
    ]

    for rows in ([int(np.argmin(lengths))], [0, 1, 2], [int(np.argmax(lengths)), 0]):
        batch = made.rows(rows)
        most = min(TINY.text.max_tokens, max(lengths[row] for row in rows))
        assert batch.ids.shape == batch.real.shape == (len(rows), most)
        assert batch.real.sum(1).tolist() == [min(TINY.text.max_tokens, lengths[row]) for row in rows]
        assert (batch.ids[:, 0] == vocabulary.cls).all()


def test_pairs_with_an_equal_image_or_caption_are_the_same(pairs: CleanSet) -> None:
    batch = batches(pairs, range(29), words_of(pairs)).rows(range(29))

    expected = [
        [a.image_sha256 == b.image_sha256 or a.text.split() == b.text.split() for b in pairs.pairs]
        for a in pairs.pairs
    ]

    assert same_pairs(batch).tolist() == expected
    assert sum(map(sum, expected)) > 29, "no caption is drawn twice, so nothing is tested"


def test_a_shard_that_changes_under_a_training_is_an_error_with_its_mend(tmp_path: Path) -> None:
    from capfilt.errors import CapfiltError

    pairs = drawn_pairs(tmp_path, 6, cache_mb=0)
    shard = pairs.pairs[0].path
    shard.write_bytes(bytes(shard.stat().st_size))

    with pytest.raises(CapfiltError, match="changed while it was read") as caught:
        batches(pairs, range(6), words_of(pairs)).rows([2])

    assert "same command again" in caught.value.fix


def _images(batch: Batch, pairs: CleanSet) -> list[str]:
    """Which pictures a batch holds, found by their pixels."""
    known = {
        normalise(torch.from_numpy(pairs.squares([index], TINY.images)[0]), TINY.images)
        .numpy()
        .tobytes(): pairs.pairs[index].image_sha256
        for index in range(len(pairs.pairs))
    }
    return [known[pixels.numpy().tobytes()] for pixels in batch.pixels]


def test_pictures_of_a_step_are_varied_by_its_key_and_measured_ones_are_not(pairs: CleanSet) -> None:
    vocabulary = words_of(pairs)
    crops = Augment(crop_least=0.3, flip=0.5)
    plain, varied = (
        PairBatches(
            pairs,
            range(29),
            vocabulary=vocabulary,
            images=TINY.images,
            max_tokens=TINY.text.max_tokens,
            device=torch.device("cpu"),
            augment=augment,
        )
        for augment in (None, crops)
    )
    first, again, other = (
        varied.at(step, 29, 1, seed, "joint", 0) for step, seed in ((0, 1), (0, 1), (0, 2))
    )

    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.ids, plain.at(0, 29, 1, 1, "joint", 0).ids)
    unvaried = plain.at(0, 29, 1, 1, "joint", 0).pixels
    assert (first.pixels != unvaried).flatten(1).any(1).sum() > 20
    assert not torch.equal(first.pixels, other.pixels)
    assert torch.equal(varied.rows(range(29)).pixels, plain.rows(range(29)).pixels)
