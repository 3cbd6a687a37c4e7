from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.evaluation.answers import (
    Answered,
    exact,
    ivqa_accuracy,
    mean_over_pictures,
    measure,
    normalised,
    ranked,
    reciprocal_rank,
    vqa_accuracy,
)
from capfilt.evaluation.caption_metrics import CiderD, tokenised

WORDS = st.sampled_from(["red", "two", "a", "the dog", "cant", "3.5", "1,000", "", "Yes.", "t-shirt"])

# -- how answers are written


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("The two dogs.", "2 dogs"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("a", ""),
        ("cant", "can't"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("dog's", "dog's"),
        # A mark between two words parts them; one beside a space, or where there is a 1,000, only goes.
        ("t-shirt", "t shirt"),
        ("black, white", "black white"),
        ("yes/no", "yes no"),
        ("1,000", "1000"),
        ("$1,000-2,000", "$10002000"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("  on \t the\n table ", "on table"),
        ("5:30", "5:30"),
        ("who?", "who"),
    ],
)
def test_an_answer_is_written_as_the_code_of_vqa_writes_it(answer: str, written: str) -> None:
    assert normalised(answer) == written


@given(st.lists(WORDS, max_size=4).map(" ".join))
def test_writing_an_answer_again_changes_nothing(answer: str) -> None:
    assert normalised(normalised(answer)) == normalised(answer)


# -- one answer


@pytest.mark.parametrize(
    ("agreeing", "accuracy"),
    # One of ten: left out once, 0, and 1/3 nine times. Two: 2 * 1/3 + 8 * 2/3. Three: 3 * 2/3 + 7. Four: all.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_of_ten_annotators_is_the_one_that_is_published(agreeing: int, accuracy: float) -> None:
    assert vqa_accuracy("Red.", ["red"] * agreeing + ["blue"] * (10 - agreeing)) == pytest.approx(accuracy)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=10))
def test_vqa_accuracy_is_the_mean_over_the_annotator_who_is_left_out(answer: str, said: list[str]) -> None:
    accuracies = []
    for left_out in range(len(said)):
        others = said[:left_out] + said[left_out + 1 :]
        accuracies.append(min(1, sum(normalised(other) == normalised(answer) for other in others) / 3))
    assert vqa_accuracy(answer, said) == pytest.approx(sum(accuracies) / len(accuracies))


def test_ivqa_wants_two_of_its_annotators() -> None:
    assert [ivqa_accuracy("rope", ["rope"] * n + ["cord"] * (5 - n)) for n in range(4)] == [0, 0.5, 1, 1]


def test_an_exact_answer_is_one_of_those_that_are_right() -> None:
    assert exact("Yes", ("yes", "true")) == 1
    assert exact("the chair", ("chair",)) == 1
    assert exact("chairs", ("chair",)) == 0


def test_the_likeliest_candidate_must_be_the_right_one_alone() -> None:
    assert ranked([-3.0, -1.0, -2.0], 1) == 1
    assert ranked([-3.0, -1.0, -2.0], 2) == 0
    assert ranked([-1.0, -1.0], 0) == 0


def test_the_reciprocal_rank_counts_who_stands_before() -> None:
    assert [reciprocal_rank([4.0, 1.0, 3.0, 2.0], right) for right in range(4)] == [1, 1 / 4, 1 / 2, 1 / 3]
    # Three candidates alike: nothing was found before the two others were gone through.
    assert reciprocal_rank([0.0, 0.0, 0.0], 1) == 1 / 3


def test_what_cannot_be_measured_is_refused() -> None:
    for metric in (vqa_accuracy, ivqa_accuracy, exact):
        with pytest.raises(ValueError, match="nobody"):
            metric("red", [])
    for scores, right in (([math.nan, 0.0], 1), ([0.0], 1), ([0.0], -1)):
        with pytest.raises(ValueError, match=r"NaN|candidate"):
            ranked(scores, right)
    with pytest.raises(ValueError, match="no candidate is right"):
        measure("mrr", [Answered("1", scores=(0.0,))], seed=0)
    with pytest.raises(ValueError, match="two candidates"):
        measure("auroc", [Answered("1", scores=(0.0,), right=0)], seed=0)


# -- a set of answers


def test_each_metric_is_the_mean_of_its_answers() -> None:
    said = ("red",) * 2 + ("blue",) * 8
    written = [Answered(str(n), answer, said) for n, answer in enumerate(["red", "blue", "green", "red"])]
    assert measure("vqa_accuracy", written, seed=0).value == pytest.approx((0.6 + 1 + 0 + 0.6) / 4)
    assert measure("ivqa_accuracy", written, seed=0).value == pytest.approx(3 / 4)
    assert measure("exact", written, seed=0).value == pytest.approx(3 / 4)
    chosen = [Answered(str(n), scores=(0.0, -1.0, 2.0), right=n) for n in range(3)]
    assert measure("ranked", chosen, seed=0).value == pytest.approx(1 / 3)
    assert measure("mrr", chosen, seed=0).value == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)


def test_pictures_and_not_questions_are_resampled() -> None:
    # One picture with 98 right answers and two with a wrong one each: nothing is known of the share, and an
    # interval over 100 questions would be a few hundredths wide.
    values = [1.0] * 98 + [0.0, 0.0]
    images = ["a"] * 98 + ["b", "c"]
    figure = mean_over_pictures(values, images, seed=0, key="test")
    assert (figure.value, figure.low, figure.high) == (0.98, 0.0, 1.0)
    with pytest.raises(ValueError, match="zip"):
        mean_over_pictures(values, images[1:], seed=0, key="test")


def test_an_interval_covers_the_truth_nineteen_times_of_twenty() -> None:
    generator = np.random.Generator(np.random.PCG64(7))
    covered = 0
    for trial in range(40):
        answers = generator.random(80) < 0.7
        answered = [Answered(str(n), "yes" if right else "no", ("yes",)) for n, right in enumerate(answers)]
        figure = measure("exact", answered, seed=trial)
        covered += figure.low <= 0.7 <= figure.high
    assert covered >= 33  # Binomial(40, 0.95) is below that three times in a thousand.


def test_auroc_is_that_of_how_much_likelier_yes_is() -> None:
    # Of 2 * 2 pairs of a hateful and a harmless one, three are in the right order and one is a tie.
    scores = {0: [(-1.0, -3.0), (-2.0, -2.0)], 1: [(-2.0, -2.0), (-5.0, -1.0)]}
    answered = [
        Answered(f"{right}/{n}", scores=pair, right=right)
        for right, pairs in scores.items()
        for n, pair in enumerate(pairs)
    ]
    figure = measure("auroc", answered, seed=0)
    assert figure.value == pytest.approx(3.5 / 4)
    assert 0 < figure.low < figure.value < figure.high < 1
    assert math.isnan(measure("auroc", answered[:2], seed=0).value)


def test_cider_is_the_mean_of_its_pictures_as_captions_are_measured() -> None:
    references = [("a red dog runs", "the dog is red"), ("two blue cups",), ("a man on a bench",)]
    captions = ["a red dog", "two blue cups", "a bench"]
    answered = [
        Answered(str(n), text, said) for n, (text, said) in enumerate(zip(captions, references, strict=True))
    ]
    cider = CiderD([[tokenised(text) for text in said] for said in references])
    expected = cider.scores([tokenised(text) for text in captions]).mean()
    figure = measure("cider", answered, seed=0)
    assert figure.value == pytest.approx(expected)
    assert figure.low < figure.value < figure.high


@pytest.mark.parametrize(
    "metric", ["vqa_accuracy", "ivqa_accuracy", "exact", "ranked", "mrr", "auroc", "cider"]
)
def test_without_answers_nothing_is_measured(metric: str) -> None:
    assert math.isnan(measure(metric, [], seed=0).value)  # type: ignore[arg-type]
