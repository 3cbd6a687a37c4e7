"""How near generated captions come to reference captions, and how much they differ from each other.

Every metric works on lists of words, so that the tokenisation is chosen once, in `tokenised`, and published
numbers are not mistaken for comparable ones. What an image contributes is kept apart from what the set
contributes, so that images can be resampled without counting n-grams again.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Words = Sequence[str]
    Ngram = tuple[str, ...]

_WORD = re.compile(r"\w+(?:'\w+)*")
LONGEST = 4
"""Words of the longest n-gram in CIDEr-D and BLEU-4."""
SIGMA = 6.0
"""Width, in words, of CIDEr-D's penalty for another length than the reference's."""


def tokenised(text: str) -> list[str]:
    """Split a text into words: NFC, lower case, runs of letters, digits and underscores; no punctuation.

    An apostrophe inside a word stays, straight: "dog's", "don't". A combining mark that NFC leaves parts a
    word.

    This is not the Penn Treebank tokenizer (PTB, of Stanford CoreNLP, in Java) that published CIDEr and BLEU
    are computed with, which parts "dog's" into "dog" and "'s", and "don't" into "do" and "n't". Compare
    numbers with this tokenisation among themselves only.
    """
    lowered = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    return _WORD.findall(lowered.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


class CiderD:
    """CIDEr-D of captions against the references of a set of images.

    The cosine of tf-idf weighted n-grams, n from 1 to 4, averaged over n and over an image's references; a
    weight above the reference's counts as the reference's; times exp(-d^2 / 2 sigma^2) for lengths d apart,
    sigma 6; times 10. Source: Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based image description
    evaluation", 2015, section 4 and (CIDEr-D) section 6.

    Document frequencies are those of this very set: the number of its images that have the n-gram in a
    reference (the mode "corpus" of the authors' code and the only one of `pycocoevalcap`, whose numbers these
    are). So scores are comparable for one set of references alone, and with one image they are 0. As there,
    lengths are counted in bigrams, whose differences are those of words unless a text has no word at all.
    """

    def __init__(self, references: Sequence[Sequence[Words]]) -> None:
        """Weigh the references: for each image, one or more lists of words.

        Raises ValueError for an image without a reference.
        """
        _check_references(references)
        counted = [[_ngrams(words) for words in of_image] for of_image in references]
        self._seen_in: Counter[Ngram] = Counter()
        for of_image in counted:
            self._seen_in.update({ngram for counts in of_image for ngram in counts})
        self._log_images = math.log(len(references)) if references else 0.0
        self._references = [[self._weighed(counts) for counts in of_image] for of_image in counted]

    def scores(self, candidates: Sequence[Words]) -> NDArray[np.float64]:
        """Return CIDEr-D of one candidate for each image, in their order; shape (images,), from 0 to 10.

        The set's CIDEr-D is their mean.

        Raises ValueError unless there are as many candidates as images.
        """
        import numpy as np

        _check_candidates(candidates, len(self._references))
        scores = np.zeros(len(candidates))
        for image, words in enumerate(candidates):
            candidate = self._weighed(_ngrams(words))
            references = self._references[image]
            scores[image] = 10 * sum(candidate.nearness(one) for one in references) / len(references)
        return scores

    def _weighed(self, counts: Counter[Ngram]) -> _Weighed:
        # An n-gram that no reference has is weighed like one that a single image has.
        return _Weighed(
            {
                ngram: count * (self._log_images - math.log(max(1, self._seen_in[ngram])))
                for ngram, count in counts.items()
            },
            bigrams=sum(count for ngram, count in counts.items() if len(ngram) == 2),
        )


class _Weighed:
    """The tf-idf weights of a text's n-grams."""

    def __init__(self, weights: dict[Ngram, float], *, bigrams: int) -> None:
        squares = [0.0] * LONGEST
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        self.weights = weights
        self.norms = [math.sqrt(square) for square in squares]
        self.bigrams = bigrams

    def nearness(self, reference: _Weighed) -> float:
        """Clipped cosine, averaged over n, with the penalty for the length: from 0 to 1."""
        products = [0.0] * LONGEST
        for ngram, weight in self.weights.items():
            there = reference.weights.get(ngram, 0.0)
            products[len(ngram) - 1] += min(weight, there) * there
        # A product is 0 where a norm is.
        cosines = (
            product / (ours * theirs) if product else 0.0
            for product, ours, theirs in zip(products, self.norms, reference.norms, strict=True)
        )
        apart = self.bigrams - reference.bigrams
        return sum(cosines) / LONGEST * math.exp(-(apart**2) / (2 * SIGMA**2))


class Bleu:
    """Corpus BLEU of one candidate for each image, for all of the images or for some of them.

    The geometric mean of the precisions of n-grams, n from 1 to `n`, a match counting as often as some one
    reference has it, times exp(1 - r / c) where the candidates' c words are fewer than the references' r, r
    taking the length nearest to the candidate's for each image and the shorter of two as near. Source:
    Papineni, Roukos, Ward and Zhu, "BLEU: a method for automatic evaluation of machine translation", 2002,
    section 2.

    It is 0 as soon as no n-gram of one length matches, as in the paper. `pycocoevalcap`, which has the same
    numbers otherwise, adds a tiny number to the matches and gives a small one instead.
    """

    def __init__(
        self, candidates: Sequence[Words], references: Sequence[Sequence[Words]], n: int = 4
    ) -> None:
        """Count matches; `references` are one or more lists of words for each image.

        Raises ValueError unless there are as many candidates as images, and for an image without a reference.
        """
        import numpy as np

        _check_references(references)
        _check_candidates(candidates, len(references))
        self.n = n
        pairs = zip(candidates, references, strict=True)
        rows = [_bleu_counts(words, of_image, n) for words, of_image in pairs]
        self.counts: NDArray[np.int64] = np.array(rows, dtype=np.int64).reshape(len(rows), 2 * n + 2)
        """What each image contributes, shape (images, 2 * n + 2): matches of n-grams of length 1 to n, the
        candidate's n-grams of these lengths, the candidate's words, those of its nearest reference.
        """

    def value(self, indices: NDArray[np.int64] | None = None) -> float:
        """Return BLEU, from 0 to 1, of the images at `indices`, which may repeat; of all where None.

        NaN without images.
        """
        counts = self.counts if indices is None else self.counts[indices]
        if len(counts) == 0:
            return math.nan
        total = counts.sum(axis=0).tolist()
        matches, guesses = total[: self.n], total[self.n : 2 * self.n]
        words, reference_words = total[2 * self.n :]
        if 0 in matches:
            return 0.0
        logs = [math.log(match / guess) for match, guess in zip(matches, guesses, strict=True)]
        return math.exp(sum(logs) / self.n + min(0.0, 1 - reference_words / words))


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]], n: int = 4) -> float:
    """Return corpus BLEU-n, from 0 to 1, of one candidate for each image; see `Bleu`."""
    return Bleu(candidates, references, n).value()


def diversity(candidates: Sequence[Words]) -> dict[str, float]:
    """Say how much captions differ from each other; each is a list of words.

    - `captions`: how many there are
    - `distinct_captions`: different captions, as a share of all
    - `distinct_1`, `distinct_2`: different words and bigrams, as a share of all (Li et al., "A
      diversity-promoting objective function for neural conversation models", 2016)
    - `vocabulary`: different words
    - `mean_length`: words of a caption
    - `most_frequent`: share of the commonest caption; near 1 the captioner has collapsed
    - `entropy_bits`: entropy of the captions' distribution (Shannon, 1948); log2 of their number at most

    Shares fall as captions become more: compare sets of one size. NaN where there is nothing to divide by.
    """
    count = len(candidates)
    captions = Counter(tuple(words) for words in candidates)
    words = Counter(word for caption in candidates for word in caption)
    bigrams = Counter(ngram for caption in candidates for ngram in _runs(caption, 2))
    entropy = sum(many / count * math.log2(count / many) for many in captions.values())
    return {
        "captions": count,
        "distinct_captions": _share(len(captions), count),
        "distinct_1": _share(len(words), words.total()),
        "distinct_2": _share(len(bigrams), bigrams.total()),
        "vocabulary": len(words),
        "mean_length": _share(words.total(), count),
        "most_frequent": _share(max(captions.values(), default=0), count),
        "entropy_bits": entropy if count else math.nan,
    }


def _runs(words: Words, length: int) -> Iterator[Ngram]:
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def _ngrams(words: Words, longest: int = LONGEST) -> Counter[Ngram]:
    """Count the n-grams of all lengths up to `longest`."""
    return Counter(ngram for length in range(1, longest + 1) for ngram in _runs(words, length))


def _bleu_counts(candidate: Words, references: Iterable[Words], n: int) -> list[int]:
    """Return one row of `Bleu.counts`."""
    most: Counter[Ngram] = Counter()
    for words in references:
        most |= _ngrams(words, n)
    matches = [0] * n
    for ngram, count in _ngrams(candidate, n).items():
        matches[len(ngram) - 1] += min(count, most[ngram])
    guesses = [max(0, len(candidate) - length + 1) for length in range(1, n + 1)]
    nearest = min(
        (len(words) for words in references), key=lambda length: (abs(length - len(candidate)), length)
    )
    return [*matches, *guesses, len(candidate), nearest]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _check_references(references: Sequence[Sequence[Words]]) -> None:
    for image, of_image in enumerate(references):
        if not of_image:
            raise ValueError(f"image {image} has no reference")


def _check_candidates(candidates: Sequence[Words], images: int) -> None:
    if len(candidates) != images:
        raise ValueError(f"{len(candidates)} candidates for {images} images")
