"""How models are trained: phases, what varies the pictures, which pairs are read and which held out."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from capfilt.layers import Settings


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
    """AdamW's, for matrices (BLIP, section 4.1: 0.05)."""
    beta2: float = Field(0.999, gt=0, lt=1)
    """AdamW's, of the second moment (BLIP-2, section 3.4: 0.98)."""
    decays: Literal["matrices", "everything"] = "matrices"
    """What decays: gains, biases and the temperature are spared, or not (BLIP's released code)."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Of the language modelling loss (BLIP's released code; the paper, section 3.2)."""
    itc_smoothing: float = Field(0.0, ge=0, lt=1)
    """Of ITC: this share of the target is spread over the whole batch (LAVIS, BLIP-2: 0.1)."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """What the momentum encoder keeps of itself at a step (BLIP's released code: 0.995); 0 for none."""
    queue: int = Field(0, ge=0)
    """Momentum features of past pairs that ITC compares with too; batches need not divide it."""
    alpha: float = Field(0.0, ge=0, le=1)
    """Share of the momentum encoder's soft labels in the targets of ITC."""
    alpha_epochs: float = Field(1.0, ge=0)
    """Passes in which alpha rises from 0 (ALBEF: 1; BLIP's released pre-training: 2)."""
    negatives: Literal["distinct", "released"] = "distinct"
    """Which pairs are no negatives of each other: distinct, those with an equal image or an equal caption;
    released, those with an equal image alone, as in BLIP's code."""
    negatives_by: Literal["online", "momentum", "chance"] = "online"
    """Features of the other side by which hard negatives are drawn: the model's own (BLIP's released
    retrieval), or the momentum encoder's (its pre-training); by chance none, and all are equally likely."""
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
