"""Write synthetic captions for a batch of decoded pictures; opens no shard, decides nothing.

Several prompts are taken in turn here and not in the captioners, so that each of these knows one prompt only
and any of them can be given several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.draws import seed_of
from capfilt.records import Caption, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from capfilt.models.protocols import Captioner, ImageBatch, Written
    from capfilt.settings import SettledDecoding


def recaption(
    captioner: Captioner,
    batch: ImageBatch,
    decoding: SettledDecoding,
    *,
    seed: int,
    candidates: int,
    tell: Callable[[str], None] = lambda _: None,
) -> list[list[Caption]]:
    """Return the synthetic captions of each picture, in the order of their candidate numbers.

    Candidate n is written with prompt n modulo the number of prompts. The first prompt's captions are those
    that it would write alone; another prompt draws by a seed of its own, or two prompts would draw alike.
    `tell` gets what a captioner says of a picture that it refuses.
    """
    prompts = decoding.prompts or (decoding.prompt,)
    texts = [
        _written(
            captioner,
            batch,
            decoding.of(prompt),
            seed=seed if number == 0 else seed_of("prompt", seed, number),
            candidates=len(range(number, candidates, len(prompts))),
        )
        for number, prompt in enumerate(prompts[:candidates])
    ]
    captions: list[list[Caption]] = []
    for picture in range(len(batch)):
        mine = [texts[n % len(prompts)][picture][n // len(prompts)] for n in range(candidates)]
        captions.append(
            [Caption(one.text, Source.SYNTHETIC, n, one.unfinished) for n, one in enumerate(mine)]
        )
        for words in dict.fromkeys(one.said for one in mine if one.said):
            tell(words)
    return captions


def _written(
    captioner: Captioner, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
) -> list[list[Written]]:
    from capfilt.models.protocols import TellingCaptioner, Written

    if isinstance(captioner, TellingCaptioner):
        return captioner.write(batch, decoding, seed=seed, candidates=candidates)
    texts = captioner.caption(batch, decoding, seed=seed, candidates=candidates)
    return [[Written(text) for text in mine] for mine in texts]
