"""Steps of tiny soft-prompted models in double precision, on random pixels and ids.

As a program, it does one of several processes' parts of every step and writes its gradients down.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "models")]

from small_models import enlarge

from capfilt.draws import seed_of
from capfilt.models.prompted import SoftPrompted, Words
from capfilt.settings import Blip2, Images, Language, Phase, QFormer, Vision
from capfilt.training.language import InstructedBatch, language_losses, language_targets_in
from capfilt.training.objectives import Batch, Setting
from capfilt.training.parallel import ALONE, World, joined

if TYPE_CHECKING:
    from collections.abc import Iterator

PAD, BEGIN, END, SIZE, BERT = 0, 1, 2, 24, 20
"""Ids and entries of the language model's vocabulary; entries of the Q-Former's."""
CONFIGS: dict[str, dict[str, Any]] = {
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "max_position_embeddings": 40,
    },
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
    },
    "t5": {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 1,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,
        "decoder_start_token_id": PAD,
    },
}
CASES = [("opt", False), ("t5", False), ("llama", True), ("t5", True)]
"""Language models, each with plain pairs or with instructions."""


@dataclass(frozen=True)
class Vocabulary:
    """A language model's vocabulary as far as a step asks for it: of T5, or of one with a begin token."""

    kind: str
    pad: int = PAD
    sep: int = END

    @property
    def begin(self) -> list[int]:
        return [] if self.kind == "t5" else [BEGIN]

    @property
    def closing(self) -> list[int]:
        return [END] if self.kind == "t5" else []

    def prompt(self, text: str) -> list[int]:
        assert not text
        return [*self.begin, *self.closing]


def structure(kind: str, *, instructed: bool) -> Blip2:
    return Blip2(
        family="instructblip" if instructed else "blip2",
        images=Images(size_px=16),
        vision=Vision(patch_px=8, width=16, layers=1, heads=2),
        qformer=QFormer(
            queries=3, width=16, layers=2, heads=2, feed_forward=24, places=16, max_tokens=8, dropout=0.0
        ),
        language=Language(
            config={
                "model_type": kind,
                "vocab_size": SIZE,
                "pad_token_id": PAD,
                "bos_token_id": BEGIN,
                "eos_token_id": END,
                **CONFIGS[kind],
            }
        ),
    )


def double_model(kind: str, *, instructed: bool) -> SoftPrompted:
    model = SoftPrompted(structure(kind, instructed=instructed), BERT).double()
    enlarge(model)
    return model.train()


def texts(rows: int, longest: int, seed: int, *, begin: list[int], end: list[int], size: int = SIZE) -> Words:
    """Return texts of various lengths, of which the last is the longest."""
    generator = torch.Generator().manual_seed(seed)
    found, least = [], len(begin) + len(end) + 1
    for row in range(rows):
        length = int(torch.randint(least, longest + 1, (), generator=generator))
        length = longest if row == rows - 1 else length
        words = torch.randint(3, size, (length - least + 1,), generator=generator).tolist()
        found.append([*begin, *words, *end, *[PAD] * (longest - length)])
    ids = torch.tensor(found)
    return Words(ids, ids != PAD)


def pairs(kind: str, rows: int, seed: int = 0) -> Batch:
    words = texts(rows, 9, seed, begin=Vocabulary(kind).begin, end=[END])
    return Batch(pixels(rows, seed), words.ids, words.real, torch.arange(rows), torch.arange(rows))


def instructions(kind: str, rows: int, seed: int = 0) -> InstructedBatch:
    known = Vocabulary(kind)
    return InstructedBatch(
        pixels(rows, seed),
        texts(rows, 6, seed + 10, begin=[BEGIN], end=[END], size=BERT),
        texts(rows, 7, seed + 20, begin=known.begin, end=known.closing),
        texts(rows, 5, seed + 30, begin=[], end=[END]),
    )


def pixels(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed_of("pixels", seed))
    return torch.randn(rows, 3, 16, 16, generator=generator, dtype=torch.float64)


def batch_of(kind: str, rows: int, *, instructed: bool) -> Batch | InstructedBatch:
    return instructions(kind, rows) if instructed else pairs(kind, rows)


def taken(batch: Batch | InstructedBatch, rows: list[int]) -> Batch | InstructedBatch:
    """Return some rows of a batch."""

    def some(value: Any) -> Any:
        return Words(value.ids[rows], value.real[rows]) if isinstance(value, Words) else value[rows]

    return type(batch)(**{name: some(getattr(batch, name)) for name in batch.__slots__})


def step(
    kind: str, *, instructed: bool, world: World = ALONE, parts: int = 1, rows: int = 8
) -> dict[str, torch.Tensor]:
    """Take a step of a whole batch as the training loop does; returns the loss and the summed gradients."""
    model, vocabulary = double_model(kind, instructed=instructed), Vocabulary(kind)
    size = rows // parts
    mine = [number * size + row for number in range(parts) for row in range(size)[world.mine(size)]]
    batch = taken(batch_of(kind, rows, instructed=instructed), mine)
    keys: list[tuple[str | int, ...]] = [("key", 3, *([number] if number else [])) for number in range(parts)]
    known: Any = vocabulary
    tokens = world.total(language_targets_in(model, known, batch, keys, world))
    phase, total = Phase(lm=2, label_smoothing=0.1), torch.zeros((), dtype=torch.float64)
    for number, key in enumerate(keys):
        setting = Setting(with_itm=False, key=key, world=world, tokens=tokens)
        done = language_losses(model, known, batch.part(number, parts), phase, setting)
        done.total.backward()
        total += done.parts["lm"]
    world.sum_gradients(model)
    found = {name: weights.grad for name, weights in model.named_parameters() if weights.grad is not None}
    return {"loss": world.total(total), "tokens": tokens, **found}


def results(world: World = ALONE) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield what a step gives in each case, whole and in parts."""
    for kind, instructed in CASES:
        for parts in (1, 2):
            yield f"{kind} {instructed} {parts}", step(kind, instructed=instructed, world=world, parts=parts)


def main(folder: Path) -> None:
    with joined("cpu") as world:
        torch.save(dict(results(world)), folder / f"{world.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
