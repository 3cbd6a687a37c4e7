"""A pair's scores are its own and those of the model alone; a picture is encoded once for all its texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_models import WORDS, part, pictures
from small_qformer import SMALL_BLIP2, small_qformer

from capfilt.data.images import normalise
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.models.bundle_files import BundleOf
from capfilt.models.cards import Card, Conventions
from capfilt.models.frozen import frozen_states
from capfilt.models.protocols import PairFilter
from capfilt.models.qformer_filter import ROWS_AT_ONCE, QFormerFilter
from capfilt.settings import Matching

if TYPE_CHECKING:
    from capfilt.models.cards import Objective
    from capfilt.models.protocols import ImageBatch
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.records import Scores

PICTURES = 40
CPU = torch.device("cpu")
TEXTS = ["", "a cat", WORDS[2], WORDS[0], "[SEP] \x00", "table " * 40, "λόγος", "the red square"]


def a_bundle(vocabulary: Vocabulary, objectives: list[Objective], **card: Any) -> Any:
    made = Card(
        kind="filter",
        objectives=tuple(objectives),
        weights="w" * 64,
        model=SMALL_BLIP2,
        vocabulary=len(vocabulary),
        image_encoder="e" * 64,
        **card,
    )
    return BundleOf(Path("nowhere"), made, small_qformer(objectives, len(vocabulary)), vocabulary)


def a_filter(vocabulary: Vocabulary, *objectives: Objective, **choices: Any) -> QFormerFilter:
    return QFormerFilter(a_bundle(vocabulary, list(objectives)), CPU, **choices)


@pytest.fixture(scope="module")
def scorer(vocabulary: Vocabulary) -> QFormerFilter:
    return a_filter(vocabulary, "itc", "itm")


@pytest.fixture(scope="module")
def batch() -> ImageBatch:
    return pictures(PICTURES)


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """None to four texts a picture."""
    return [[TEXTS[(n * 5 + k * 3) % len(TEXTS)] for k in range(n % 5)] for n in range(PICTURES)]


def in_batches_of(
    size: int, scorer: QFormerFilter, batch: ImageBatch, texts: list[list[str]]
) -> list[list[Scores]]:
    found: list[list[Scores]] = []
    for start in range(0, PICTURES, size):
        rows = range(start, min(start + size, PICTURES))
        found += scorer.score(part(batch, rows), [texts[row] for row in rows])
    return found


def test_scores_do_not_depend_on_the_batch(
    scorer: QFormerFilter, batch: ImageBatch, texts: list[list[str]]
) -> None:
    alone = in_batches_of(1, scorer, batch, texts)
    together = in_batches_of(PICTURES, scorer, batch, texts)
    assert sum(map(len, texts)) > ROWS_AT_ONCE
    assert [len(mine) for mine in together] == [len(mine) for mine in texts]
    for ours, theirs in zip(together, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.itc == pytest.approx(other.itc, abs=1e-5)
            assert one.itm == pytest.approx(other.itm, abs=1e-5)
    spread = torch.tensor([[score.itc, score.itm] for mine in alone for score in mine])
    assert spread.std(0).min() > 0.05  # or nothing was compared


def test_scores_are_those_of_each_pair_through_the_model_alone(
    scorer: QFormerFilter, batch: ImageBatch, texts: list[list[str]], vocabulary: Vocabulary
) -> None:
    rows = range(10)
    found = scorer.score(part(batch, rows), [texts[row] for row in rows])
    logits = scorer.itm_logits(part(batch, rows), [texts[row] for row in rows])
    assert logits.shape == (10, 4, 2)
    model = small_qformer(["itc", "itm"], len(vocabulary))  # its maps are not laid out for the processor
    for row in rows:
        images = SMALL_BLIP2.images
        pixels = normalise(torch.from_numpy(part(batch, [row]).squares(images)), images)
        for column, (text, scores) in enumerate(zip(texts[row], found[row], strict=True)):
            ids, real = vocabulary.encode([text], "cls", 16)
            with torch.no_grad():
                states = model.encode_image(pixels)
                best = (model.image_features(states)[0] @ model.text_features(ids, real)[0]).max()
                match = model.itm_logits(ids, real, model.memory(states))[0]
            assert scores.itc == pytest.approx(float(best), abs=1e-5)
            assert scores.itm == pytest.approx(float(match.softmax(-1)[1]), abs=1e-5)
            torch.testing.assert_close(logits[row, column], match, atol=5e-5, rtol=0.0)


@pytest.mark.parametrize(("objective", "has"), [("itc", (True, False)), ("itm", (False, True))])
def test_a_filter_gives_the_scores_it_was_trained_for(
    vocabulary: Vocabulary, batch: ImageBatch, objective: Objective, has: tuple[bool, bool]
) -> None:
    scorer = a_filter(vocabulary, objective)
    assert (scorer.has_itc, scorer.has_itm) == has
    ((scores,),) = scorer.score(part(batch, [0]), [["a cat"]])
    assert (scores.itc is not None, scores.itm is not None) == has


@pytest.mark.parametrize("counts", [[1, 1, 1], [4, 4, 4], [0, 4, 1], [2, 0, 0]])
def test_each_picture_passes_the_image_encoder_once(
    scorer: QFormerFilter, batch: ImageBatch, counts: list[int]
) -> None:
    before = scorer.encoder_passes
    some = part(batch, range(3))
    scorer.score(some, [TEXTS[:count] for count in counts])
    scorer.itm_logits(some, [TEXTS[:count] for count in counts])
    scorer.image_features(some)
    assert scorer.encoder_passes - before == 3


def test_nothing_to_score_costs_nothing(scorer: QFormerFilter, batch: ImageBatch) -> None:
    before = scorer.encoder_passes
    assert scorer.score(part(batch, range(3)), [[], [], []]) == [[], [], []]
    assert scorer.score(part(batch, []), []) == []
    assert scorer.encoder_passes == before


def test_models_with_an_equal_image_encoder_encode_a_picture_once_whatever_their_norms(
    vocabulary: Vocabulary, batch: ImageBatch
) -> None:
    one, other = a_filter(vocabulary, "itc"), a_filter(vocabulary, "itc")
    with torch.no_grad():
        other.model.vision_model.post_layernorm.weight.mul_(1.5)
    some = part(batch, range(4))
    alone = other.image_features(part(batch, range(4)))
    first, second = one.image_features(some), other.image_features(some)
    assert (one.encoder_passes, other.encoder_passes) == (4, 4)
    assert torch.equal(second, alone)
    assert not torch.allclose(first, second, atol=1e-3)


def test_features_of_many_are_the_cosines_that_score_gives(scorer: QFormerFilter, batch: ImageBatch) -> None:
    assert isinstance(scorer, PairFilter)
    some = part(batch, range(4))
    images, read = scorer.image_features(some), scorer.text_features(TEXTS[1:5])
    assert images.shape == (4, 3, 16)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(4, 3), atol=1e-5, rtol=0.0)
    found = scorer.score(some, [TEXTS[1:5]] * 4)
    expected = torch.tensor([[scores.itc for scores in mine] for mine in found])
    best = torch.stack([(image @ read.T).amax(0) for image in images])
    torch.testing.assert_close(best, expected, atol=1e-5, rtol=0.0)


def test_there_is_no_form_of_it_in_8_bits(vocabulary: Vocabulary) -> None:
    with pytest.raises(CapfiltError, match=r"--precision int8 .* a model with a Q-Former") as refused:
        a_filter(vocabulary, "itc", "itm", precision="int8")
    assert "bf16" in refused.value.fix


def test_in_half_precision_the_image_encoder_is_and_the_qformer_is_not(
    vocabulary: Vocabulary, batch: ImageBatch, scorer: QFormerFilter
) -> None:
    half = a_filter(vocabulary, "itc", "itm", precision="bf16")
    assert half.image_states(part(batch, [0])).dtype == torch.bfloat16
    numbers = {p.dtype for p in (*half.model.qformer.parameters(), half.model.query_tokens)}
    assert numbers == {torch.float32}
    some = part(batch, range(8))
    exact, found = (s.score(part(some, range(8)), [TEXTS[1:4]] * 8) for s in (scorer, half))
    apart = torch.tensor(
        [
            [one.itc - other.itc, one.itm - other.itm]  # type: ignore[operator]
            for ours, theirs in zip(found, exact, strict=True)
            for one, other in zip(ours, theirs, strict=True)
        ]
    )
    assert 0 < float(apart.abs().mean()) < 0.02


def test_what_the_card_says_of_texts_holds_unless_something_else_is_chosen(
    vocabulary: Vocabulary, batch: ImageBatch
) -> None:
    bundle = a_bundle(vocabulary, ["itc"], conventions=Conventions(clean_up="blip"))
    loud, quiet = ["A RED circle!"], ["a red circle"]
    plain = QFormerFilter(bundle, CPU, matching=Matching(clean_up="none"))
    assert not torch.equal(plain.text_features(loud), plain.text_features(quiet))
    bundle = replace(bundle, model=small_qformer(["itc"], len(vocabulary)))
    cleaning = QFormerFilter(bundle, CPU)
    assert torch.equal(cleaning.text_features(loud), cleaning.text_features(quiet))
    assert torch.equal(plain.text_features(quiet), cleaning.text_features(quiet))
    assert plain.score(part(batch, [0]), [quiet])[0] == cleaning.score(part(batch, [0]), [loud])[0]


def test_a_text_that_is_matched_cannot_begin_with_another_token(vocabulary: Vocabulary) -> None:
    with pytest.raises(CapfiltError, match="match_token"):
        a_filter(vocabulary, "itm", matching=Matching(match_token="enc"))
    a_filter(vocabulary, "itm", matching=Matching(match_token="cls"))


def test_a_model_that_diverged_stops_the_run(vocabulary: Vocabulary, batch: ImageBatch) -> None:
    scorer = a_filter(vocabulary, "itm")
    with torch.no_grad():
        scorer.model.itm_head.weight.fill_(torch.nan)
    with pytest.raises(RunFailedError, match="finite"):
        scorer.score(part(batch, [0]), [["a cat"]])


def test_frozen_states_are_named_by_encoder_precision_and_device(
    scorer: QFormerFilter, batch: ImageBatch
) -> None:
    some, encoder, card = part(batch, [0, 1]), scorer.model.vision_model, scorer._card
    first = frozen_states(some, encoder, card, "fp32", CPU)
    assert frozen_states(some, encoder, card, "fp32", CPU) is first
    assert frozen_states(some, encoder, card, "bf16", CPU) is not first
    other = card.model_copy(update={"image_encoder": "o" * 64})
    assert frozen_states(some, encoder, other, "fp32", CPU) is not first
