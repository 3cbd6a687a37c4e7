"""Captioning and scoring with BLIP-base at 384 px: ours against transformers, on the same weights.

    python benchmarks/versus_transformers.py                                 # one round, one candidate
    python benchmarks/versus_transformers.py --rounds 5 --candidates 1 4 10  # the table of the README

The peer is what users write today: for each picture `generate` in fp32, then the matching model once for each
text. Every caption has 20 tokens on both sides; the web text and all candidates are scored. Both run on one
thread and are measured in its CPU seconds, in turn. The weights are random, drawn wide enough that pictures
and texts matter; before anything is timed, ours in fp32 must give the numbers of transformers, and what the
other precisions change is printed. What is compared is ITM alone, since that is what the peer computes.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipImageProcessor,
)

from capfilt.data.images import normalise
from capfilt.models.bundle import load_bundle
from capfilt.models.captioner import MedCaptioner
from capfilt.models.checkpoints.foreign import import_checkpoint
from capfilt.models.devices import keep_freed_memory
from capfilt.models.filter import MedFilter
from capfilt.models.inference import image_states
from capfilt.models.protocols import ImageBatch
from capfilt.settings import SettledDecoding
from capfilt.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image

TOKENS = 20
WEB_TEXT = " ".join(f"word{n}" for n in range(100, 112))
SYNTHETIC_TEXT = " ".join(f"word{n}" for n in range(200, 200 + TOKENS))
CPU = torch.device("cpu")
WAYS = {
    "fp32": ("fp32", False),
    "bf16": ("bf16", False),
    "int8 ViT, bf16 text": ("int8", False),
    "shared encoder, bf16": ("bf16", True),
    "shared encoder, int8": ("int8", True),
}


def main() -> None:
    """Draw weights, check that both sides agree, measure in turn, print ratios."""
    options = _options()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    keep_freed_memory()
    print(f"processor {_processor()}; " + ", ".join(f"{k} {v}" for k, v in versions().items()))
    with tempfile.TemporaryDirectory() as folder:
        theirs = Theirs(Path(folder), options.px, options.layers)
        pictures = [_noise(n) for n in range(options.images)]
        ours = {
            name: Ours(Path(folder), precision, shared=shared)
            for name, (precision, shared) in WAYS.items()
            if name in options.ways
        }
        for name, each in ours.items():
            _check(name, each, theirs, pictures[:4], exact=WAYS[name] == ("fp32", False))
        for candidates in options.candidates:
            _measure(ours, theirs, pictures, candidates, options.rounds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1])
    parser.add_argument("--images", type=int, default=8, help="in one batch of ours")
    parser.add_argument("--px", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12, help="of both transformers; fewer to try it out")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    return parser.parse_args()


class Theirs:
    """transformers' captioner and matcher, saved as it saves them; a second matcher shares the encoder."""

    def __init__(self, folder: Path, px: int, layers: int) -> None:
        torch.manual_seed(0)
        config = BlipConfig(
            vision_config={
                "image_size": px,
                "num_hidden_layers": layers,
                "initializer_range": 0.02,
                "layer_norm_eps": 1e-6,
            },
            text_config={
                "num_hidden_layers": layers,
                "num_attention_heads": 12,
                "bos_token_id": 30522,
                "eos_token_id": 3,
                "sep_token_id": 3,
                "pad_token_id": 0,
            },
        )
        self.captioner = BlipForConditionalGeneration(config).eval()
        self.matcher = BlipForImageTextRetrieval(config).eval()
        for model in (self.captioner, self.matcher):
            _widen(model)
        self.processor = BlipImageProcessor(size={"height": px, "width": px})
        self._save(self.captioner, folder / "captioner")
        self._save(self.matcher, folder / "filter")
        self.sharing_matcher = BlipForImageTextRetrieval(config).eval()
        self.sharing_matcher.load_state_dict(self.matcher.state_dict())
        self.sharing_matcher.vision_model.load_state_dict(self.captioner.vision_model.state_dict())
        self._save(self.sharing_matcher, folder / "filter of shared")

    def _save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(30517))]
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))

    @torch.inference_mode()
    def caption_and_score(self, picture: Image, candidates: int, ids: Sequence[torch.Tensor]) -> None:
        """Do what users write for one picture: generate, then match each text."""
        pixels = self.processor(picture, return_tensors="pt")["pixel_values"]
        self.captioner.generate(
            pixel_values=pixels,
            do_sample=True,
            top_p=0.9,
            top_k=0,
            num_return_sequences=candidates,
            min_new_tokens=TOKENS,
            max_new_tokens=TOKENS,
        )
        for text in (ids[0], *[ids[1]] * candidates):
            self.matcher(input_ids=text, pixel_values=pixels, attention_mask=torch.ones_like(text))


class Ours:
    """The same checkpoints, imported, in one precision."""

    def __init__(self, folder: Path, precision: str, *, shared: bool) -> None:
        filter_name = "filter of shared" if shared else "filter"
        for name, role in (("captioner", "captioner"), (filter_name, "filter")):
            bundle = folder / "ours" / name
            if not bundle.exists():
                bundle.parent.mkdir(exist_ok=True)
                import_checkpoint(str(folder / name), bundle, role=role).write()  # type: ignore[arg-type]
        self.precision, self.shared = precision, shared
        self.captioner = MedCaptioner(load_bundle(folder / "ours/captioner"), CPU, precision)
        self.filter = MedFilter(load_bundle(folder / "ours" / filter_name), CPU, precision)

    @property
    def passes(self) -> int:
        """Images that went through an encoder so far."""
        return self.captioner.model.image.passes + self.filter.model.image.passes

    def caption_and_score(self, batch: ImageBatch, candidates: int) -> None:
        """Do one batch, as a worker of a run does."""
        decoding = SettledDecoding(min_tokens=TOKENS, max_tokens=TOKENS)
        captions = self.captioner.caption(batch, decoding, seed=0, candidates=candidates)
        self.filter.score(batch, [[WEB_TEXT, *[SYNTHETIC_TEXT] * candidates] for _ in captions])


def _check(name: str, ours: Ours, theirs: Theirs, pictures: list[Image], *, exact: bool) -> None:
    """Print by how much ours differ in LM and ITM logits, verdicts and greedy captions; fp32 must not."""
    found = _agreement(ours, theirs, pictures)
    print(
        f"{name:22} LM logits off by {found.lm:.1e} at most (they spread by {found.lm_spread:.2f}), "
        f"ITM logits by {found.itm:.1e} ({found.itm_spread:.2f}), verdicts changed {found.verdicts:.1%}, "
        f"greedy tokens the same {found.tokens:.1%}",
        flush=True,
    )
    if exact and (found.lm > 1e-4 or found.itm > 1e-4 or found.tokens < 1):
        sys.exit("ours in fp32 is not transformers: nothing was measured")


@dataclass(frozen=True)
class Agreement:
    """Largest differences of logits, their spread, and shares."""

    lm: float
    lm_spread: float
    itm: float
    itm_spread: float
    verdicts: float
    tokens: float


@torch.inference_mode()
def _agreement(ours: Ours, theirs: Theirs, pictures: list[Image]) -> Agreement:
    # Of our pixels: their processor resizes by torchvision, and differs from Pillow's bicubic by some 2/255.
    images = ours.captioner._card.model.images
    pixels = normalise(torch.from_numpy(_batch(pictures).squares(images)), images)
    texts = [[" ".join(f"word{37 * n + 11 * m}" for m in range(5 + n % 9)) for n in range(12)]] * len(
        pictures
    )
    vocabulary = ours.captioner._vocabulary
    ids, real = vocabulary.encode(texts[0], "cls", 35)
    matcher = theirs.sharing_matcher if ours.shared else theirs.matcher
    seen = matcher.vision_model(pixel_values=pixels).last_hidden_state
    itm = torch.stack([_their_itm(matcher, ids, real, image) for image in seen[:, None]])
    scores = ours.filter.score(_batch(pictures), texts)
    our_itm = torch.tensor([[s.itm or 0.0 for s in mine] for mine in scores]).clamp(1e-7, 1 - 1e-7).logit()
    their_itm = itm[..., 1] - itm[..., 0]
    longest = vocabulary.encode(texts[0][-1:], "dec", 35)[0].expand(len(pictures), -1)
    lm = theirs.captioner(pixel_values=pixels, input_ids=longest).logits
    states = image_states(_batch(pictures), ours.captioner.model, ours.captioner._card, ours.precision)
    model = ours.captioner.model
    our_lm = model.lm_logits(longest, model.memory(states, absorbed=True)).float()
    greedy = SettledDecoding(method="greedy", min_tokens=TOKENS, max_tokens=TOKENS)
    our_words = [
        caption.split()
        for [caption] in ours.captioner.caption(_batch(pictures), greedy, seed=0, candidates=1)
    ]
    their_ids = theirs.captioner.generate(pixel_values=pixels, min_new_tokens=TOKENS, max_new_tokens=TOKENS)
    their_words = [vocabulary.decode(row[1:].tolist()).split() for row in their_ids]
    same = [
        a == b
        for mine, other in zip(our_words, their_words, strict=True)
        for a, b in zip(mine, other, strict=True)
    ]
    return Agreement(
        lm=float((our_lm - lm).abs().max()),
        lm_spread=float(lm.std()),
        itm=float((our_itm - their_itm).abs().max()),
        itm_spread=float(their_itm.std()),
        verdicts=float(((our_itm > 0) != (their_itm > 0)).float().mean()),
        tokens=sum(same) / len(same),
    )


def _their_itm(matcher: Any, ids: torch.Tensor, real: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Return the matcher's logits of texts for one image: its forward, the image encoded once."""
    states = matcher.text_encoder(
        input_ids=ids, attention_mask=real.long(), encoder_hidden_states=seen.expand(len(ids), -1, -1)
    )
    logits: torch.Tensor = matcher.itm_head(states.last_hidden_state[:, 0])
    return logits


def _measure(
    ours: dict[str, Ours], theirs: Theirs, pictures: list[Image], candidates: int, rounds: int
) -> None:
    """Measure in turn; a ratio is that of one round, and the median of them is printed."""
    some = pictures if candidates == 1 else pictures[: max(1, len(pictures) // 2)]
    first = next(iter(ours.values()))
    ids = [first.captioner._vocabulary.encode([text], "cls", 35)[0] for text in (WEB_TEXT, SYNTHETIC_TEXT)]
    for each in ours.values():
        each.caption_and_score(_batch(some[:1]), candidates)
    theirs_s: list[float] = []
    ours_s: dict[str, list[float]] = {name: [] for name in ours}
    for number in range(rounds):
        picture = pictures[number % len(pictures)]
        theirs_s.append(_cpu_s(lambda: theirs.caption_and_score(picture, candidates, ids)))  # noqa: B023
        for name, each in ours.items():
            before = each.passes
            spent = _cpu_s(lambda: each.caption_and_score(_batch(some), candidates))  # noqa: B023
            ours_s[name].append(spent / len(some))
            expected = len(some) * (1 if WAYS[name][1] else 2)
            if each.passes - before != expected:
                sys.exit(f"{name}: {each.passes - before} image passes where {expected} are needed")
    texts = f"{candidates + 1} texts scored"
    print(f"\n{candidates} candidate(s), {texts}, batches of {len(some)}, {rounds} round(s)")
    print(f"{'transformers fp32':22} {statistics.median(theirs_s):7.2f} s per image")
    for name, seconds in ours_s.items():
        ratios = [a / b for a, b in zip(theirs_s, seconds, strict=True)]
        print(
            f"{name:22} {statistics.median(seconds):7.2f} s per image   {statistics.median(ratios):5.2f}x "
            f"({min(ratios):.2f}-{max(ratios):.2f})",
            flush=True,
        )


def _cpu_s(work: Callable[[], None]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def _batch(pictures: list[Image]) -> ImageBatch:
    """Return a new batch: one that was used holds its image states."""
    return ImageBatch(pictures, [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures])


@torch.no_grad()
def _widen(model: torch.nn.Module) -> None:
    """Make cross-attention and heads matter: freshly drawn, every picture would get the same caption."""
    for name, parameter in model.named_parameters():
        if "crossattention" in name and parameter.ndim > 1:
            parameter.mul_(4)
        if "itm_head" in name or "word_embeddings" in name:
            parameter.mul_(3)


def _noise(number: int) -> Image:
    """Return a picture of coarse coloured noise, 500 x 400."""
    from PIL import Image

    coarse = torch.randint(0, 256, (8, 10, 3), generator=torch.Generator().manual_seed(number))
    return Image.fromarray(coarse.byte().numpy()).resize((500, 400), Image.Resampling.BICUBIC)


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    has = [
        name for name in ("avx512_bf16", "amx_bf16", "avx512_vnni") if torch.cpu.get_capabilities().get(name)
    ]
    return f"{names[0].partition(': ')[2] if names else 'unknown'} with {', '.join(has) or 'none of these'}"


if __name__ == "__main__":
    main()
