"""What a proposed policy comes to, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

BINS = 50
"""Bars of a histogram."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many texts of a source have one verdict for one reason."""

    source: str
    keep: bool
    reason: str
    texts: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """How one score of the texts of one source is spread, kept and dropped apart."""

    column: str
    source: str
    low: float
    high: float
    """Ends of the first and of the last bar; all are equally wide."""
    kept: list[int]
    dropped: list[int]
    threshold: float | None
    """The least score that the proposal lets pass; None where it has no threshold on this column."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a policy's choice is where the truth is known."""

    known_by: str
    """planted: the metadata says so; labels: people said so."""
    texts: int
    """Texts of which the truth is known."""
    precision: Share | None
    """Right ones among those kept; None where none of them is kept."""
    recall: Share | None
    """Kept ones among the right; None where none is right."""
    kinds: dict[str, tuple[int, int]]
    """Kept and all by what is known of a text: right, swap, ... or match, mismatch, unsure."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a proposal would keep, before anything is written."""

    words: str
    """The policy in words."""
    digest: str
    """Of the policy; the same as after `capfilt judge`."""
    command: str
    """What to type for the same policy."""
    export_command: str
    """What to type for the export that goes with it."""
    counts: list[Count]
    """Web texts first, kept ones first."""
    kept: int
    """Texts."""
    texts: int
    pictures_kept: int
    """Samples that keep a text."""
    exported: int
    """Samples that an export of these texts (best, all, web, synthetic) would hold."""
    histograms: list[Histogram]
    """The best score first, web before synthetic."""
    quality: list[Quality]
    """By planted labels and by people's, where there are any."""
    seconds: float
    """What it took."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A policy that was written."""

    policy: int
    """Its number."""
    words: str
    command: str
    export_command: str


@dataclass(frozen=True, slots=True)
class Newest:
    """A text that was written lately."""

    shard: str
    key: str
    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Live:
    """Where a run stands now."""

    is_running: bool
    """Whether a process holds the run."""
    round: int
    """The last round that began: everything else is of this one."""
    stage: str | None
    """The stage that runs, or the last one; None before the first."""
    status: str | None
    """running, done, withheld, failed or interrupted."""
    detail: str
    seconds: float | None
    """How long the stage ran, or has run."""
    shards: int
    """Committed."""
    shards_total: int | None
    """Of the input; None where the run does not say."""
    samples: int
    pictures: int
    captions: int
    images_per_second: float | None
    """Of the stage, by what was committed since it began; None before a shard was."""
    refusals: dict[str, int]
    """Samples that were refused or lost their web text, by reason."""
    newest: list[Newest]
    """Synthetic texts of the shard that was committed last."""
