"""Beam search against transformers, against lists of captions, and against all captions there are."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import enlarge
from tables import END, Table

from capfilt.models.decoding import beam, scored_beam
from capfilt.settings import SettledDecoding

if TYPE_CHECKING:
    from torch import Tensor

Counts = Literal["generated", "whole"]
Caption = tuple[int, ...]
conventions = pytest.mark.parametrize("counts", ["generated", "whole"])


def deciding(counts: Counts, **choices: float) -> SettledDecoding:
    return SettledDecoding.model_validate({"method": "beam", "length_counts": counts, **choices})


def trimmed(row: list[int], end: int = END) -> Caption:
    """A caption up to its end, which belongs to it."""
    return tuple(row[: row.index(end) + 1]) if end in row else tuple(row)


def searched(
    table: Table, starts: list[Caption], decoding: SettledDecoding
) -> tuple[list[Caption], list[float]]:
    ids, scores = scored_beam(table.next_logits, table.reorder, torch.tensor(starts), decoding, END)
    return [trimmed(row) for row in ids.tolist()], scores.tolist()


def log_probabilities(
    table: Table, beginning: Caption, position: int, decoding: SettledDecoding
) -> list[float]:
    """Of each next token, the repetition penalty on them, and the end kept out of reach."""
    values = table.after(beginning)
    total = math.log(sum(math.exp(value) for value in values))
    found = [value - total for value in values]
    for seen in set(beginning):
        found[seen] *= decoding.repetition_penalty
    if position < decoding.min_tokens:
        found[END] = -math.inf
    return found


# -- against transformers 5

WORDS, SEP, DEC = 61, 3, 59


class TheirDecoder:
    """The decoder of transformers as a model of ours; it reads the whole caption anew at every token."""

    def __init__(self, model, states: Tensor) -> None:
        self.model, self.states = model, states
        self.ids: Tensor | None = None

    def next_logits(self, new: Tensor) -> Tensor:
        self.ids = new if self.ids is None else torch.cat([self.ids, new], 1)
        each = len(self.ids) // len(self.states)
        out = self.model(
            input_ids=self.ids,
            encoder_hidden_states=self.states.repeat_interleave(each, 0),
            use_cache=False,
        )
        return out.logits[:, -1]

    def reorder(self, rows: Tensor) -> None:
        assert self.ids is not None
        self.ids = self.ids[rows]


@pytest.fixture(scope="module")
def theirs():
    from transformers import BlipConfig, BlipForConditionalGeneration

    vision = {
        "hidden_size": 40,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 24,
        "patch_size": 8,
        "initializer_range": 0.1,  # its default is 1e-10: every picture would get the same caption
    }
    text = {
        "vocab_size": WORDS,
        "hidden_size": 48,
        "encoder_hidden_size": 40,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
        "bos_token_id": DEC,
        "sep_token_id": SEP,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = BlipConfig(vision_config=vision, text_config=text, initializer_range=0.1)
    model = BlipForConditionalGeneration(config)
    enlarge(model, seed=5)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[SEP] += 2  # or hardly a caption ends
    return model.eval()


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randn(32, 3, 24, 24, generator=torch.Generator().manual_seed(6)) * 2


@pytest.mark.parametrize(
    "choices",
    [
        {"length_penalty": 0.5},
        {"length_penalty": 1.0},
        {"length_penalty": 2.0},
        {"length_penalty": 0.5, "repetition_penalty": 1.3},
        {"length_penalty": 1.0, "repetition_penalty": 1.3},
        {"length_penalty": 2.0, "repetition_penalty": 1.3},
        {"length_penalty": 1.0, "repetition_penalty": 1.3, "min_tokens": 5, "max_tokens": 9},
        {"length_penalty": 2.0, "min_tokens": 0, "max_tokens": 4},
        {"length_penalty": -1.0, "min_tokens": 3, "beams": 5},
    ],
    ids=lambda choices: " ".join(f"{name}={value}" for name, value in choices.items()),
)
@torch.no_grad()
def test_captions_and_scores_are_those_of_transformers(
    theirs, photos: Tensor, choices: dict[str, float]
) -> None:
    decoding = deciding("generated", **{"min_tokens": 1, "max_tokens": 10, **choices})
    start = torch.tensor([[DEC, 7, 11]]).expand(len(photos), -1)
    expected = theirs.generate(
        photos,
        input_ids=torch.cat([start, start[:, :1]], 1),  # it takes the last one away
        num_beams=decoding.beams,
        do_sample=False,
        min_new_tokens=decoding.min_tokens,
        max_new_tokens=decoding.max_tokens,
        length_penalty=decoding.length_penalty,
        repetition_penalty=decoding.repetition_penalty,
        output_scores=True,
        return_dict_in_generate=True,
    )
    decoder = TheirDecoder(theirs.text_decoder, theirs.vision_model(photos)[0])
    ids, scores = scored_beam(decoder.next_logits, decoder.reorder, start, decoding, SEP)
    captions = [trimmed(row, SEP) for row in ids.tolist()]
    assert captions == [trimmed(row, SEP) for row in expected.sequences[:, 3:].tolist()]
    torch.testing.assert_close(scores, expected.sequences_scores, atol=1e-5, rtol=1e-6)
    assert len(set(captions)) > 8  # the pictures matter


@torch.no_grad()
def test_the_two_conventions_choose_other_captions(theirs, photos: Tensor) -> None:
    found = []
    for counts in ("generated", "whole"):
        decoder = TheirDecoder(theirs.text_decoder, theirs.vision_model(photos)[0])
        start = torch.tensor([[DEC, 7, 11]]).expand(len(photos), -1)
        decoding = deciding(counts, min_tokens=1, max_tokens=10)
        ids = beam(decoder.next_logits, decoder.reorder, start, decoding, SEP)
        found.append([trimmed(row, SEP) for row in ids.tolist()])
    assert found[0] != found[1]
    assert all(len({len(caption) for caption in captions}) > 2 for captions in found)


# -- against lists of captions, the way of the released code


def by_lists(table: Table, start: Caption, decoding: SettledDecoding) -> tuple[Caption, float]:
    """Search for one row with lists, as transformers 4.15 does, with which BLIP was released."""
    beams, kept, is_done = decoding.beams, [], False  # kept: (score, caption)

    def keep(caption: Caption, total: float, length: int) -> None:
        score = total / length**decoding.length_penalty
        if len(kept) < beams or score > min(kept)[0]:
            kept.append((score, caption))
        if len(kept) > beams:
            kept.remove(min(kept))

    running: list[tuple[float, Caption]] = [(0.0, ())]
    for position in range(decoding.max_tokens):
        ahead = sorted(
            (
                (total + value, (*caption, token))
                for total, caption in running
                for token, value in enumerate(log_probabilities(table, start + caption, position, decoding))
            ),
            reverse=True,
        )[: 2 * beams]
        length = len(start) + position
        for total, caption in ahead[:beams]:
            if caption[-1] == END:
                keep(caption, total, length)
        running = [candidate for candidate in ahead if candidate[1][-1] != END][:beams]
        is_done = len(kept) == beams and min(kept)[0] >= ahead[0][0] / length**decoding.length_penalty
        if is_done:
            break
    if not is_done:
        for total, caption in running:
            keep(caption, total, len(start) + decoding.max_tokens)
    score, caption = max(kept)
    return caption, score


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from([-1.0, 0.0, 0.6, 1.0, 1.5]),
    st.sampled_from([1.0, 1.4]),
    st.sampled_from([1.0, 4.0]),
)
def test_lengths_counted_whole_give_the_captions_and_scores_of_the_released_code(
    seed: int,
    beams: int,
    least: int,
    length_penalty: float,
    repetition_penalty: float,
    spread: float,
) -> None:
    decoding = deciding(
        "whole",
        beams=beams,
        min_tokens=least,
        max_tokens=5,
        length_penalty=length_penalty,
        repetition_penalty=repetition_penalty,
    )
    starts = [(1, 2), (3, 1), (2, 2), (6, 5)]
    captions, scores = searched(Table(7, seed, spread), starts, decoding)
    expected = [by_lists(Table(7, seed, spread), start, decoding) for start in starts]
    assert captions == [caption for caption, _ in expected]
    assert scores == pytest.approx([score for _, score in expected], abs=1e-9)


# -- against all captions there are


def all_captions(vocabulary: int, longest: int) -> list[Caption]:
    """Return every caption: words and then the end, or `longest` words without one."""
    words = range(1, vocabulary)
    ended = [(*body, END) for length in range(longest) for body in itertools.product(words, repeat=length)]
    return ended + list(itertools.product(words, repeat=longest))


def score(table: Table, start: Caption, caption: Caption, decoding: SettledDecoding) -> float:
    """Return the sum of a caption's log-probabilities by its length to the length penalty's power."""
    total = 0.0
    for position, token in enumerate(caption):
        beginning = start + caption[:position]
        total += log_probabilities(table, beginning, position, decoding)[token]
    whole = len(start) + len(caption) - (END in caption)
    length = whole if decoding.length_counts == "whole" else len(caption)
    return float(total / length**decoding.length_penalty)


@conventions
@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.6, 1.0, 1.5]),
    st.sampled_from([1.0, 1.4]),
)
def test_with_enough_beams_the_search_finds_the_best_caption_of_all(
    counts: Counts, seed: int, longest: int, least: int, length_penalty: float, repetition_penalty: float
) -> None:
    decoding = deciding(
        counts,
        beams=3**3,
        max_tokens=longest,
        min_tokens=min(least, longest),
        length_penalty=length_penalty,
        repetition_penalty=repetition_penalty,
    )
    starts = [(1, 2), (3, 1), (2, 2)]
    captions, scores = searched(Table(4, seed), starts, decoding)
    table = Table(4, seed)
    for start, caption, found in zip(starts, captions, scores, strict=True):
        best = {other: score(table, start, other, decoding) for other in all_captions(4, longest)}
        assert found == pytest.approx(best[caption], abs=1e-9)
        assert found == pytest.approx(max(best.values()), abs=1e-9)


@conventions
def test_few_beams_find_captions_that_exist_and_none_that_beats_the_best(counts: Counts) -> None:
    found_best = 0
    for seed in range(40):
        decoding = deciding(counts, beams=2, max_tokens=4, min_tokens=1)
        (caption,), (found,) = searched(Table(4, seed), [(3,)], decoding)
        table = Table(4, seed)
        scores = {other: score(table, (3,), other, decoding) for other in all_captions(4, 4)}
        assert found == pytest.approx(scores[caption], abs=1e-9)
        assert -math.inf < found <= max(scores.values()) + 1e-9
        found_best += found >= max(scores.values()) - 1e-9
    assert found_best >= 20


@conventions
def test_rows_of_a_beam_search_do_not_depend_on_each_other(counts: Counts) -> None:
    decoding = deciding(counts, beams=3, max_tokens=5, min_tokens=1)
    starts = list(itertools.product(range(1, 5), repeat=2))[:8]
    together, scores = searched(Table(5, 1), starts, decoding)
    alone = [searched(Table(5, 1), [start], decoding) for start in starts]
    assert together == [captions[0] for captions, _ in alone]
    assert scores == [numbers[0] for _, numbers in alone]
    assert len(set(together)) > 1


class Ends(Table):
    """Two words and then the end, whatever was before."""

    def after(self, beginning: Caption) -> list[float]:
        return [9.0, 0.0, 0.0] if len(beginning) >= 3 else [0.0, 9.0, 0.0]


@conventions
def test_a_short_caption_is_filled_up_with_the_end(counts: Counts) -> None:
    table = Ends(3, 0)
    decoding = deciding(counts, beams=2, max_tokens=5, min_tokens=0)
    ids = beam(table.next_logits, table.reorder, torch.tensor([[2]]), decoding, END)
    assert ids.tolist() == [[1, 1, END, END, END]]


@conventions
def test_the_search_stops_when_no_row_takes_another_caption(counts: Counts) -> None:
    table = Ends(3, 0)
    decoding = deciding(counts, beams=2, max_tokens=30, min_tokens=0)
    ids = beam(table.next_logits, table.reorder, torch.tensor([[2], [1]]), decoding, END)
    assert ids.tolist() == [[1, 1] + [END] * 28] * 2
    assert table.calls < 6
