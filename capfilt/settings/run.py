"""A whole run: what is accepted, where it is computed, what is kept, and all other groups in one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from capfilt.layers import Settings
from capfilt.records import SCORES
from capfilt.settings.models import Model, Trainable
from capfilt.settings.training import Clean, Phase, Stream, Training
from capfilt.settings.use import Decoding, Matching, Server


class Input(Settings):
    """What is accepted from strangers' shards."""

    max_pixels: int = Field(100_000_000, ge=1)
    """Largest picture that is decoded, width times height; checked before decoding."""
    max_text_bytes: int = Field(10_000, ge=1)
    """Longest web text that is read."""


class Compute(Settings):
    """Where and how fast; a run's bytes hold for one choice of all but `workers` and `decoders`."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto takes the GPUs there are, else the CPU."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Of captioning and scoring: auto is bf16 where GPU or processor computes in it, else fp32; int8 (on a
    CPU) is bf16 with the image encoder's matrices in 8 bits. Trainings take bf16 on a GPU alone."""
    workers: int | None = Field(None, ge=1)
    """Processes that take shards; when not given, one a GPU or one a core."""
    threads: int = Field(1, ge=1)
    """CPU threads of each process that runs a model."""
    batch_size: int | None = Field(None, ge=1)
    """Images in a batch of recaptioning and scoring; when not given, 32 on a CPU and 128 on a GPU."""
    decoders: int | None = Field(None, ge=0)
    """Threads of each process that decode pictures ahead of the models; when not given, none on a CPU, which
    has nothing to spare, and its share of the cores for each GPU."""
    processes: int = Field(1, ge=1)
    """Processes of a pre-training, all of them together; started by torchrun, and checked against it."""
    compile: bool = False
    """Whether torch.compile makes the models' code: minutes at the start, for long runs."""

    def images_at_once(self, device: str) -> int:
        """Return how many images are in a batch on this device."""
        return self.batch_size or (128 if device.startswith("cuda") else 32)


class Judge(Settings):
    """Which pairs are kept (BLIP, section 3.3: ITM of at least 0.5, each text on its own)."""

    # A threshold is a number or a wish; as a number it may be typed without quotes.
    model_config = ConfigDict(coerce_numbers_to_str=True)

    itm: str | None = None
    """Least ITM: a probability, auto:precision=P or auto:recall=R."""
    itc: str | None = None
    """Least ITC: a cosine, auto:precision=P or auto:recall=R."""
    vqa: str | None = None
    """Least probability of yes to a question about the caption, auto:precision=P or auto:recall=R."""
    also: tuple[str, ...] = ()
    """Thresholds of further filters that scored the run, e.g. FILTER:itc=0.25, with FILTER the first digits
    of its digest or its name in the run's models/; all must hold."""
    fraction: float | None = Field(None, gt=0, le=1)
    """Keep this share of all captions, the best by `by`."""
    by: str | None = None
    """Score that `fraction`, `per_image` and `rescue` rank by: itm, FILTER:itc, or a weighted sum such as
    0.7*itm + 0.3*FILTER:itc. When not given, that of the only threshold, else the filter's ITM, VQA or ITC.
    By ITC, which knows no point where a match begins, they need no threshold."""
    per_image: int | None = Field(None, ge=1)
    """Keep at most this many different captions an image."""
    rescue: bool = False
    """A synthetic text is kept only where the web text is not."""
    noise_rate: float = Field(0.5, gt=0, lt=1)
    """Share of wrong pairs assumed by auto:precision."""

    @property
    def is_given(self) -> bool:
        """Whether any rule was chosen."""
        thresholds = (*(getattr(self, name) for name in SCORES), self.also)
        return any((*thresholds, self.fraction, self.per_image, self.rescue))

    @property
    def own_scores(self) -> tuple[str, ...]:
        """The scores that are read of the policy's own filter: by thresholds, and by what ranks."""
        thresholds = [name for name in SCORES if getattr(self, name) is not None]
        ranks = self.fraction is not None or self.per_image is not None or self.rescue
        terms = self.by.split("+") if self.by is not None and ranks else []
        own = [re.split(r"\*", term)[-1].strip() for term in terms if ":" not in term]
        return tuple(dict.fromkeys((*thresholds, *own)))

    @field_validator("by")
    @classmethod
    def _names_scores(cls, by: str | None) -> str | None:
        """Refuse a word that is no score before a run of hours; which filters there are is known later."""
        for term in by.split("+") if by is not None else ():
            if (score := re.split("[*:]", term)[-1].strip()) not in SCORES:
                raise ValueError(f"{score!r} is none of the scores, which are {', '.join(SCORES)}")
        return by

    @field_validator("also")
    @classmethod
    def _names_filters(cls, also: tuple[str, ...]) -> tuple[str, ...]:
        for one in also:
            if re.fullmatch(rf"[^:=]+:({'|'.join(SCORES)})=.+", one) is None:
                raise ValueError(f"{one!r} is not of the form FILTER:{'|'.join(SCORES)}=THRESHOLD")
        return also


class Export(Settings):
    """How kept pairs are written."""

    texts: Literal["best", "all", "web", "synthetic"] = "best"
    """Which kept captions of an image go out."""
    samples_per_shard: int = Field(10_000, ge=1)
    """Samples in a tar of the export."""
    accept_weak_filter: bool = False
    """Export even where the policy reads a score that is no better than chance on held-out pairs."""


def as_typed(source: Any) -> Any:
    """Return where a model is found as it was typed: a `Path` leaves one slash of an address's two."""
    if isinstance(source, Path):
        return re.sub(r"^(https?):/+", r"\1://", str(source), flags=re.I)
    return source


Source = Annotated[str, BeforeValidator(as_typed)]
"""Where a model is found: a path, a hub id, an address."""


class Bundles(Settings):
    """Models that are there already: a bundle, a transformers folder, a hub id (NAME/MODEL or
    NAME/MODEL@REVISION), or a .pth of BLIP's released code or of LAVIS."""

    init: Source | None = None
    """Captioner and filter start from this model instead of from scratch."""
    captioner: Source | None = None
    """Use this captioner; none is trained. It may be the address of a server too (http://HOST:PORT/v1)."""
    filter: Source | None = None
    """Use this filter; none is trained."""
    captioner_options: dict[str, Any] = Field(default_factory=dict)
    """What such a captioner is made with: of an image-text-to-text model of transformers `processor` and
    `template`, arguments of its processor and of its chat template, such as
    {template = {enable_thinking = false}}; of a .py the further arguments of its function."""
    filter_options: dict[str, Any] = Field(default_factory=dict)
    """What such a filter is made with: of a .py the further arguments of its function."""
    vision: str | None = None
    """Pretrained weights of `model.vision.timm` for a model that starts from none: a file of them, a hub id,
    or `timm` for the ones that timm knows. For a Q-Former also a bundle, a folder of transformers, or a .pth
    of LAVIS such as eva_vit_g.pth, whose image encoder is taken as it is."""
    text: str | None = None
    """Folder or hub id of a BERT whose weights, sizes and vocabulary such a model's text side takes, or the
    Q-Former of a first stage (BLIP-2, section 3.1)."""
    language: str | None = None
    """Folder or hub id of the language model of a captioner with a Q-Former: any of transformers' that
    continue a text (OPT, Llama) or answer one (T5)."""
    vocabulary: str = "bert-base-uncased"
    """Folder or hub id of the vocabulary of a .pth, which holds none."""
    size_px: int | None = Field(None, ge=8, le=4096)
    """Side at which the given models see pictures; their position embeddings are interpolated to it. By
    default each one's own."""


class Bootstrap(Settings):
    """A whole run: train, recaption, score, judge, export."""

    pipeline: str = ""
    """Name of the pipeline these choices come from."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Every random choice is keyed by it."""
    candidates: int = Field(1, ge=1)
    """Captions drawn for each image."""
    recaption: bool = True
    """Whether the captioner writes captions."""
    score: bool = True
    """Whether the filter scores and a policy judges."""
    bundles: Bundles = Bundles()
    pretrain_on: Literal["clean", "clean+web"] = "clean"
    """Pairs of the joint pre-training."""
    model: Trainable = Model()
    """How models are built: MED, or a Q-Former between frozen models."""
    pretrain: Training | None = None
    """Joint pre-training (ITC, ITM, LM) of one model that captioner and filter start from."""
    captioner_training: Training = Training(phases=(Phase(lm=1.0),))
    filter_training: Training = Training(phases=(Phase(itc=1.0, itm=1.0),))
    pretrains: Literal["joint", "captioner"] = "joint"
    """What `capfilt pretrain` makes: a model that captioner and filter start from, or, with a Q-Former, the
    captioner that its second stage makes of one (`bundles.init`)."""
    rounds: int = Field(1, ge=1)
    """Rounds of bootstrapping; between two a fresh model is pre-trained on what the first one made."""
    next_round: Training | None = None
    """Pre-training of the fresh model that a next round starts from; when not given, `pretrain`."""
    clean: Clean = Clean()
    stream: Stream = Stream()
    input: Input = Input()
    decoding: Decoding = Decoding()
    filter: Matching = Matching()
    server: Server = Server()
    compute: Compute = Compute()
    judge: Judge = Judge()
    export: Export = Export()
