"""The rules of a policy as typed objects, each with its words and its SQL over the pairs that survive.

Rules are objects of ours and never a user's text: nothing but names of this room stands in the SQL, and every
value is a `$name` parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from capfilt.errors import CapfiltError
from capfilt.provenance.ranking import Ranking
from capfilt.records import SCORES, Measure, Reason, Source

Value = float | int | str


@dataclass(frozen=True, slots=True)
class AtLeast:
    """Keep what scores at least the threshold, each text on its own (BLIP, section 3.3, by ITM)."""

    score: str
    threshold: float
    """Within the score's scale: itc -1 to 1, itm and vqa 0 to 1."""
    chosen: str = ""
    """How the threshold was found, where it was not given, e.g. auto:precision=0.95."""
    filter: str | None = None
    """Digest of a further filter whose score is meant; None for the policy's own."""

    kind: ClassVar[str] = "at_least"

    def __post_init__(self) -> None:
        # One number has one digest: 1 is 1.0, and -0.0 is 0.0.
        object.__setattr__(self, "threshold", float(self.threshold) + 0.0)
        try:
            measure = self.measure
        except ValueError as error:
            raise CapfiltError(f"judge.score is {error}.", fix="e.g. --itm 0.5") from error
        scale = SCORES[measure.score]
        if not scale.low <= self.threshold <= scale.high:
            raise CapfiltError(
                f"judge.{self.score} is {self.threshold}; {self.score.upper()} is {scale.kind}.",
                fix=f"set judge.{self.score} between {scale.low:g} and {scale.high:g}, "
                f"e.g. --set judge.{self.score}=0.5",
            )

    @property
    def measure(self) -> Measure:
        """What must reach the threshold."""
        return Measure(self.score, self.filter)

    @property
    def words(self) -> str:
        """The rule in words."""
        chosen = f" ({self.chosen})" if self.chosen else ""
        return f"{self.measure.words} of at least {self.threshold:.6g}{chosen}"

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What the rule reads."""
        return (self.measure,)

    def parameters(self, name: str) -> dict[str, Value]:
        """Return the values of the rule's SQL."""
        return {f"{name}_threshold": self.threshold}

    def sql(self, name: str) -> str:
        """Return an expression over survivors: the reason to drop the pair, or null."""
        return f"CASE WHEN {self.measure.column} < ${name}_threshold THEN '{Reason.BELOW_THRESHOLD}' END"


class Ranked:
    """What rules that put captions in order have in common."""

    __slots__ = ()

    by: str
    """One score or a weighted sum (see ranking.py); captions that are equal by it are ordered by pair_id."""

    def _write_ranking_one_way(self) -> None:
        object.__setattr__(self, "by", str(self.ranking))

    @property
    def ranking(self) -> Ranking:
        """What ranks, read."""
        return Ranking.read(self.by)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What the rule reads."""
        return self.ranking.measures

    def _order(self, name: str) -> str:
        return f"ORDER BY {self.ranking.sql(name)} DESC, pair_id"


@dataclass(frozen=True, slots=True)
class TopFraction(Ranked):
    """Keep the best share of all scored captions of the run, whatever earlier rules dropped.

    A fraction of n captions is n times the fraction, rounded down; equal scores are ordered by pair_id.
    Source: DataComp (Gadre et al., 2023), section 4.2, CLIP score filtering.
    """

    fraction: float
    """Above 0, at most 1."""
    by: str = "itm"

    kind: ClassVar[str] = "top_fraction"

    def __post_init__(self) -> None:
        object.__setattr__(self, "fraction", float(self.fraction))
        self._write_ranking_one_way()
        if not 0 < self.fraction <= 1:
            raise CapfiltError(
                f"judge.fraction is {self.fraction}; it is the share of all captions to keep.",
                fix="set judge.fraction above 0 and at most 1, e.g. --set judge.fraction=0.3",
            )

    @property
    def words(self) -> str:
        """The rule in words."""
        return f"among the best {self.fraction * 100:.6g}% of all scored captions by {self.ranking.words}"

    def parameters(self, name: str) -> dict[str, Value]:
        """Return the values of the rule's SQL."""
        return {f"{name}_fraction": self.fraction, **self.ranking.parameters(name)}

    def sql(self, name: str) -> str:
        """Return an expression over survivors: the reason to drop the pair, or null."""
        # A millionth is added because 0.29 * 100 is 28.999999999999996.
        most = f"floor(${name}_fraction * count(*) OVER (PARTITION BY is_scored) + 1e-6)"
        rank = f"row_number() OVER (PARTITION BY is_scored {self._order(name)})"
        return f"CASE WHEN {rank} > {most} THEN '{Reason.BELOW_FRACTION}' END"


@dataclass(frozen=True, slots=True)
class Rescue(Ranked):
    """Keep a web text that survived, and a synthetic one only where its sample has none: the best one."""

    by: str = "itm"
    """What ranks synthetic texts of one sample."""

    kind: ClassVar[str] = "rescue"

    def __post_init__(self) -> None:
        self._write_ranking_one_way()

    @property
    def words(self) -> str:
        """The rule in words."""
        return f"a synthetic text only where no web text is kept, the best one by {self.ranking.words}"

    def parameters(self, name: str) -> dict[str, Value]:
        """Return the values of the rule's SQL."""
        return self.ranking.parameters(name)

    def sql(self, name: str) -> str:
        """Return an expression over survivors: the reason to drop the pair, or null."""
        web = f"bool_or(source = '{Source.WEB}' AND dropped IS NULL) OVER (PARTITION BY shard, key)"
        rank = f"row_number() OVER (PARTITION BY shard, key, source, dropped IS NULL {self._order(name)})"
        return (
            f"CASE WHEN source = '{Source.WEB}' THEN NULL WHEN {web} THEN '{Reason.WEB_TEXT_KEPT}'"
            f" WHEN {rank} > 1 THEN '{Reason.NOT_BEST_OF_IMAGE}' END"
        )


@dataclass(frozen=True, slots=True)
class PerImage(Ranked):
    """Keep at most n different captions of an image, the best ones.

    Of captions with one text, letter for letter, the best placed stands for all. An image is a sample (a key
    in a shard): the same bytes under two keys are two images, as they are two samples of an export.
    """

    n: int
    by: str = "itm"
    """What ranks."""

    kind: ClassVar[str] = "per_image"

    def __post_init__(self) -> None:
        self._write_ranking_one_way()
        if self.n < 1:
            raise CapfiltError(
                f"judge.per_image is {self.n}; it is how many captions an image may keep.",
                fix="set judge.per_image to 1 or more, e.g. --set judge.per_image=1",
            )

    @property
    def words(self) -> str:
        """The rule in words."""
        return f"at most {self.n} an image, the best by {self.ranking.words}"

    def parameters(self, name: str) -> dict[str, Value]:
        """Return the values of the rule's SQL."""
        return {f"{name}_n": int(self.n), **self.ranking.parameters(name)}

    def is_new(self, name: str) -> str:
        """Return an expression over survivors: whether no better one of the image has the same text."""
        return f"row_number() OVER (PARTITION BY shard, key, dropped IS NULL, text {self._order(name)}) = 1"

    def sql(self, name: str) -> str:
        """Return an expression over survivors, which have `is_new` as a column NAME_is_new."""
        # Twice as fast as count(DISTINCT text) over the same window.
        texts = (
            f"sum({name}_is_new::INTEGER) OVER (PARTITION BY shard, key, dropped IS NULL {self._order(name)}"
            " ROWS UNBOUNDED PRECEDING)"
        )
        return (
            f"CASE WHEN {texts} > ${name}_n THEN '{Reason.NOT_BEST_OF_IMAGE}'"
            f" WHEN NOT {name}_is_new THEN '{Reason.REPEATED_TEXT}' END"
        )


Rule = AtLeast | TopFraction | Rescue | PerImage
KINDS: dict[str, type[Rule]] = {rule.kind: rule for rule in get_args(Rule)}
"""Every rule by the name it has in a record."""
