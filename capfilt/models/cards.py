"""What a bundle says of itself, read without its weights and without torch.

    capfilt.json                the card: kind, digests of the other files, structure, lineage, training
    model.safetensors           the weights, under transformers' names
    config.json                 what transformers needs to load the folder
    preprocessor_config.json    likewise, for pictures
    capfilt.safetensors         instead of these three, where transformers cannot build the model: another
                                image encoder than BLIP's, or not all heads. It would build what it can and
                                draw the rest at random, so that it must find nothing.
    tokenizer.json, vocab.txt   the vocabulary, and what tokenizers say of it
    training.safetensors        what serves training alone: the temperature of ITC
    calibration.json            for a filter: how its scores tell held-out clean pairs from wrong ones
    metrics.json                the rows of its training

A joint model is a card and training.safetensors beside the bundles captioner/ and filter/. The card is the
only file that is believed; the rest must agree with it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.layers import Settings, validated
from capfilt.settings import Blip2, Decoding, Foreign, Matching, Model, SettledDecoding, Structure

if TYPE_CHECKING:
    from pathlib import Path

CARD_FILE = "capfilt.json"
WEIGHTS_FILE = "model.safetensors"
OWN_WEIGHTS_FILE = "capfilt.safetensors"
TRAINING_FILE = "training.safetensors"
CALIBRATION_FILE = "calibration.json"
METRICS_FILE = "metrics.json"
Objective = Literal["itc", "itm", "lm"]
Kind = Literal["captioner", "filter", "joint"]


INSTRUCTION = "Write a short description of the image."
"""What a captioner of InstructBLIP is asked unless a prompt says otherwise, and learns captions by."""


class Conventions(Settings):
    """How a model is used as it was made to be: what its weights do not say.

    The defaults are ours. They are what a setting of the same name means while it is not chosen.
    """

    match_token: Literal["cls", "enc"] = "enc"
    """First token of a text whose match is judged."""
    clean_up: Literal["none", "blip"] = "none"
    """What is done to a text before it is scored."""
    prompt: str = ""
    """Words that every caption begins with."""
    min_tokens: int = 5
    """Shortest caption, neither prompt nor end counted."""
    max_tokens: int = 20
    """Longest caption, neither prompt nor end counted."""
    length_counts: Literal["generated", "whole"] = "generated"
    """What beam search takes for a caption's length."""

    def decoding(self, chosen: Decoding) -> SettledDecoding:
        """Return the choices, what was not chosen filled in."""
        values = chosen.model_dump()
        for name in ("prompt", "min_tokens", "max_tokens", "length_counts"):
            if values[name] is None:
                values[name] = getattr(self, name)
        # A length that was chosen moves the other one, where that was not.
        if chosen.max_tokens is None:
            values["max_tokens"] = max(values["max_tokens"], values["min_tokens"])
        if chosen.min_tokens is None:
            values["min_tokens"] = min(values["max_tokens"], values["min_tokens"])
        return SettledDecoding(**values)

    def matching(self, chosen: Matching) -> Matching:
        """Return the choices, what was not chosen filled in."""
        return Matching(
            match_token=chosen.match_token or self.match_token,
            clean_up=chosen.clean_up or self.clean_up,
            question=chosen.question,
        )


class Origin(Settings):
    """Where a model that capfilt did not train comes from."""

    kind: Literal["transformers", "pth"]
    """A transformers checkpoint, or a .pth of BLIP's released code or of LAVIS."""
    source: str
    """Path, or hub id."""
    revision: str | None = None
    """Commit of the hub."""
    sha256: str
    """Digest of the weights as they came."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Weights there that serve training or another function (names, or patterns of names), and what they
    are."""
    fresh: tuple[str, ...] = ()
    """Weights that it lacks, drawn anew: heads of a model that only starts a training."""
    parts: dict[str, str] = Field(default_factory=dict)
    """Digests of the frozen models that were named for a file without them: vision, language."""


class Card(Settings):
    """What a bundle is and where it comes from."""

    format: Literal[2] = 2
    """Version of this layout."""
    kind: Kind
    """captioner writes, filter scores, joint does both."""
    objectives: tuple[Objective, ...]
    """What the model was trained for, which says which parts it has."""
    weights: str
    """sha256 of the file of weights; of a joint model, the digest of its parts' digests."""
    files: dict[
        Annotated[str, Field(pattern=r"^((captioner|filter|qformer_tokenizer)/)?\w[\w.-]*$")], str
    ] = Field(default_factory=dict)
    """sha256 of the other files that its numbers, or a training that starts from it, depend on."""
    model: Structure
    """How it is built."""
    vocabulary: int
    """Entries of its vocabulary."""
    vocabulary_digest: str = ""
    """Digest of its words in their order and of how a text is read."""
    first_id: int | None = None
    """Id that a caption begins with: that of [DEC], unless a checkpoint named another."""
    conventions: Conventions = Conventions()
    """How it is used as it was made to be."""
    origin: Origin | None = None
    """Where it comes from, unless capfilt trained it."""
    image_encoder: str = ""
    """Digest of the image encoder's weights and of how a picture becomes numbers; models with the same one
    encode a picture once."""
    resized_from_px: int | None = None
    """Side of the pictures it was trained on, if its position embeddings were interpolated to another."""
    parent: str | None = None
    """Digest of the weights it was started from; none from scratch."""
    data: str | None = None
    """Digest of the pairs it was trained on."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings of the training, and what it came to."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the libraries that trained it."""

    @property
    def digest(self) -> str:
        """What rows and policies know the model by.

        Of a model of capfilt's own that is its weights: what else its numbers depend on is a setting, and
        recorded as one. Other software reads preprocessing, tokenizer and template from the files beside the
        weights, so that the same weights may be another model: such a one is known by its `identity`.
        """
        return identity(self) if isinstance(self.model, Foreign) else self.weights

    @property
    def med(self) -> Model:
        """How MED is built; raises CapfiltError for a model that is none."""
        if not isinstance(self.model, Model):
            raise self._is_another("BLIP's model (MED)")
        return self.model

    @property
    def blip2(self) -> Blip2:
        """How a Q-Former is built; raises CapfiltError for a model that has none."""
        if not isinstance(self.model, Blip2):
            raise self._is_another("BLIP-2's or InstructBLIP's model")
        return self.model

    @property
    def foreign(self) -> Foreign:
        """What runs a model that capfilt does not; raises CapfiltError for one of its own."""
        if not isinstance(self.model, Foreign):
            raise self._is_another("a model that other software runs")
        return self.model

    @property
    def is_qformer(self) -> bool:
        """Whether it is a model with a Q-Former."""
        return isinstance(self.model, Blip2)

    @property
    def is_instructed(self) -> bool:
        """Whether it answers questions about a picture, and so can be asked whether a text is right."""
        return isinstance(self.model, Blip2) and self.model.family == "instructblip"

    @property
    def scores(self) -> tuple[str, ...]:
        """What it measures of a pair as a filter: names of `capfilt.records.SCORES`."""
        if self.is_instructed:
            return ("vqa",)
        return tuple(one for one in self.objectives if one != "lm")

    @property
    def reads(self) -> tuple[str, ...]:
        """The settings of `filter` that its scores depend on."""
        if isinstance(self.model, Foreign):
            return ()
        return ("question",) if self.is_instructed else ("match_token", "clean_up")

    def matching(self, chosen: Matching) -> dict[str, Any]:
        """Return how it reads texts, as plain values: the choices that it heeds, what is open filled in."""
        values = self.conventions.matching(chosen).model_dump(mode="json")
        return {name: values[name] for name in self.reads if values[name] is not None}

    @property
    def family(self) -> str:
        """What kind of model it is, in a word."""
        if isinstance(self.model, Model):
            return "blip"
        return self.model.family if isinstance(self.model, Blip2) else self.model.backend

    def _is_another(self, wanted: str) -> CapfiltError:
        return CapfiltError(
            f"this {self.kind} is of the kind {self.family}, where {wanted} is asked for",
            fix="give a model of that kind",
        )


def read_card(path: Path) -> Card:
    """Read what a bundle says it is, without its weights."""
    try:
        values = json.loads((path / CARD_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = "there is no such folder" if not path.exists() else f"it has no {CARD_FILE}"
        raise CapfiltError(
            f"{path} is no bundle: {what}",
            fix="give a folder that `capfilt train captioner|filter CLEAN --out BUNDLE` made, or one in a "
            "run's models/",
        ) from error
    except (OSError, ValueError) as error:
        raise CapfiltError(
            f"{path / CARD_FILE} cannot be read: {error}", fix="give a whole bundle; copy it again"
        ) from error
    if isinstance(values, dict) and values.get("format") == 1:
        raise CapfiltError(
            f"{path / CARD_FILE} is of the format of capfilt 0.1, which no other tool can load",
            fix="train the model again",
        )
    if not isinstance(values, dict) or values.get("format") != 2:
        raise CapfiltError(
            f"{path / CARD_FILE} is of a format that this version does not know", fix="update capfilt"
        )
    try:
        return validated(Card, values)
    except CapfiltError as error:
        raise CapfiltError(
            f"{path / CARD_FILE} is damaged: {error.what}", fix="give a whole bundle; copy it again"
        ) from error


def identity(card: Card) -> str:
    """Return the digest of all that a model's numbers, or a training that starts from it, depend on."""
    parts = {"weights", "files", "model", "vocabulary_digest", "first_id", "conventions"}
    values = card.model_dump(mode="json", include=parts)
    values["model"].pop("asked", None)
    return digest_of(values)


def read_calibration(path: Path) -> dict[str, Any] | None:
    """Read a filter's calibration; None when it has none."""
    file = path / CALIBRATION_FILE
    if not file.exists():
        return None
    try:
        calibration: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CapfiltError(
            f"{file} cannot be read: {error}", fix="give a whole bundle; copy it again"
        ) from error
    return calibration
