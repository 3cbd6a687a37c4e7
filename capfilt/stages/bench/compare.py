"""The same pictures with transformers, as users write it today, in turn with ours.

That is: in fp32, picture by picture; `generate`, then the matching model once for each text, which encodes
the picture again. Captions are as long on both sides, since a side that stops early would win by luck.
"""

from __future__ import annotations

import importlib.util
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from capfilt.data.images import decode
from capfilt.models.cards import read_card
from capfilt.stages.bench.instruments import stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from capfilt.models.captioner import MedCaptioner
    from capfilt.models.filter import MedFilter
    from capfilt.records import Sample
    from capfilt.settings import SettledDecoding
    from capfilt.stages.shard import ShardJob

THEIR_IMAGES = 4
"""Pictures a round that transformers does; ours does as many on a CPU, and a batch on a GPU."""
ROUNDS = 3


@dataclass(frozen=True)
class Comparison:
    """Seconds per picture, the median of the rounds: CPU seconds on a CPU, wall seconds on a GPU."""

    ours_s: float
    theirs_s: float
    seconds: Literal["cpu", "wall"]
    our_images: int
    """In a batch of ours, once a round."""
    their_images: int
    """One by one, once a round."""
    rounds: int
    tokens: int
    """Of every caption, its end not counted; 0 where none is written."""
    texts: float
    """Scored for each picture on average; 0 where none is."""

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.theirs_s / self.ours_s


def why_not(job: ShardJob, samples: Sequence[Sample]) -> str:
    """Return why there is nothing to compare with on these samples; empty where there is."""
    from capfilt.models.bundle import is_transformers

    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    for role, folder in _folders(job).items():
        if not is_transformers(read_card(folder)):
            return f"transformers cannot build the {role} (another encoder than BLIP's, or not all heads)"
    if job.captioner is None and all(sample.web_text is None for sample in samples[:THEIR_IMAGES]):
        return "the first pictures have no text to score"
    return ""


def compare(
    job: ShardJob,
    captioner: MedCaptioner | None,
    filter_: MedFilter | None,
    samples: Sequence[Sample],
    device: str,
) -> Comparison:
    """Measure both on the first of these samples, which can all be used, round after round."""
    some = samples if device != "cpu" else samples[:THEIR_IMAGES]
    their_some = samples[:THEIR_IMAGES]
    tokens = job.decoding.max_tokens
    decoding = job.decoding.model_copy(update={"min_tokens": tokens, "max_tokens": tokens})
    pictures = [decode(sample.image or b"", max_pixels=job.input.max_pixels) for sample in some]
    theirs = Theirs(job, decoding, device)

    def our_round() -> None:
        _ours(job, decoding, captioner, filter_, some, pictures)

    def their_round() -> None:
        for sample, picture in zip(their_some, pictures, strict=False):
            theirs.caption_and_score(picture, sample.web_text)

    theirs.caption_and_score(pictures[0], their_some[0].web_text)
    our_round()
    seconds: Literal["cpu", "wall"] = "cpu" if device == "cpu" else "wall"
    ours_s, theirs_s = [], []
    for _ in range(ROUNDS):
        ours_s.append(_seconds(our_round, device) / len(some))
        theirs_s.append(_seconds(their_round, device) / len(their_some))
    web_texts = sum(sample.web_text is not None for sample in their_some)
    written = job.candidates if job.captioner else 0
    return Comparison(
        ours_s=statistics.median(ours_s),
        theirs_s=statistics.median(theirs_s),
        seconds=seconds,
        our_images=len(some),
        their_images=len(their_some),
        rounds=ROUNDS,
        tokens=tokens if job.captioner else 0,
        texts=web_texts / len(their_some) + written if job.filter else 0.0,
    )


class Theirs:
    """transformers' captioner and matching model of the same bundles, in fp32."""

    def __init__(self, job: ShardJob, decoding: SettledDecoding, device: str) -> None:
        import torch
        from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipProcessor
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        kinds = {"captioner": BlipForConditionalGeneration, "filter": BlipForImageTextRetrieval}
        self._models: dict[str, Any] = {}
        self._processors: dict[str, Any] = {}
        for role, folder in _folders(job).items():
            model = kinds[role].from_pretrained(folder, dtype=torch.float32)
            self._models[role] = model.eval().to(device)
            self._processors[role] = BlipProcessor.from_pretrained(folder)
        self._job, self._device, self._decoding = job, device, decoding

    def caption_and_score(self, picture: Image, web_text: str | None) -> list[str]:
        """Write captions of a picture and score them with its web text; returns the captions."""
        import torch

        colours = picture.convert("RGB")
        with torch.inference_mode():
            written = self._captions(colours) if "captioner" in self._models else []
            if "filter" in self._models:
                for text in [*([web_text] if web_text is not None else []), *written]:
                    self._score(colours, text)
        return written

    def _captions(self, colours: Image) -> list[str]:
        processor, decoding = self._processors["captioner"], self._decoding
        prompt = {"text": decoding.prompt} if decoding.prompt else {}
        inputs = processor(images=colours, return_tensors="pt", **prompt).to(self._device)
        draws = {"do_sample": True, "top_p": decoding.top_p, "top_k": decoding.top_k}
        draws |= {"temperature": decoding.temperature, "num_return_sequences": self._job.candidates}
        ways: dict[str, dict[str, Any]] = {
            "nucleus": draws,
            "beam": {"num_beams": decoding.beams},
            "greedy": {},
        }
        ids = self._models["captioner"].generate(
            **inputs,
            **ways[decoding.method],
            repetition_penalty=decoding.repetition_penalty,
            min_new_tokens=decoding.min_tokens,
            max_new_tokens=decoding.max_tokens,
        )
        texts: list[str] = processor.batch_decode(ids, skip_special_tokens=True)
        return texts

    def _score(self, colours: Image, text: str) -> float:
        card = read_card(_folders(self._job)["filter"])
        inputs = self._processors["filter"](
            images=colours,
            text=text,
            truncation=True,
            max_length=card.med.text.max_tokens,
            return_tensors="pt",
        ).to(self._device)
        itm = self._models["filter"](**inputs).itm_score
        return float(itm.softmax(-1)[0, 1])


def _ours(
    job: ShardJob,
    decoding: SettledDecoding,
    captioner: MedCaptioner | None,
    filter_: MedFilter | None,
    samples: Sequence[Sample],
    pictures: Sequence[Image],
) -> None:
    """Caption and score one batch, from decoded pictures on; a new batch holds no image states yet."""
    from capfilt.models.protocols import ImageBatch

    batch = ImageBatch(pictures, [sample.image_sha256 or "" for sample in samples])
    texts = [[] if sample.web_text is None else [sample.web_text] for sample in samples]
    if captioner is not None:
        written = captioner.caption(batch, decoding, seed=job.seed, candidates=job.candidates)
        texts = [web + mine for web, mine in zip(texts, written, strict=True)]
    if filter_ is not None:
        filter_.score(batch, texts)


def _seconds(work: Callable[[], None], device: str) -> float:
    watch = stopwatch(device)
    with watch.part("all"):
        work()
    return (watch.cpu_s if device == "cpu" else watch.wall_s)["all"]


def _folders(job: ShardJob) -> dict[str, Path]:
    """Return the folder of each model; a joint model has its halves in folders of their own."""
    given = {"captioner": job.captioner, "filter": job.filter}
    return {
        role: path / role if read_card(path).kind == "joint" else path
        for role, path in given.items()
        if path is not None
    }
