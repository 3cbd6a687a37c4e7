"""The nouns: what a shard holds, what is known of it, and why something was refused or dropped.

Measured facts (scores) and decided ones (verdicts) are apart: a verdict can change without a model.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Status(StrEnum):
    """What became of a sample: its picture was used, or the whole sample was refused."""

    OK = "ok"
    REFUSED = "refused"


class Refusal(StrEnum):
    """Why a sample was refused, or, where its status is `ok`, why only its web text was."""

    # The whole sample: there is no picture to work with.
    MISSING_IMAGE = "missing_image"
    EMPTY_IMAGE = "empty_image"
    UNREADABLE_IMAGE = "unreadable_image"
    """Bytes that no decoder knows, or a picture cut off in the middle."""
    TOO_MANY_PIXELS = "too_many_pixels"
    REPEATED_KEY = "repeated_key"
    DAMAGED_SHARD = "damaged_shard"
    """A part of the tar that could not be read; `member` says which bytes."""
    # The web text alone: the picture is still recaptioned.
    MISSING_TEXT = "missing_text"
    EMPTY_TEXT = "empty_text"
    TEXT_NOT_UTF8 = "text_not_utf8"
    TEXT_TOO_LONG = "text_too_long"


class Source(StrEnum):
    """Where a caption comes from."""

    WEB = "web"
    """T_w: the text found with the picture."""
    SYNTHETIC = "synthetic"
    """T_s: written by the captioner."""


class Unfinished(StrEnum):
    """Why a captioner did not end a caption by itself, where it says so."""

    LENGTH = "length"
    """Cut off at `decoding.max_tokens`."""
    CONTENT_FILTER = "content_filter"
    """Withheld by a filter of contents; the text is empty."""
    REFUSED = "refused"
    """No answer to this picture, though others are answered; the text is empty."""


class Reason(StrEnum):
    """Why a policy keeps or drops a pair."""

    KEPT = "kept"
    EMPTY_CAPTION = "empty_caption"
    UNSCORED = "unscored"
    """The policy asks for a score that this pair does not have."""
    BELOW_THRESHOLD = "below_threshold"
    BELOW_FRACTION = "below_fraction"
    NOT_BEST_OF_IMAGE = "not_best_of_image"
    REPEATED_TEXT = "repeated_text"
    """The image keeps the same text already, in a better place: of another draw, or of the web."""
    WEB_TEXT_KEPT = "web_text_kept"
    """A synthetic text is only asked to rescue, and the web text needs no rescue."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file of samples."""

    name: str
    """Stable and unique within an input: its path below the input's common folder, without `.tar`."""
    path: Path
    ordinal: int
    """Position in the sorted input, from 0."""
    size: int
    """Bytes of the file."""
    digest: str
    """Quick digest of the file: its size, its first and its last 64 kB."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its text, as a shard holds it; the image is not decoded yet."""

    shard: str
    key: str
    status: Status = Status.OK
    reason: Refusal | None = None
    member: str = ""
    """Name of the image's member in the tar, or the damaged byte range."""
    image: bytes | None = field(default=None, repr=False)
    """Encoded bytes, exactly as in the shard."""
    image_offset: int | None = None
    """Where the image's bytes begin in the tar."""
    image_size: int | None = None
    """Bytes of the encoded image, whether they were read or not."""
    web_text: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """What KEY.json held; empty when there was none or it could not be parsed."""

    @property
    def image_sha256(self) -> str | None:
        """What the image really is: the sha256 of its encoded bytes, in hex."""
        return None if self.image is None else hashlib.sha256(self.image).hexdigest()


@dataclass(frozen=True, slots=True)
class Caption:
    """A text and where it comes from."""

    text: str
    source: Source
    candidate: int = 0
    """Number of the draw for a synthetic text, from 0; 0 for a web text."""
    unfinished: Unfinished | None = None
    """Why its writer did not end it; None where it did, and where nobody says."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What the numbers of a score are."""

    low: float
    high: float
    kind: str
    """With its article: a cosine."""
    meaning: str

    @property
    def is_probability(self) -> bool:
        """Whether 0.5 is where it turns from no to yes."""
        return (self.low, self.high) == (0, 1)


def _cosine(meaning: str) -> Any:
    return field(default=None, metadata={"scale": Scale(-1, 1, "a cosine", meaning)})


def _probability(meaning: str) -> Any:
    return field(default=None, metadata={"scale": Scale(0, 1, "a probability", meaning)})


@dataclass(frozen=True, slots=True)
class Scores:
    """What a filter measured for one pair; a filter may lack any of them.

    The one table of scores: rows, columns, policies and reports follow from its lines. What a user asks for
    by name, `judge.itm` and `--itm`, stands with the settings and the options.
    """

    itc: float | None = _cosine("cosine of image and text features")
    """Image-text contrast (BLIP, section 3.2, ITC)."""
    itm: float | None = _probability("probability of a match")
    """Image-text matching (BLIP, section 3.2, ITM)."""
    vqa: float | None = _probability("probability of yes to a question about the caption")
    """Visual question answering: whether the picture shows what the caption says (Lin et al., "Evaluating
    text-to-visual generation with image-to-text generation", 2024, VQAScore)."""

    def measured(self) -> dict[str, float]:
        """Return the scores that were measured, by name."""
        values = {name: getattr(self, name) for name in SCORES}
        return {name: value for name, value in values.items() if value is not None}


SCORES: dict[str, Scale] = {one.name: one.metadata["scale"] for one in fields(Scores)}
"""Every score by its name."""
BEST_FIRST = tuple(sorted(SCORES, key=lambda name: not SCORES[name].is_probability))
"""Which score speaks for a filter that has several: probabilities look at image and text together."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A score by one filter, as a policy reads it and a column holds it."""

    score: str
    filter: str | None = None
    """Digest of a further filter; None for the one that the policy names."""

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            *most, last = SCORES
            raise ValueError(f"{self.score!r}; the scores are {', '.join(most)} and {last}")
        # Its first digits become the name of a column.
        if self.filter is not None and not is_digest(self.filter):
            raise ValueError(f"{self.filter!r}; a further filter is named by 8 or more digits of its digest")

    @classmethod
    def of_column(cls, name: str) -> Measure:
        """Return what a column of `pairs` holds; of a further filter only the first digits are known."""
        score, _, digits = name.partition("_")
        return cls(score, digits or None)

    @property
    def column(self) -> str:
        """Name of the column of `pairs`: itc, or itc_1a2b3c4d for a further filter."""
        return self.score if self.filter is None else f"{self.score}_{self.filter[:8]}"

    @property
    def words(self) -> str:
        """The measure in words."""
        return self.score.upper() + (f" by filter {self.filter[:8]}" if self.filter is not None else "")


def is_digest(text: str) -> bool:
    """Return whether a text is a digest, or its first 8 or more digits."""
    return re.fullmatch("[0-9a-f]{8,64}", text) is not None


def pair_id(*, shard: str, key: str, source: Source, candidate: int, round_number: int) -> str:
    """Name of one image with one caption within a run: 32 hex digits, the same at every run."""
    parts = "\0".join((shard, key, source.value, str(candidate), str(round_number)))
    return hashlib.sha256(parts.encode("utf-8", "backslashreplace")).hexdigest()[:32]
