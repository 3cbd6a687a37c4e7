"""What the page shows of a run, as plain values: facets, cards of pictures, the history of one of them.

Every text in them is a stranger's, as it stands in the record; whoever shows it escapes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ScoreColumn:
    """One column of scores that a selection may name."""

    name: str
    """itm, or itc_1a2b3c4d of a further filter."""
    words: str
    """In words: ITM, or ITC by filter 1a2b3c4d."""
    low: float
    high: float
    """Ends of the scale: what a slider runs between."""
    least: float | None
    most: float | None
    """What was measured; None where nothing was."""
    is_probability: bool


@dataclass(frozen=True, slots=True)
class ShardFacet:
    """One committed shard."""

    name: str
    samples: int
    refused: int
    texts: int


@dataclass(frozen=True, slots=True)
class Facets:
    """What there is to choose from. Counts are of texts, but for those of refusals, which are of samples."""

    samples: int
    pictures: int
    """Samples whose picture was used."""
    texts: int
    sources: dict[str, int]
    reasons: dict[str, int]
    """Verdicts of the policy in force; empty where nothing was judged."""
    refusals: dict[str, int]
    """Why samples were refused or, where their picture was used, their web text was."""
    shards: list[ShardFacet]
    columns: list[ScoreColumn]
    """The best score first."""
    filters: list[str]
    """Digests of the filters that scored the run, the policy's own first."""
    rounds: list[int]
    labels: dict[str, int]
    """match, mismatch, unsure: texts with such a newest label."""
    planted: dict[str, int]
    """What the metadata says of web texts (`right`, or a kind of noise); empty where it says nothing."""
    policy: int | None
    """Number of the policy in force."""
    policy_words: str
    is_complete: bool
    """Whether all texts and scores are loaded; until then `reasons`, `planted` and ends are empty."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a picture, with all that was measured and decided."""

    pair_id: str
    source: str
    candidate: int
    text: str
    scores: dict[str, float | None]
    """By column, the best score first."""
    keep: bool | None
    """Verdict of the proposal that is looked at, else of the policy in force; None where there is neither."""
    reason: str | None
    label: str | None = None
    """match, mismatch or unsure."""
    planted: str | None = None
    """What the metadata says of it."""
    is_selected: bool = True
    """Whether it meets what the selection asks of texts."""


@dataclass(frozen=True, slots=True)
class Card:
    """One picture and its texts."""

    shard: str
    key: str
    width: int | None
    height: int | None
    """Pixels, upright; None where the picture was refused."""
    status: str
    """ok or refused."""
    refusal: str | None
    """Why the sample was refused or, where the status is ok, why its web text was."""
    texts: list[Text] = field(default_factory=list)
    """The web text first, then candidates in their order."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A page of pictures."""

    rows: list[Card]
    total: int
    """Pictures that the selection fits."""
    texts: int
    """Texts that meet what the selection asks of texts."""
    offset: int
    limit: int


@dataclass(frozen=True, slots=True)
class Telling:
    """One text in one round: who wrote it, how, and what became of it."""

    round: int
    pair_id: str
    source: str
    candidate: int
    text: str
    captioner: str | None
    """Digest of the captioner's weights; None for a web text."""
    captioner_ancestors: str | None
    decoding: str | None
    """Settings of the draw, as canonical JSON."""
    prompt: str | None
    seed: int | None
    filter: str | None
    """Digest of the filter whose scores the round's policy reads."""
    scores: dict[str, float | None]
    keep: bool | None
    reason: str | None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """One sample through all rounds."""

    shard: str
    key: str
    image_sha256: str | None
    url: str | None
    metadata: str
    """KEY.json as canonical JSON."""
    status: str
    refusal: str | None
    tellings: list[Telling]
    """By round, the web text first."""
    policies: dict[int, str]
    """Each round's policy in words."""
