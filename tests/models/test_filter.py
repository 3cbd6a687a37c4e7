"""A pair's scores are its own: whatever else is in the batch, they are the same to 1e-5."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from small_models import SMALL, WORDS, part, pictures, small_bundle

from capfilt.data.images import normalise
from capfilt.models.filter import MedFilter

if TYPE_CHECKING:
    from capfilt.models.cards import Objective
    from capfilt.models.protocols import ImageBatch
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.records import Scores

PICTURES = 130
TEXTS = [
    "",
    "a cat",
    "dogs run slowly on the table",
    WORDS[0],
    "[SEP] \x00",
    "table " * 40,
    "λόγος",
    "the red square",
]


def a_filter(vocabulary: Vocabulary, objectives: list[Objective]) -> MedFilter:
    bundle = small_bundle(Path("nowhere"), "filter", objectives, vocabulary)
    return MedFilter(bundle, torch.device("cpu"))


@pytest.fixture(scope="module")
def scorer(vocabulary: Vocabulary) -> MedFilter:
    return a_filter(vocabulary, ["itc", "itm"])


@pytest.fixture(scope="module")
def batch() -> ImageBatch:
    return pictures(PICTURES)


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """None to four texts a picture."""
    return [[TEXTS[(n * 5 + k * 3) % len(TEXTS)] for k in range(n % 5)] for n in range(PICTURES)]


def in_batches_of(
    size: int, scorer: MedFilter, batch: ImageBatch, texts: list[list[str]]
) -> list[list[Scores]]:
    found: list[list[Scores]] = []
    for start in range(0, PICTURES, size):
        rows = range(start, min(start + size, PICTURES))
        found += scorer.score(part(batch, rows), [texts[row] for row in rows])
    return found


@pytest.mark.parametrize("size", [7, 64])
def test_scores_do_not_depend_on_the_batch(
    scorer: MedFilter, batch: ImageBatch, texts: list[list[str]], size: int
) -> None:
    alone = in_batches_of(1, scorer, batch, texts)
    together = in_batches_of(size, scorer, batch, texts)
    assert [len(mine) for mine in together] == [len(mine) for mine in texts]
    for ours, theirs in zip(together, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.itc == pytest.approx(other.itc, abs=1e-5)
            assert one.itm == pytest.approx(other.itm, abs=1e-5)
    spread = torch.tensor([[score.itc, score.itm] for mine in alone for score in mine])
    assert spread.std(0).min() > 0.05  # or nothing was compared


def test_scores_are_those_of_each_pair_through_the_model_alone(
    scorer: MedFilter, batch: ImageBatch, texts: list[list[str]], vocabulary: Vocabulary
) -> None:
    rows = range(15)
    found = scorer.score(part(batch, rows), [texts[row] for row in rows])
    model = scorer.model
    for row in rows:
        pixels = normalise(torch.from_numpy(part(batch, [row]).squares(SMALL.images)), SMALL.images)
        for text, scores in zip(texts[row], found[row], strict=True):
            with torch.no_grad():
                states = model.encode_image(pixels)
                cosine = (
                    model.image_features(states)
                    @ model.text_features(*vocabulary.encode([text], "cls", 16)).T
                )
                logits = model.itm_logits(*vocabulary.encode([text], "enc", 16), model.memory(states))
            assert scores.itc == pytest.approx(float(cosine), abs=1e-5)
            assert scores.itm == pytest.approx(float(logits.softmax(-1)[0, 1]), abs=1e-5)


@pytest.mark.parametrize(("objectives", "has"), [(["itc"], (True, False)), (["itm"], (False, True))])
def test_a_filter_gives_the_scores_it_was_trained_for(
    vocabulary: Vocabulary, batch: ImageBatch, objectives: list[Objective], has: tuple[bool, bool]
) -> None:
    scorer = a_filter(vocabulary, objectives)
    assert scorer.has_itc == has[0]
    ((scores,),) = scorer.score(part(batch, [0]), [["a cat"]])
    assert (scores.itc is not None, scores.itm is not None) == has


@pytest.mark.parametrize("counts", [[1, 1, 1], [4, 4, 4], [0, 4, 1], [2, 0, 0]])
def test_each_picture_passes_the_image_encoder_once(
    scorer: MedFilter, batch: ImageBatch, counts: list[int]
) -> None:
    before = scorer.model.image.passes
    scorer.score(part(batch, range(3)), [TEXTS[:count] for count in counts])
    assert scorer.model.image.passes - before == 3


def test_nothing_to_score_costs_nothing(scorer: MedFilter, batch: ImageBatch) -> None:
    before = scorer.model.image.passes
    assert scorer.score(part(batch, range(3)), [[], [], []]) == [[], [], []]
    assert scorer.score(part(batch, []), []) == []
    assert scorer.model.image.passes == before


def test_features_of_many_are_the_cosines_that_score_gives(scorer: MedFilter, batch: ImageBatch) -> None:
    some = part(batch, range(4))
    cosines = scorer.image_features(some) @ scorer.text_features(TEXTS[1:5]).T
    found = scorer.score(some, [TEXTS[1:5]] * 4)
    expected = torch.tensor([[scores.itc for scores in mine] for mine in found])
    torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=0.0)
