"""Which pairs are kept: rules in order, rendered to parameterised SQL over the stored scores.

Deciding needs no model, so a policy can be changed at any time; a dropped pair stays in the record.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json, digest_of
from capfilt.errors import CapfiltError
from capfilt.files import TEMPORARY_PREFIX, disk_errors, flush_folder, write_whole
from capfilt.provenance.ranking import Ranking
from capfilt.provenance.rules import KINDS, AtLeast, PerImage, Ranked, Rescue, Rule, TopFraction, Value
from capfilt.provenance.rundir import RunDir, json_files, read_json
from capfilt.records import BEST_FIRST, Measure, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "AtLeast",
    "PerImage",
    "Policy",
    "Rendered",
    "Rescue",
    "Rule",
    "TopFraction",
    "Value",
    "newest_policy",
    "policies",
    "write_policy",
]


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
    def measures(self) -> tuple[Measure, ...]:
        """What the rules read, in their order, each once."""
        return tuple(dict.fromkeys(measure for rule in self.rules for measure in rule.measures))

    @property
    def ranking(self) -> Ranking:
        """What orders the texts of an image: the last ranking of a rule, else the best measure."""
        for rule in reversed(self.rules):
            if isinstance(rule, Ranked):
                return rule.ranking
        own = [one for score in BEST_FIRST for one in self.measures if one == Measure(score)]
        return Ranking(((1.0, next(iter((*own, *self.measures)), Measure(BEST_FIRST[0]))),))

    @property
    def further_filters(self) -> tuple[str, ...]:
        """Digests of the filters that are read beside the policy's own."""
        return tuple(dict.fromkeys(one.filter for one in self.measures if one.filter is not None))

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
        rules = [{"kind": rule.kind, **asdict(rule)} for rule in self.rules]
        for row in rules:
            # A rule that reads no further filter has the record, and the digest, that it always had.
            if row.get("filter", "") is None:
                del row["filter"]
        return {"rules": rules, "filter": self.filter}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Policy:
        """Return the policy of a record; one of a later version is refused with KeyError or TypeError."""
        rules = []
        for row in record["rules"]:
            values = {"filter": None, **row} if row["kind"] == AtLeast.kind else dict(row)
            kind = KINDS[values.pop("kind")]
            rules.append(kind(**{field.name: values.pop(field.name) for field in fields(kind)}))
            if values:
                raise KeyError(*values)
        return cls(tuple(rules), record["filter"])

    def render(self, columns: Sequence[str] = ("pair_id",)) -> Rendered:
        """Return one SELECT of `columns`, keep and reason over the relation `scored`.

        `scored` is captions with a column for each score, and one for each measure of a further filter;
        `columns` are columns of it.
        """
        read = sorted(measure.column for measure in self.measures)
        unscored = " OR ".join(f"{s} IS NULL OR NOT isfinite({s})" for s in read) or "false"
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
            if isinstance(rule, PerImage):  # a window over a window takes two steps
                steps.append(
                    f"{name}_texts AS (SELECT *, {rule.is_new(name)} AS {name}_is_new FROM {before})"
                )
                before = f"{name}_texts"
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
