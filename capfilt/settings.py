"""Every choice a run takes, named, with its unit and range, and refused where it is out of range."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from capfilt.layers import Settings


class Images(Settings):
    """How a picture becomes numbers (BLIP's released processing: a square, bicubic, CLIP's mean and std)."""

    size_px: int = Field(384, ge=8, le=4096)
    """Side of the square that the image encoder sees, in pixels."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Subtracted from each channel, on a scale of 0 to 1."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Each channel is divided by it, on a scale of 0 to 1."""
    transparency: Literal["white", "drop"] = "white"
    """What shows where a picture is transparent: white, or the colour the file hides there, as for models
    whose pictures had their transparency dropped (BLIP's released code, transformers)."""


class Vision(Settings):
    """The image encoder: a ViT of timm. The name of one, where this group stands, is its `timm`."""

    timm: str | None = None
    """Name of a timm ViT, such as vit_base_patch16_384; its own sizes then replace the ones below."""
    patch_px: int = Field(16, ge=1)
    """Side of a patch, in pixels."""
    width: int = Field(768, ge=8)
    """Size of an image state."""
    layers: int = Field(12, ge=0)
    """Transformer layers."""
    heads: int = Field(12, ge=1)
    """Attention heads; they share the width."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Size of the hidden layer of the feed-forward part, as a multiple of the width."""
    norm_epsilon: float = Field(1e-6, gt=0)
    """Added to the variance in every norm (BLIP's released code: 1e-6; transformers' own default: 1e-5)."""
    stem: Literal["patch", "convolution"] = "patch"
    """How pixels become patches: one linear map, or a few convolutions that halve the side each time."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip():
            return {"timm": value.strip()}
        if not isinstance(value, (dict, cls)):
            raise ValueError("an image encoder is the name of a timm ViT, or a group such as {width = 768}")
        return value


class Text(Settings):
    """The hybrid text transformer (BLIP, section 3.1)."""

    width: int = Field(768, ge=8)
    """Size of a text state."""
    layers: int = Field(12, ge=1)
    """Layers, each with self-attention, cross-attention to the image and feed-forward."""
    heads: int = Field(12, ge=1)
    """Attention heads; they share the width."""
    feed_forward: int = Field(3072, ge=8)
    """Size of the hidden layer of the feed-forward part."""
    vocabulary: int = Field(30522, ge=16)
    """Most entries of a WordPiece vocabulary that is trained; a checkpoint brings its own."""
    max_tokens: int = Field(35, ge=4)
    """Longest text that is read, in tokens with its first and last one; the rest is cut."""
    places: int = Field(512, ge=4)
    """Rows of the table of positions: no text, prompt included, is longer."""
    norm_epsilon: float = Field(1e-12, gt=0)
    """Added to the variance in every norm."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of states set to zero during training."""


class Model(Settings):
    """MED, the multimodal mixture of encoder and decoder (BLIP, section 3.1)."""

    images: Images = Images()
    vision: Vision = Vision()
    text: Text = Text()
    embed: int = Field(256, ge=2)
    """Common width of the ITC projections."""
    temperature: float = Field(0.07, ge=0.001, le=0.5)
    """Where the learned temperature of ITC starts; it stays within [0.001, 0.5]."""
    shared_vision: bool = False
    """Captioner and filter keep the image encoder of the model they start from, untrained, so that a picture
    is encoded once for both."""

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.vision.timm is None and self.vision.width % self.vision.heads:
            raise ValueError("vision.width must be a multiple of vision.heads")
        if self.text.width % self.text.heads:
            raise ValueError("text.width must be a multiple of text.heads")
        if self.vision.timm is None and self.images.size_px % self.vision.patch_px:
            raise ValueError("images.size_px must be a multiple of vision.patch_px")
        if self.text.max_tokens > self.text.places:
            raise ValueError("text.max_tokens is above text.places")
        return self


class Decoding(Settings):
    """How the captioner draws a caption (BLIP, section 3.3: nucleus sampling, p = 0.9)."""

    method: Literal["nucleus", "greedy", "beam"] = "nucleus"
    """nucleus draws, greedy takes the likeliest token, beam keeps the likeliest beginnings."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Mass of the nucleus: draw from the likeliest tokens that together reach it."""
    top_k: int = Field(0, ge=0)
    """Draw from this many likeliest tokens at most; 0 for no such limit."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it before the draw."""
    beams: int = Field(3, ge=1)
    """Beginnings that beam search keeps."""
    length_penalty: float = 1.0
    """Beam scores are divided by the length to this power."""
    length_counts: Literal["generated", "whole"] | None = None
    """What beam search takes for a caption's length: the tokens it generated, end included (transformers),
    or all of them, prompt included and end not (BLIP's released code); by default the captioner's own."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1, tokens that stand in the caption become less likely."""
    min_tokens: int | None = Field(None, ge=0)
    """Shortest caption, in tokens, neither prompt nor end counted; by default the captioner's own."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest caption, in tokens, neither prompt nor end counted; by default the captioner's own."""
    prompt: str | None = None
    """Words that every caption begins with, not part of its text; by default the captioner's own."""

    @model_validator(mode="after")
    def _lengths_in_order(self) -> Self:
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens is above max_tokens")
        return self


class SettledDecoding(Decoding):
    """Decoding with nothing left open: what models are given. The defaults are ours (BLIP, section 3.3)."""

    length_counts: Literal["generated", "whole"] = "generated"
    """What beam search takes for a caption's length."""
    min_tokens: int = Field(5, ge=0)
    """Shortest caption, in tokens, neither prompt nor end counted."""
    max_tokens: int = Field(20, ge=1)
    """Longest caption, in tokens, neither prompt nor end counted."""
    prompt: str = ""
    """Words that every caption begins with, not part of its text."""


class Matching(Settings):
    """How the filter reads a text; by default as the model was made to (see a bundle's card)."""

    match_token: Literal["cls", "enc"] | None = None
    """First token of a text whose match is judged: [CLS] or [ENC] (BLIP, section 3.1: [Encode])."""
    clean_up: Literal["none", "blip"] | None = None
    """blip: lower case and no punctuation, at most 30 words, as the released code's data sets do."""


class Phase(Settings):
    """One part of a training: which losses, for how long, how fast (BLIP, section 3.2 and 4.1)."""

    itc: float = Field(0.0, ge=0)
    """Weight of the image-text contrastive loss; 0 leaves it out."""
    itm: float = Field(0.0, ge=0)
    """Weight of the image-text matching loss; 0 leaves it out."""
    lm: float = Field(0.0, ge=0)
    """Weight of the language modelling loss; 0 leaves it out."""
    itm_from: float = Field(0.0, ge=0, lt=1)
    """ITM starts after this share of the steps: hard negatives need similarities that mean something."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; when not given, `epochs` counts."""
    epochs: float = Field(5.0, gt=0)
    """Passes over the training pairs, when `steps` is not given."""
    batch_size: int = Field(64, ge=1)
    """Pairs in a step."""
    learning_rate: float = Field(1e-5, gt=0)
    """Highest learning rate, reached after the warm-up."""
    final_learning_rate: float = Field(0.0, ge=0)
    """Learning rate at the end of the cosine."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises, when `warmup_steps` is not given."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps in which the learning rate rises."""
    first_learning_rate: float = Field(0.0, ge=0)
    """Learning rate that the rise begins from."""
    decay: float | None = Field(None, gt=0, le=1)
    """The learning rate is multiplied by it after every pass, down to `final_learning_rate`; when not given
    it falls along a cosine."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's, for matrices; gains, biases and the temperature are spared."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Of the language modelling loss (BLIP's released code; the paper, section 3.2)."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """What the momentum encoder keeps of itself at a step (BLIP, section 3.2: 0.995); 0 for none."""
    queue: int = Field(0, ge=0)
    """Momentum features of past pairs that ITC compares with too; batches need not divide it."""
    alpha: float = Field(0.0, ge=0, le=1)
    """Share of the momentum encoder's soft labels in the targets of ITC."""
    alpha_epochs: float = Field(1.0, ge=0)
    """Passes in which alpha rises from 0 (ALBEF: 1; BLIP's released pre-training: 2)."""
    negatives: Literal["distinct", "released"] = "distinct"
    """Which pairs are no negatives of each other: distinct, those with an equal image or an equal caption;
    released, those with an equal image alone, as in BLIP's code."""
    negatives_by: Literal["online", "momentum"] = "online"
    """Features of the other side by which hard negatives are drawn: the model's own (BLIP's released
    retrieval), or the momentum encoder's (its pre-training)."""
    negatives_floor: float = Field(0.0, ge=0, lt=1)
    """Added to the weight of each possible hard negative (BLIP's released pre-training: 1e-4)."""
    accumulate: int = Field(1, ge=1)
    """Parts that a step's batch is computed in, one after the other. LM is that of the whole batch; ITC and
    ITM compare within a part, so that this is no larger batch for them."""

    @model_validator(mode="after")
    def _losses_fit(self) -> Self:
        if self.itc == self.itm == self.lm == 0:
            raise ValueError("a phase needs a loss: give itc, itm or lm a weight above 0")
        if self.momentum == 0 and (self.queue or self.alpha or self.negatives_by == "momentum"):
            raise ValueError("queue, alpha and negatives_by=momentum need a momentum encoder: momentum=0.995")
        if self.batch_size % self.accumulate:
            raise ValueError("batch_size must be a multiple of accumulate")
        return self


class Augment(Settings):
    """How training pictures are varied (BLIP, section 4.1: RandAugment without changes of colour)."""

    crop_least: float = Field(1.0, gt=0, le=1)
    """Least share of a picture's area that a random crop keeps; 1 crops nothing."""
    flip: float = Field(0.0, ge=0, le=1)
    """Chance that a picture is mirrored; captions that say left and right are then wrong."""
    operations: int = Field(0, ge=0)
    """RandAugment's operations for each picture; 0 for none."""
    magnitude: int = Field(5, ge=0, le=10)
    """RandAugment's strength."""

    @property
    def is_on(self) -> bool:
        """Whether anything is varied."""
        return self.crop_least < 1 or self.flip > 0 or self.operations > 0


class Training(Settings):
    """How one model is trained: phase after phase."""

    phases: tuple[Phase, ...] = Field(min_length=1)
    augment: Augment = Augment()
    gradient_checkpointing: bool = False
    """Compute states again in the backward pass instead of keeping them: a third slower, far less memory."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between two checkpoints; a killed training loses at most these."""
    validate_every: int = Field(500, ge=1)
    """Steps between two measurements on held-out pairs."""
    log_every: int = Field(20, ge=1)
    """Steps between two rows of training losses."""


class Clean(Settings):
    """What is done with the clean pairs before a training."""

    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the clean pairs kept from training, for validation and calibration."""
    held_out_most: int = Field(2000, ge=1)
    """Most pairs held out."""
    cache_mb: int = Field(2048, ge=0)
    """Decoded training pictures are kept in memory up to this size; beyond it they are read again."""


class Stream(Settings):
    """How pairs are read in a pre-training, from shards of any number."""

    clean: float = Field(1.0, ge=0)
    """Weight of clean texts. A picture is met as often in a pass as the largest weight of its texts says,
    fractions by chance, and one of its texts is drawn by their weights each time."""
    web: float = Field(1.0, ge=0)
    """Weight of web texts."""
    synthetic: float = Field(1.0, ge=0)
    """Weight of synthetic texts."""
    shuffle_buffer: int = Field(10_000, ge=1)
    """Pairs among which the next one is drawn, in each process; their pictures are not in memory."""


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
    fraction: float | None = Field(None, gt=0, le=1)
    """Keep this share of all captions, the best by `by`."""
    by: Literal["itc", "itm"] | None = None
    """Score that `fraction`, `per_image` and `rescue` rank by; when not given, ITC where the only threshold
    is one of ITC, else ITM."""
    per_image: int | None = Field(None, ge=1)
    """Keep at most this many captions an image."""
    rescue: bool = False
    """A synthetic text is kept only where the web text is not."""
    noise_rate: float = Field(0.5, gt=0, lt=1)
    """Share of wrong pairs assumed by auto:precision."""

    @property
    def is_given(self) -> bool:
        """Whether any rule was chosen."""
        return any((self.itm, self.itc, self.fraction, self.per_image, self.rescue))


class Export(Settings):
    """How kept pairs are written."""

    texts: Literal["best", "all", "web", "synthetic"] = "best"
    """Which kept captions of an image go out."""
    samples_per_shard: int = Field(10_000, ge=1)
    """Samples in a tar of the export."""
    accept_weak_filter: bool = False
    """Export even where the policy reads a score that is no better than chance on held-out pairs."""


class Bundles(Settings):
    """Models that are there already: a bundle, a transformers folder, a hub id (NAME/MODEL or
    NAME/MODEL@REVISION), or a .pth of BLIP's released code or of LAVIS."""

    init: Path | None = None
    """Captioner and filter start from this model instead of from scratch."""
    captioner: Path | None = None
    """Use this captioner; none is trained."""
    filter: Path | None = None
    """Use this filter; none is trained."""
    vision: str | None = None
    """Pretrained weights of `model.vision.timm` for a model that starts from none: a file of them, a hub id,
    or `timm` for the ones that timm knows."""
    text: str | None = None
    """Folder or hub id of a BERT whose weights, sizes and vocabulary such a model's text side takes."""
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
    model: Model = Model()
    pretrain: Training | None = None
    """Joint pre-training (ITC, ITM, LM) of one model that captioner and filter start from."""
    captioner_training: Training = Training(phases=(Phase(lm=1.0),))
    filter_training: Training = Training(phases=(Phase(itc=1.0, itm=1.0),))
    rounds: int = Field(1, ge=1)
    """Rounds of bootstrapping; between two a fresh model is pre-trained on what the first one made."""
    next_round: Training | None = None
    """Pre-training of the fresh model that a next round starts from; when not given, `pretrain`."""
    clean: Clean = Clean()
    stream: Stream = Stream()
    input: Input = Input()
    decoding: Decoding = Decoding()
    filter: Matching = Matching()
    compute: Compute = Compute()
    judge: Judge = Judge()
    export: Export = Export()
