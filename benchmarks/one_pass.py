"""What it is worth to encode an image once: captioning and scoring against the plain way of doing both.

    python benchmarks/one_pass.py --images 16 --candidates 4

The plain way encodes the image again for every caption, copies its keys and values to every row, and decodes
without a cache. Both ways give the same captions and the same scores, which is checked, and what they cost
is counted in image-encoder passes and measured side by side, in turn, as a ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from capfilt.models.bundle import Bundle, pack
from capfilt.models.captioner import MedCaptioner
from capfilt.models.decoding import draw, nucleus, shaped
from capfilt.models.filter import MedFilter
from capfilt.models.med import MED
from capfilt.models.protocols import ImageBatch
from capfilt.models.vocabulary import Vocabulary, train_vocabulary
from capfilt.settings import Decoding, Images, Model, Text, Vision

if TYPE_CHECKING:
    from collections.abc import Callable

    from capfilt.models.cards import Kind, Objective

MODEL = Model(
    images=Images(size_px=224),
    vision=Vision(patch_px=16, width=192, layers=6, heads=3),
    text=Text(width=192, layers=4, heads=3, feed_forward=768, dropout=0.0),
)
WORDS = [f"{a} {b} {c}" for a in ["red", "green", "blue"] for b in ["big", "small"] for c in ["cat", "dog"]]


def main() -> None:
    """Build random models, do the work both ways, print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vocabulary = train_vocabulary(WORDS, 200)
    captioner = MedCaptioner(_bundle(vocabulary, ["lm"]), torch.device("cpu"))
    filter_ = MedFilter(_bundle(vocabulary, ["itc", "itm"]), torch.device("cpu"))
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(options.images)
    ]
    batch = ImageBatch(pictures, [f"{n:064x}" for n in range(options.images)])
    decoding = Decoding(min_tokens=20, max_tokens=20)

    def once() -> list[list[str]]:
        return captioner.caption(batch, decoding, seed=0, candidates=options.candidates)

    def plain() -> list[list[str]]:
        return plain_captions(captioner.model, vocabulary, batch, decoding, options.candidates)

    _compare("captions", once, plain, captioner.model, options.repeats)
    texts = once()

    def score_once() -> list[list[float]]:
        return [[round(s.itm or 0.0, 4) for s in mine] for mine in filter_.score(batch, texts)]

    def score_plain() -> list[list[float]]:
        columns = [filter_.score(batch, [[mine[n]] for mine in texts]) for n in range(options.candidates)]
        return [[round(c[i][0].itm or 0.0, 4) for c in columns] for i in range(options.images)]

    _compare("scores", score_once, score_plain, filter_.model, options.repeats)


def plain_captions(
    model: MED, vocabulary: Vocabulary, batch: ImageBatch, decoding: Decoding, candidates: int
) -> list[list[str]]:
    """Draw the same captions with an image pass a caption and a full forward pass a token."""
    from capfilt.data.images import normalise
    from capfilt.draws import uniforms

    texts: list[list[str]] = [[] for _ in batch.sha256]
    with torch.inference_mode():
        for candidate in range(candidates):
            pixels = normalise(torch.from_numpy(batch.squares(MODEL.images)), MODEL.images)
            memory = model.memory(model.encode_image(pixels))
            ids = torch.tensor(vocabulary.prompt(decoding.prompt)).expand(len(batch), -1)
            numbers = torch.stack(
                [torch.from_numpy(uniforms(20, "caption", 0, sha, candidate)) for sha in batch.sha256]
            )
            for position in range(decoding.max_tokens):
                logits = model.lm_logits(ids, memory)[:, -1]
                logits = shaped(logits, ids, decoding, vocabulary.sep, position)
                ids = torch.cat([ids, draw(nucleus(logits, decoding), numbers[:, position])[:, None]], 1)
            for mine, row in zip(texts, ids[:, 1:].tolist(), strict=True):
                mine.append(vocabulary.decode(row))
    return texts


def _bundle(vocabulary: Vocabulary, objectives: list[Objective]) -> Bundle:
    model = MED(MODEL, len(vocabulary), objectives)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.08)  # far enough from nothing that images matter
    kind: Kind = "captioner" if objectives == ["lm"] else "filter"
    return pack(
        Path("unused"),
        kind=kind,
        model=model,
        settings=MODEL,
        vocabulary=vocabulary,
        parent=None,
        data=None,
        training={},
        versions={},
    ).bundle


def _compare(
    what: str, ours: Callable[[], object], plain: Callable[[], object], model: MED, repeats: int
) -> None:
    passes = []
    results = []
    for way in (ours, plain):
        before = model.image.passes
        results.append(way())
        passes.append(model.image.passes - before)
    ratios = []
    for _ in range(repeats):
        began = time.perf_counter()
        ours()
        between = time.perf_counter()
        plain()
        ratios.append((time.perf_counter() - between) / (between - began))
    same = "equal" if results[0] == results[1] else "DIFFERENT"
    print(
        f"{what}: {same}; image passes {passes[0]} against {passes[1]}; plain / ours in time: "
        f"min {min(ratios):.2f}, median {statistics.median(ratios):.2f}, max {max(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
