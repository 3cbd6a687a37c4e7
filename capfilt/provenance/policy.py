"""Which pairs are kept: rules as typed objects, rendered to parameterised SQL over the stored scores.

Deciding needs no model, so a policy can be changed at any time; a dropped pair stays in the record. Rules
are objects of ours and never a user's text: nothing but names of this file stands in the SQL, and every
value is a `$name` parameter.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from capfilt.canonical import canonical_json, digest_of
from capfilt.errors import CapfiltError
from capfilt.files import TEMPORARY_PREFIX, disk_errors, flush_folder, write_whole
from capfilt.provenance.rundir import RunDir, json_files, read_json
from capfilt.records import Reason, Source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Score = Literal["itc", "itm"]
Value = float | int | str
_RANGES: dict[str, tuple[float, float, str]] = {"itc": (-1, 1, "a cosine"), "itm": (0, 1, "a probability")}


@dataclass(frozen=True, slots=True)
class AtLeast:
    """Keep what scores at least the threshold, each text on its own (BLIP, section 3.3, by ITM)."""

    score: Score
    threshold: float
    """itc: a cosine, -1 to 1; itm: a probability, 0 to 1."""
    chosen: str = ""
    """How the threshold was found, where it was not given, e.g. auto:precision=0.95."""

    kind: ClassVar[str] = "at_least"

    def __post_init__(self) -> None:
        # One number has one digest: 1 is 1.0, and -0.0 is 0.0.
        object.__setattr__(self, "threshold", float(self.threshold) + 0.0)
        _check_score("score", self.score)
        low, high, what = _RANGES[self.score]
        if not low <= self.threshold <= high:
            example = (
                f"set judge.{self.score} between {low:g} and {high:g}, e.g. --set judge.{self.score}=0.5"
            )
            raise CapfiltError(
                f"judge.{self.score} is {self.threshold}; {self.score.upper()} is {what}.", fix=example
            )

    @property
    def words(self) -> str:
        """The rule in words."""
        chosen = f" ({self.chosen})" if self.chosen else ""
        return f"{self.score.upper()} of at least {self.threshold:.6g}{chosen}"

    @property
    def scores_used(self) -> set[str]:
        """Names of the scores that the rule reads."""
        return {self.score}

    def parameters(self, name: str) -> dict[str, Value]:
        """Return the values of the rule's SQL."""
        return {f"{name}_threshold": self.threshold}

    def sql(self, name: str) -> str:
        """Return an expression over survivors: the reason to drop the pair, or null."""
        return f"CASE WHEN {self.score} < ${name}_threshold THEN '{Reason.BELOW_THRESHOLD}' END"


@dataclass(frozen=True, slots=True)
class TopFraction:
    """Keep the best share of all scored captions of the run, whatever earlier rules dropped.

    A fraction of n captions is n times the fraction, rounded down; equal scores are ordered by pair_id.
    Source: DataComp (Gadre et al., 2023), section 4.2, CLIP score filtering.
    """

    fraction: float
    """Above 0, at most 1."""
    by: Score = "itm"

    kind: ClassVar[str] = "top_fraction"

    def __post_init__(self) -> None:
        object.__setattr__(self, "fraction", float(self.fraction))
        _check_score("by", self.by)
        if not 0 < self.fraction <= 1:
            raise CapfiltError(
                f"judge.fraction is {self.fraction}; it is the share of all captions to keep.",
                fix="set judge.fraction above 0 and at most 1, e.g. --set judge.fraction=0.3",
            )

    @property
    def words(self) -> str:
        """The rule in words."""
        return f"among the best {self.fraction * 100:.6g}% of all scored captions by {self.by.upper()}"

    @property
    def scores_used(self) -> set[str]:
        """Names of the scores that the rule reads."""
        return {self.by}

    def parameters(self, name: str) -> dict[str, Value]:
        """Return the values of the rule's SQL."""
        return {f"{name}_fraction": self.fraction}

    def sql(self, name: str) -> str:
        """Return an expression over survivors: the reason to drop the pair, or null."""
        # A millionth is added because 0.29 * 100 is 28.999999999999996.
        most = f"floor(${name}_fraction * count(*) OVER (PARTITION BY is_scored) + 1e-6)"
        rank = f"row_number() OVER (PARTITION BY is_scored ORDER BY {self.by} DESC, pair_id)"
        return f"CASE WHEN {rank} > {most} THEN '{Reason.BELOW_FRACTION}' END"


@dataclass(frozen=True, slots=True)
class Rescue:
    """Keep a web text that survived, and a synthetic one only where its sample has none: the best one."""

    by: Score = "itm"
    """What ranks synthetic texts of one sample; equal scores are ordered by pair_id."""

    kind: ClassVar[str] = "rescue"

    def __post_init__(self) -> None:
        _check_score("by", self.by)

    @property
    def words(self) -> str:
        """The rule in words."""
        return f"a synthetic text only where no web text is kept, the best one by {self.by.upper()}"

    @property
    def scores_used(self) -> set[str]:
        """Names of the scores that the rule reads."""
        return {self.by}

    def parameters(self, name: str) -> dict[str, Value]:  # noqa: ARG002
        """Return the values of the rule's SQL: none."""
        return {}

    def sql(self, name: str) -> str:  # noqa: ARG002
        """Return an expression over survivors: the reason to drop the pair, or null."""
        web = f"bool_or(source = '{Source.WEB}' AND dropped IS NULL) OVER (PARTITION BY shard, key)"
        order = f"ORDER BY {self.by} DESC, pair_id"
        rank = f"row_number() OVER (PARTITION BY shard, key, source, dropped IS NULL {order})"
        return (
            f"CASE WHEN source = '{Source.WEB}' THEN NULL WHEN {web} THEN '{Reason.WEB_TEXT_KEPT}'"
            f" WHEN {rank} > 1 THEN '{Reason.NOT_BEST_OF_IMAGE}' END"
        )


@dataclass(frozen=True, slots=True)
class PerImage:
    """Keep at most n captions of an image, the best ones.

    An image is a sample (a key in a shard): the same bytes under two keys are two images, as they are
    two samples of an export.
    """

    n: int
    by: Score = "itm"
    """What ranks; equal scores are ordered by pair_id."""

    kind: ClassVar[str] = "per_image"

    def __post_init__(self) -> None:
        _check_score("by", self.by)
        if self.n < 1:
            raise CapfiltError(
                f"judge.per_image is {self.n}; it is how many captions an image may keep.",
                fix="set judge.per_image to 1 or more, e.g. --set judge.per_image=1",
            )

    @property
    def words(self) -> str:
        """The rule in words."""
        return f"at most {self.n} an image, the best by {self.by.upper()}"

    @property
    def scores_used(self) -> set[str]:
        """Names of the scores that the rule reads."""
        return {self.by}

    def parameters(self, name: str) -> dict[str, Value]:
        """Return the values of the rule's SQL."""
        return {f"{name}_n": int(self.n)}

    def sql(self, name: str) -> str:
        """Return an expression over survivors: the reason to drop the pair, or null."""
        rank = (
            f"row_number() OVER (PARTITION BY shard, key, dropped IS NULL ORDER BY {self.by} DESC, pair_id)"
        )
        return f"CASE WHEN {rank} > ${name}_n THEN '{Reason.NOT_BEST_OF_IMAGE}' END"


Rule = AtLeast | TopFraction | Rescue | PerImage
_KINDS: dict[str, type[Rule]] = {rule.kind: rule for rule in get_args(Rule)}


@dataclass(frozen=True, slots=True)
class Rendered:
    """One SELECT over the relation `scored`, and the values of its `$name` parameters."""

    sql: str
    parameters: dict[str, Value]


_NO_TEXT = r"text IS NULL OR NOT regexp_matches(text, '[^\s\v\p{Z}\x1c-\x1f\x{85}]')"
"""White space as str.isspace has it; DuckDB's own is ASCII only."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in order; each sees what survived those before it, and the first that drops a pair says why.

    A pair without words is dropped first, then one that lacks a score some rule reads. Without rules
    every caption that has words is kept.
    """

    rules: tuple[Rule, ...] = ()
    filter: str | None = None
    """Digest of the filter whose scores are read; None is the run's first."""

    @property
    def scores_used(self) -> set[str]:
        """Names of the scores that the rules read."""
        return set().union(*(rule.scores_used for rule in self.rules))

    @property
    def words(self) -> str:
        """The policy in words."""
        return "; ".join(rule.words for rule in self.rules) or "every caption that is not empty"

    @property
    def digest(self) -> str:
        """Digest of the rules, their thresholds and the filter."""
        return digest_of(self.record())

    def record(self) -> dict[str, Any]:
        """Return the policy as plain values; `Policy.read` takes them back."""
        return {"rules": [{"kind": rule.kind, **asdict(rule)} for rule in self.rules], "filter": self.filter}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Policy:
        """Return the policy of a record; one of a later version is refused with KeyError or TypeError."""
        rules = []
        for row in record["rules"]:
            kind = _KINDS[row["kind"]]
            rules.append(kind(**{field.name: row[field.name] for field in fields(kind)}))
        return cls(tuple(rules), record["filter"])

    def render(self, columns: Sequence[str] = ("pair_id",)) -> Rendered:
        """Return one SELECT of `columns`, keep and reason over the relation `scored`.

        `scored` is captions with the columns itc and itm; `columns` are columns of it.
        """
        unscored = (
            " OR ".join(f"{s} IS NULL OR NOT isfinite({s})" for s in sorted(self.scores_used)) or "false"
        )
        steps = [
            f"judged AS (SELECT *, CASE WHEN {_NO_TEXT} THEN '{Reason.EMPTY_CAPTION}'"
            f" WHEN {unscored} THEN '{Reason.UNSCORED}' END AS dropped,"
            " dropped IS NULL AS is_scored FROM scored)"
        ]
        parameters: dict[str, Value] = {}
        before = "judged"
        for i, rule in enumerate(self.rules, 1):
            name = f"rule_{i}"
            parameters |= rule.parameters(name)
            steps.append(
                f"{name} AS (SELECT * REPLACE (coalesce(dropped, {rule.sql(name)}) AS dropped) FROM {before})"
            )
            before = name
        chosen = ", ".join(f'"{column}"' for column in columns)
        verdict = f"dropped IS NULL AS keep, coalesce(dropped, '{Reason.KEPT}') AS reason"
        chain = ",\n".join(steps)
        return Rendered(f"WITH {chain}\nSELECT {chosen}, {verdict} FROM {before}", parameters)


# -- numbered files


def write_policy(run: RunDir, policy: Policy) -> int:
    """Write the policy as the run's newest and return its number, from 1.

    A number is never written twice, whichever process comes first. Where the newest policy is the same
    one, nothing is written and its number is returned.
    """
    text = canonical_json({**policy.record(), "digest": policy.digest, "words": policy.words})
    temporary = run.policies / f"{TEMPORARY_PREFIX}policy.{os.getpid()}"
    with disk_errors(run.policies):
        while True:
            newest = newest_policy(run)
            if newest is not None and newest[1].digest == policy.digest:
                return newest[0]
            number = 1 if newest is None else newest[0] + 1
            write_whole(temporary, text)
            try:
                os.link(temporary, run.policies / f"{number:04d}.json")
            except FileExistsError:
                continue
            finally:
                temporary.unlink(missing_ok=True)
            flush_folder(run.policies)
            return number


def policies(run: RunDir) -> list[tuple[int, Policy]]:
    """Return the run's policies by number; the last is in force."""
    found = [(int(path.stem), path) for path in json_files(run.policies) if path.stem.isdecimal()]
    return [(number, _read_policy(path)) for number, path in sorted(found)]


def newest_policy(run: RunDir) -> tuple[int, Policy] | None:
    """Return the policy in force and its number; None where nothing was judged yet."""
    found = policies(run)
    return found[-1] if found else None


def _read_policy(path: Path) -> Policy:
    mend = "remove the file and give `capfilt judge RUN` the rule again"
    try:
        return Policy.read(read_json(path, mend=mend))
    except (KeyError, TypeError) as error:
        raise CapfiltError(f"{path} is no policy of this version: {error!r}", fix=mend) from error


def _check_score(name: str, score: str) -> None:
    if score not in _RANGES:
        raise CapfiltError(f"judge.{name} is {score!r}; the scores are itc and itm.", fix="choose itc or itm")
