"""Train small language models on texts alone: an OPT and a T5 that know how the drawn world is talked about.

    python examples/small_language_models.py --out language --seed 0

makes `opt/` and `t5/`, folders that transformers loads and that `bundles.language` takes. A model with a
Q-Former can only steer a language model that lets what stands before a text matter. One that was trained on
captions in a row learns that the one before says nothing of the next, and no prompt moves it any more. So the
texts here are documents: several captions of the same scene, and questions about it with their answers, a
line each.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scenes
import torch
from torch.nn import functional

from capfilt.files import whole_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scenes import Scene
    from tokenizers import Tokenizer

WIDTH, HEADS = 96, 4
STEPS = {"opt": 1500, "t5": 1500}
LEARNING_RATE = 2e-3
QUESTIONS = {
    "colour": ("what colours are there?", "name the colours."),
    "shape": ("what shapes are there?", "name the shapes."),
}
"""What can be asked of a picture, by what it is about."""
LINES = (3, 8)
"""Fewest and most lines of a document: with two or three, it takes several times as long until shapes are
copied."""
ASKED = 0.25
"""Share of the lines that are a question and its answer."""


def answer(scene: Scene, about: str) -> str:
    """Return what is right to answer; colours and shapes are named from left to right."""
    colours, shapes = zip(*scene.items, strict=True)
    return " and ".join(colours if about == "colour" else shapes)


def document(rng: random.Random) -> list[str]:
    """Return the lines of a text about one scene."""
    scene = scenes.draw_scene(rng, unseen=False)
    lines = [scenes.caption(scene, rng)]
    for _ in range(rng.randint(*LINES) - 1):
        if rng.random() < ASKED:
            about = rng.choice(sorted(QUESTIONS))
            lines.append(f"{rng.choice(QUESTIONS[about])} {answer(scene, about)}")
        else:
            lines.append(scenes.caption(scene, rng))
    return lines


def train_opt(out: Path, seed: int, steps: int, say: Callable[[str], None]) -> None:
    """Train a decoder on documents packed in rows; a line break ends a caption, as LAVIS has it with OPT.

    Rows are packed so that positions are known beyond a caption's length: queries will stand before it.
    """
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(seed)
    rng = random.Random(f"opt {seed}")
    tokenizer = _tokenizer(["<s>", "<pad>", "</s>", "<unk>"], "</s> $A", seed)
    config = OPTConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        max_position_embeddings=128,
        dropout=0.0,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
    )
    model = OPTForCausalLM(config)

    def tokens() -> Iterator[int]:
        while True:
            yield from tokenizer.encode("".join(f"{line}\n" for line in document(rng))).ids

    stream = tokens()

    def loss() -> torch.Tensor:
        rows = torch.tensor([[next(stream) for _ in range(64)] for _ in range(16)])
        logits = model(input_ids=rows).logits
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())

    _descend(model, loss, steps, say)
    _save(out, model, tokenizer, {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"})


def train_t5(out: Path, seed: int, steps: int, say: Callable[[str], None]) -> None:
    """Train an encoder-decoder: the encoder reads a line or two, the decoder writes another caption.

    One time in four the encoder reads the beginning of that caption too (prefix language modelling).
    """
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    rng = random.Random(f"t5 {seed}")
    tokenizer = _tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>", seed)
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=4 * WIDTH,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=HEADS,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = T5ForConditionalGeneration(config)

    def row() -> tuple[list[int], list[int]]:
        scene = scenes.draw_scene(rng, unseen=False)
        read = "".join(f"{scenes.caption(scene, rng)}\n" for _ in range(rng.choice((1, 1, 2))))
        before = tokenizer.encode(read, add_special_tokens=False).ids
        caption = tokenizer.encode(scenes.caption(scene, rng), add_special_tokens=False).ids
        cut = rng.randrange(len(caption)) if rng.random() < 0.25 else 0
        return [*before, *caption[:cut], 1], [*caption[cut:], 1]

    def loss() -> torch.Tensor:
        read, written = zip(*(row() for _ in range(16)), strict=True)
        ids, labels = _padded(read, 0), _padded(written, -100)
        found: torch.Tensor = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        return found

    _descend(model, loss, steps, say)
    _save(out, model, tokenizer, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})


def _tokenizer(special: list[str], template: str, seed: int) -> Tokenizer:
    """Train a byte-level BPE in which every word of this world, and the line break, is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    rng = random.Random(f"tokenizer {seed}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["\n".join(document(rng)) for _ in range(1000)], trainer)
    mark = ("</s>", special.index("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[mark])
    return tokenizer


def _padded(rows: tuple[list[int], ...], pad: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])


def _descend(model: Any, loss: Callable[[], torch.Tensor], steps: int, say: Callable[[str], None]) -> None:
    """Take steps of AdamW; the rate rises for a twentieth of them and falls along a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    warmup, began = steps // 20, time.process_time()
    model.train()
    for step in range(steps):
        rising, falling = (step + 1) / (warmup + 1), (step - warmup) / max(1, steps - warmup)
        share = rising if step < warmup else (1 + math.cos(math.pi * falling)) / 2
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * share
        found = loss()
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0:
            say(f"{step + 1:,}/{steps:,} steps, loss {found.item():.3f}, {time.process_time() - began:.0f} s")


def _save(out: Path, model: Any, tokenizer: Tokenizer, names: dict[str, str]) -> None:
    from transformers import PreTrainedTokenizerFast

    with whole_folder(out) as folder:
        model.eval().save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def main() -> None:
    """Train both, unless they are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("language"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, train in (("opt", train_opt), ("t5", train_t5)):
        folder = options.out / name
        if not folder.exists():
            train(folder, options.seed, STEPS[name], partial(print, f"{name}:"))


if __name__ == "__main__":
    main()
