"""Caption metrics, compared with pycocoevalcap (only its data-free parts: no Java, no tokenizer)."""

from __future__ import annotations

import math
import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.evaluation.caption_metrics import Bleu, CiderD, bleu, diversity, tokenised

if TYPE_CHECKING:
    from collections.abc import Sequence

    Words = list[str]
    CaptionSet = tuple[list[Words], list[list[Words]]]

OURS = Path(__file__).parents[1] / "data" / "real"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "real"

# Few different words, so that n-grams repeat within a text and between texts.
texts = st.lists(st.sampled_from("abcd"), max_size=9)
some_references = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), min_size=1, max_size=3)
caption_sets = st.lists(st.tuples(texts, some_references), min_size=1, max_size=6).map(
    lambda images: ([words for words, _ in images], [of_image for _, of_image in images])
)


def _texts_of(tar: Path) -> list[str]:
    with tarfile.open(tar) as archive:
        members = [member for member in archive if member.name.endswith(".txt")]
        return [archive.extractfile(member).read().decode() for member in members]  # type: ignore[union-attr]


@pytest.fixture(scope="module", params=["small", "shared"])
def real_captions(request: pytest.FixtureRequest) -> CaptionSet:
    """Real texts, each with its neighbour as references; candidates are texts with words lost and added."""
    folder = OURS if request.param == "small" else SHARED
    if not folder.is_dir():
        pytest.skip(f"needs the shared data in {folder.parent.parent.name}/data/real")
    draw = random.Random(9)
    words = [tokenised(text) for tar in sorted(folder.rglob("*.tar")) for text in _texts_of(tar)]
    words = [own for own in words if own][:2500]
    candidates = []
    for own, other in zip(words, words[1:] + words[:1], strict=True):
        kept = [word for word in own if draw.random() > 0.15]
        candidates.append(kept + [word for word in other if draw.random() < 0.1])
    return candidates, [[own, other] for own, other in zip(words, words[1:] + words[:1], strict=True)]


def _as_strings(captions: CaptionSet) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and candidates as pycocoevalcap has them, already tokenised."""
    candidates, references = captions
    return (
        {image: [" ".join(words) for words in of_image] for image, of_image in enumerate(references)},
        {image: [" ".join(words)] for image, words in enumerate(candidates)},
    )


def _their_cider(captions: CaptionSet) -> tuple[float, np.ndarray]:
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason="needs the extra `eval`")
    mean, scores = cider.Cider().compute_score(*_as_strings(captions))
    return float(mean), scores


def _their_bleu(captions: CaptionSet) -> list[float]:
    module = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="needs the extra `eval`")
    scores, _ = module.Bleu(4).compute_score(*_as_strings(captions), verbose=0)
    return [float(score) for score in scores]


# -- words


def test_words_are_lower_case_composed_and_without_punctuation() -> None:
    assert tokenised("A dog's  BALL, on the grass!") == ["a", "dog's", "ball", "on", "the", "grass"]
    assert tokenised("Don\N{RIGHT SINGLE QUOTATION MARK}t 'stop' (img_2001.jpg)") == [
        "don't",
        "stop",
        "img_2001",
        "jpg",
    ]
    assert tokenised("Cafe\N{COMBINING ACUTE ACCENT}") == tokenised(
        "CAF\N{LATIN CAPITAL LETTER E WITH ACUTE}"
    )
    assert tokenised("\N{BLACK STAR} ... --") == []
    assert tokenised("T-Rex\tin\nRome") == ["t", "rex", "in", "rome"]


@given(st.text(max_size=40))
def test_splitting_words_again_changes_nothing(text: str) -> None:
    words = tokenised(text)

    assert tokenised(" ".join(words)) == words
    assert all(word and not any(character.isspace() for character in word) for word in words)


# -- CIDEr-D


def test_cider_of_real_captions_is_that_of_pycocoevalcap(real_captions: CaptionSet) -> None:
    candidates, references = real_captions
    their_mean, theirs = _their_cider(real_captions)

    ours = CiderD(references).scores(candidates)

    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert ours.mean() == pytest.approx(their_mean, abs=1e-9)
    # Neither nothing nor everything matches.
    assert 1 < their_mean < 9


@given(caption_sets)
def test_cider_of_any_captions_is_that_of_pycocoevalcap(captions: CaptionSet) -> None:
    candidates, references = captions

    np.testing.assert_allclose(
        CiderD(references).scores(candidates), _their_cider(captions)[1], rtol=0, atol=1e-9
    )


def test_cider_worked_out_by_hand() -> None:
    # Two images; all weights of n-grams are log 2. The same words, but too few for n of 3 and 4: half.
    cider = CiderD([[["red", "square"]], [["a", "dog", "runs", "fast"]]])
    assert cider.scores([["red", "square"], ["a", "dog", "runs", "fast"]]) == pytest.approx([5.0, 10.0])
    # One word of two: cosine 1 / sqrt(2) of words and nothing else, and no bigram where there is one.
    expected = 10 / 4 / math.sqrt(2) * math.exp(-1 / 72)
    assert cider.scores([["red"], ["dog"]])[0] == pytest.approx(expected)
    # Three times the same word: a weight of 3 counts as 1, over a norm of 3; two bigrams against one.
    expected = 10 / 4 * (1 / 3) / math.sqrt(2) * math.exp(-1 / 72)
    assert cider.scores([["red", "red", "red"], []]) == pytest.approx([expected, 0.0])


def test_what_every_image_is_called_earns_nothing() -> None:
    cider = CiderD([[["a", "cat"]], [["a", "dog"]]])

    assert cider.scores([["a"], ["a"]]).tolist() == [0, 0]
    assert CiderD([[["a", "cat"]]]).scores([["a", "cat"]]).tolist() == [0]
    assert CiderD([]).scores([]).tolist() == []


# -- BLEU


def test_bleu_of_real_captions_is_that_of_pycocoevalcap(real_captions: CaptionSet) -> None:
    candidates, references = real_captions
    theirs = _their_bleu(real_captions)

    ours = [bleu(candidates, references, n) for n in (1, 2, 3, 4)]

    assert ours == pytest.approx(theirs, abs=1e-9)
    assert 0.1 < theirs[3] < theirs[0] < 0.99


@given(caption_sets)
def test_bleu_of_any_captions_is_that_of_pycocoevalcap_or_0_without_a_match(captions: CaptionSet) -> None:
    counted = Bleu(*captions)

    for n, theirs in enumerate(_their_bleu(captions), start=1):
        ours = bleu(*captions, n)
        if counted.counts[:, :n].sum(axis=0).all():
            # It adds 1e-9 to every denominator, which shows where these are small.
            assert ours == pytest.approx(theirs, abs=1e-8)
        else:
            assert ours == 0


def test_bleu_worked_out_by_hand() -> None:
    # The example of Papineni et al., section 2.1: one reference has "the" twice, the candidate seven times.
    references = [tokenised("The cat is on the mat."), tokenised("There is a cat on the mat.")]
    assert bleu([["the"] * 7], [references], n=1) == pytest.approx(2 / 7)
    # Every word and pair right, two words for four: exp(1 - 4 / 2).
    assert bleu([["a", "b"]], [[["a", "b", "c", "d"]]], n=2) == pytest.approx(math.exp(-1))
    # Of lengths 2 and 4, as near to 3, the shorter counts: no penalty.
    assert bleu([["a", "b", "c"]], [[["a", "b", "c", "d"], ["x", "y"]]], n=3) == pytest.approx(1.0)
    assert bleu([["a", "b", "c"]], [[["a", "b", "c"]]]) == 0.0
    assert bleu([[]], [[["a"]]], n=1) == 0.0
    assert math.isnan(bleu([], []))


@given(caption_sets, st.data())
def test_bleu_of_drawn_images_is_that_of_their_texts_counted_again(
    captions: CaptionSet, data: st.DataObject
) -> None:
    candidates, references = captions
    drawn = data.draw(st.lists(st.integers(0, len(candidates) - 1), min_size=1, max_size=12))

    resampled = Bleu(candidates, references, 2).value(np.array(drawn))

    assert resampled == bleu([candidates[n] for n in drawn], [references[n] for n in drawn], 2)


@pytest.mark.parametrize("metric", [lambda c, r: CiderD(r).scores(c), bleu])
def test_captions_that_do_not_go_with_the_references_are_refused(metric) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="1 candidates for 2 images"):
        metric([["a"]], [[["a"]], [["b"]]])
    with pytest.raises(ValueError, match="image 1 has no reference"):
        metric([["a"], ["b"]], [[["a"]], []])


# -- diversity


def test_diversity_worked_out_by_hand() -> None:
    captions = [text.split() for text in ("a red dog", "a red dog", "a cat", "birds")]

    assert diversity(captions) == {
        "captions": 4,
        "distinct_captions": 3 / 4,
        "distinct_1": 5 / 9,  # a, red, dog, cat, birds
        "distinct_2": 3 / 5,  # "a red" and "red dog" twice, "a cat"
        "vocabulary": 5,
        "mean_length": 9 / 4,
        "most_frequent": 2 / 4,
        "entropy_bits": 1.5,  # a half, and two quarters of 2 bits each
    }


@given(st.integers(1, 64))
def test_a_collapsed_captioner_has_no_entropy_and_different_captions_the_most(count: int) -> None:
    collapsed = diversity([["a", "dog"]] * count)
    different = diversity([["dog", str(number)] for number in range(count)])

    assert (collapsed["entropy_bits"], collapsed["most_frequent"]) == (0, 1)
    assert collapsed["distinct_captions"] == 1 / count
    assert different["entropy_bits"] == pytest.approx(math.log2(count))
    assert (different["distinct_captions"], different["distinct_2"]) == (1, 1)


@given(st.lists(texts, min_size=1, max_size=20))
def test_entropy_is_the_mean_surprise(captions: Sequence[Words]) -> None:
    counts = Counter(map(tuple, captions))
    surprises = [-math.log2(counts[tuple(words)] / len(captions)) for words in captions]

    assert diversity(captions)["entropy_bits"] == pytest.approx(sum(surprises) / len(captions), abs=1e-12)


def test_no_captions_have_no_shares() -> None:
    nothing, silent = diversity([]), diversity([[], []])

    assert (nothing["captions"], nothing["vocabulary"]) == (0, 0)
    for name in ("distinct_captions", "distinct_1", "mean_length", "most_frequent", "entropy_bits"):
        assert math.isnan(nothing[name])
    assert math.isnan(silent["distinct_1"])
    assert (silent["mean_length"], silent["most_frequent"], silent["distinct_captions"]) == (0, 1, 0.5)
