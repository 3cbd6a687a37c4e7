"""Captions against references: how near they come (CIDEr-D, BLEU-4), and how much they differ.

A caption that says the commonest thing is near many references, and another picture's caption is fluent: both
stand beside the model's, so that a figure means something.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from capfilt.data.clean import same_caption
from capfilt.errors import CapfiltError
from capfilt.evaluation.calibration import wrong_captions
from capfilt.evaluation.caption_metrics import Bleu, CiderD, diversity, tokenised
from capfilt.evaluation.intervals import Figure, bootstrap
from capfilt.stages.evaluate.results import Findings, Measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from capfilt.models.protocols import Captioner
    from capfilt.settings import SettledDecoding
    from capfilt.stages.context import Tell
    from capfilt.stages.evaluate.pairs import Pairs

    Numbers = NDArray[np.float64]
    Words = list[str]

NEARNESS, DIFFERENCE = "nearness to the references", "difference from each other"


@dataclass(frozen=True)
class _Captions:
    """A caption for each picture, and who wrote them."""

    row: str
    texts: list[str]

    @property
    def words(self) -> list[Words]:
        """Return the captions as the metrics read them."""
        return [tokenised(text) for text in self.texts]


def measure_captions(
    pairs: Pairs,
    captioner: Captioner,
    decoding: SettledDecoding,
    *,
    batch_size: int,
    seed: int,
    tell: Tell,
) -> Findings:
    """Write a caption for every picture and measure them all; CapfiltError where there is but one picture."""
    if pairs.pictures < 2:
        raise CapfiltError(
            "there is one picture, and the weights of CIDEr-D come from the differences between several",
            fix="give more pictures, or a higher --limit",
        )
    written: list[str] = []
    for start in range(0, pairs.pictures, batch_size):
        batch = pairs.batch(range(start, min(start + batch_size, pairs.pictures)))
        for (caption,) in captioner.caption(batch, decoding, seed=seed, candidates=1):
            written.append(caption)
        tell(len(written), pairs.pictures)
    references = [[pairs.texts[text] for text in mine] for mine in pairs.right_texts()]
    every = [
        _Captions("model", written),
        _Captions("commonest caption of the data", [_commonest(pairs)] * pairs.pictures),
        _Captions("another picture's caption", _others(pairs, seed)),
    ]
    read = [[tokenised(text) for text in mine] for mine in references]
    cider = CiderD(read)
    near = [cider.scores(one.words) for one in every]
    measured = [
        each
        for one, scores in zip(every, near, strict=True)
        for each in _nearness(one, scores, Bleu(one.words, read), seed)
    ]
    own = _Captions("references, the first of each", [mine[0] for mine in references])
    measured += [each for one in (every[0], own) for each in _difference(one, seed)]
    return Findings(
        measured=measured,
        items=_items(pairs, written, references, near),
        notes=[
            "Words are not parted as Penn Treebank's tokenizer does, which published figures are computed "
            "with: compare these figures with each other, on the same data, and not with papers.",
            "Shares of different captions fall as captions become more: compare sets of one size.",
            "Different words have no interval: pictures that are drawn again repeat their words, and every "
            "such draw would have fewer.",
        ],
        facts={"decoding": decoding.model_dump(mode="json")},
    )


def _commonest(pairs: Pairs) -> str:
    """Return the text that most pictures have; of several the first."""
    counts = Counter(pair.caption_id for pair in pairs.pairs)
    return pairs.texts[min(counts, key=lambda text: (-counts[text], text))]


def _others(pairs: Pairs, seed: int) -> list[str]:
    """Return, for each picture, a text of another one that is not right for it.

    Where all pictures are connected, and so no text is known to be wrong, it is the picture's own.
    """
    firsts = [pairs.pairs[number] for number in pairs.firsts]
    drawn = wrong_captions(firsts, seed=seed, count=1)
    return [firsts[mine[0]].text if mine else own.text for own, mine in zip(firsts, drawn, strict=True)]


def _nearness(one: _Captions, scores: Numbers, bleu: Bleu, seed: int) -> list[Measured]:
    count = len(scores)
    cider = bootstrap(count, partial(_mean, scores), seed=seed, key="cider")
    return [
        Measured(NEARNESS, one.row, "CIDEr-D", cider),
        Measured(NEARNESS, one.row, "BLEU-4", bootstrap(count, bleu.value, seed=seed, key="bleu")),
    ]


def _difference(one: _Captions, seed: int) -> list[Measured]:
    """Return how much captions differ, with intervals where each caption has a share in the figure.

    Drawing pictures again repeats their captions, and to count different ones in what was drawn would say
    that there are fewer. So a caption's share is taken from the whole set and not from the draw: of those
    that k pictures have each is 1 / k of a different caption.
    """
    import numpy as np

    of_all = diversity(one.words)
    read = [tuple(words) for words in one.words]
    counts = Counter(read)
    most = counts.most_common(1)[0][0]
    shares = {
        "different captions": [1 / counts[words] for words in read],
        "commonest": [float(words == most) for words in read],
        "words each": [float(len(words)) for words in read],
    }
    measured = []
    for measure, values in shares.items():
        each = np.array(values)
        figure = bootstrap(len(each), partial(_mean, each), seed=seed, key=measure)
        measured.append(Measured(DIFFERENCE, one.row, measure, figure))
    nothing = float("nan")
    vocabulary = Figure(of_all["vocabulary"], nothing, nothing)
    return [*measured, Measured(DIFFERENCE, one.row, "different words", vocabulary)]


def _mean(values: Numbers, some: NDArray[np.int64]) -> float:
    return float(values[some].mean())


def _items(
    pairs: Pairs, written: Sequence[str], references: Sequence[Sequence[str]], near: Sequence[Numbers]
) -> list[dict[str, Any]]:
    texts = {same_caption(text) for text in pairs.texts}
    return [
        {
            "key": pairs.key(number),
            "image_sha256": pairs.sha256(number),
            "caption": caption,
            "references": list(references[number]),
            "cider": float(near[0][number]),
            "cider_of_commonest": float(near[1][number]),
            "cider_of_another": float(near[2][number]),
            "is_a_reference_of_some_picture": same_caption(caption) in texts,
        }
        for number, caption in enumerate(written)
    ]
