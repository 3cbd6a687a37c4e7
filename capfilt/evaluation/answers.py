"""How right answers about pictures are, by the metric of each task, with intervals.

What one answer is worth and what a set of them is worth are apart: intervals resample pictures, since
questions about one picture are not independent of each other.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from capfilt.evaluation.calibration import auroc, auroc_interval
from capfilt.evaluation.caption_metrics import CiderD, tokenised
from capfilt.evaluation.intervals import NOTHING, Figure, bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.data.instructions.registry import Metric

_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_COUNTED)}}
_ARTICLES = frozenset({"a", "an", "the"})
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's i'd've isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
    you've
"""


def _without_an_apostrophe() -> dict[str, str]:
    """Return contractions by how they are misspelt: with one apostrophe left out."""
    spelt: dict[str, str] = {}
    for word in _CONTRACTED.split():
        pieces = word.split("'")
        for kept in combinations(range(1, len(pieces)), len(pieces) - 2):
            wrong = pieces[0] + "".join(("'" if n in kept else "") + pieces[n] for n in range(1, len(pieces)))
            spelt[wrong] = word
    return spelt


_CONTRACTIONS = _without_an_apostrophe()


def normalised(answer: str) -> str:
    """Write an answer as VQA's evaluation does before it compares: "The two dogs." is "2 dogs".

    Punctuation goes, or becomes a space between two words; letters become small, number words up to ten
    digits; articles go, and contractions get the apostrophe they lack. Source: the evaluation code of VQA
    (Antol et al., "VQA: Visual question answering", 2015), as of VQA 2.0, but for two of its contractions:
    it turns "somebody'd" into "somebodyd", and never finds "I'd've".
    """
    text = " ".join(answer.split())
    is_number = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _MARKS:
        is_margin = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if is_margin or is_number else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, said: Sequence[str]) -> float:
    """Return VQA accuracy, from 0 to 1: a third for each annotator who agrees, with one of them left out.

    `said` is what the annotators said, ten of them in VQAv2, TextVQA and VizWiz. Of all but one of them it is
    min(1, how many gave the answer / 3), and that is averaged over who is left out. Both sides are
    `normalised`; the authors' code leaves the published answers nearly as they are, which are normalised
    already. Source: Goyal et al., "Making the V in VQA matter", 2017, and the evaluation code.

    Raises ValueError without an annotator; with fewer than four no answer reaches 1.
    """
    same, others = _agreeing(answer, said), len(said)
    if_one_of_them = same * min(1.0, (same - 1) / 3)
    if_another = (others - same) * min(1.0, same / 3)
    return (if_one_of_them + if_another) / others


def ivqa_accuracy(answer: str, said: Sequence[str]) -> float:
    """Return iVQA's accuracy: 1 where two of the annotators said so, a half where one did.

    Source: Yang et al., "Just Ask: Learning to answer questions from millions of narrated videos", 2021,
    section 5. Both sides are `normalised`. Raises ValueError without an annotator.
    """
    return min(1.0, _agreeing(answer, said) / 2)


def exact(answer: str, said: Sequence[str]) -> float:
    """Return 1 where the answer is one of the right ones and 0 elsewhere, both sides `normalised`.

    Raises ValueError without a right answer.
    """
    return float(_agreeing(answer, said) > 0)


def ranked(scores: Sequence[float], right: int) -> float:
    """Return 1 where the right candidate alone has the highest score: that of its likelihood, say.

    A tie is wrong: a model that finds everything equally likely knows nothing. Raises ValueError for a score
    that is NaN, and for a right candidate that is not there.
    """
    return float(_before(scores, right) == 0)


def reciprocal_rank(scores: Sequence[float], right: int) -> float:
    """Return 1 / rank of the right candidate, the best being first; ties stand before it.

    Its mean is the MRR of VisDial (Das et al., "Visual dialog", 2017, section 4). Raises ValueError like
    `ranked`.
    """
    return 1 / (1 + _before(scores, right))


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model said of one example, and what is right."""

    image: str
    """Equal for examples of one picture."""
    answer: str = ""
    """What was written, where an answer is written."""
    said: tuple[str, ...] = ()
    """All that counts as right: what the annotators said, or the reference captions."""
    scores: tuple[float, ...] = ()
    """Of each candidate, its log-likelihood, where candidates are ranked."""
    right: int | None = None
    """Which candidate is right."""


def measure(metric: Metric, answered: Sequence[Answered], *, seed: int) -> Figure:
    """Return what a metric gives for a set of answers, with its 95% interval; NaN without any.

    Accuracies, MRR and AUROC are from 0 to 1, CIDEr-D from 0 to 10. Intervals resample pictures, but for
    AUROC, whose interval is Newcombe's (see calibration); there the first of two candidates is what is to be
    found, and how much likelier it is than the second is the score.

    Raises ValueError for an answer that lacks what its metric needs.
    """
    if metric == "auroc":
        return _found(answered)
    if metric == "cider":
        values = list(
            CiderD([_tokens(one.said) for one in answered]).scores(_tokens([one.answer for one in answered]))
        )
    else:
        values = [_worth(metric, one) for one in answered]
    return mean_over_pictures(values, [one.image for one in answered], seed=seed, key=metric)


def mean_over_pictures(values: Sequence[float], images: Sequence[str], *, seed: int, key: str) -> Figure:
    """Return the mean of values and its 95% interval, by resampling the pictures they belong to.

    Raises ValueError unless there are as many pictures as values.
    """
    import numpy as np

    places = {image: place for place, image in enumerate(dict.fromkeys(images))}
    counts, sums = np.zeros(len(places)), np.zeros(len(places))
    for value, image in zip(values, images, strict=True):
        counts[places[image]] += 1
        sums[places[image]] += value
    return bootstrap(
        len(places), lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()), seed=seed, key=key
    )


def _worth(metric: Metric, one: Answered) -> float:
    match metric:
        case "vqa_accuracy":
            return vqa_accuracy(one.answer, one.said)
        case "ivqa_accuracy":
            return ivqa_accuracy(one.answer, one.said)
        case "exact":
            return exact(one.answer, one.said)
        case "ranked":
            return ranked(one.scores, _right(one))
        case "mrr":
            return reciprocal_rank(one.scores, _right(one))
    raise ValueError(f"{metric} is no metric of one answer")


def _found(answered: Sequence[Answered]) -> Figure:
    import numpy as np

    if any(len(one.scores) != 2 for one in answered):
        raise ValueError("an AUROC is that of two candidates")
    scores = np.array([one.scores[0] - one.scores[1] for one in answered], dtype=np.float64)
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    is_there = np.array([_right(one) == 0 for one in answered], dtype=bool)
    right, wrong = scores[is_there], scores[~is_there]
    area = auroc(right, wrong)
    return NOTHING if math.isnan(area) else Figure(area, *auroc_interval(area, len(right), len(wrong)))


def _agreeing(answer: str, said: Sequence[str]) -> int:
    """Count the annotators who said so."""
    if not said:
        raise ValueError("nobody said what is right")
    return Counter(map(normalised, said))[normalised(answer)]


def _before(scores: Sequence[float], right: int) -> int:
    """Count the wrong candidates that score as high as the right one or higher."""
    if not 0 <= right < len(scores):
        raise ValueError(f"candidate {right} of {len(scores)}")
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is NaN")
    return sum(score >= scores[right] for score in scores) - 1


def _right(one: Answered) -> int:
    if one.right is None:
        raise ValueError("no candidate is right")
    return one.right


def _tokens(texts: Sequence[str]) -> list[list[str]]:
    return [tokenised(text) for text in texts]
