"""What puts captions in order: one score of one filter, or a weighted sum of several.

A ranking is written as a person types it, `itm` or `0.7*itm + 0.3*1a2b3c4d:itc`, so that a policy's record
holds it in one string and one of an older version reads the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError
from capfilt.records import Measure

if TYPE_CHECKING:
    from collections.abc import Callable

TERM = re.compile(
    r"\s*(?:(?P<weight>[\d.]+(?:e-\d+)?)\s*\*\s*)?(?:(?P<filter>[^\s:*+=]+):)?(?P<score>\w+)\s*"
)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Measures with their weights; what sums higher is better. Only the weights' ratios matter."""

    terms: tuple[tuple[float, Measure], ...]
    """At least one; weights above 0."""

    @classmethod
    def read(cls, text: str, named: Callable[[str], str | None] = str) -> Ranking:
        """Return the ranking of a text; CapfiltError where it is none.

        `named` turns the name of a filter into its digest, None for the policy's own.
        """
        terms: list[tuple[float, Measure]] = []
        for part in text.split("+"):
            found = TERM.fullmatch(part)
            weight = _number(found["weight"]) if found is not None else None
            if found is None or weight is None:
                raise CapfiltError(
                    f"judge.by is {text!r}, which is no score and no sum of scores",
                    fix="write itm, FILTER:itc, or 0.7*itm + 0.3*FILTER:itc with weights above 0",
                )
            filter_ = named(found["filter"]) if found["filter"] is not None else None
            try:
                terms.append((weight, Measure(found["score"], filter_)))
            except ValueError as error:
                raise CapfiltError(f"judge.by is {error}.", fix="e.g. --by itm") from error
        if len({measure for _, measure in terms}) < len(terms):
            raise CapfiltError(f"judge.by is {text!r}: a score stands in it twice", fix="add its weights up")
        if len(terms) == 1:  # its weight changes no order
            terms = [(1.0, terms[0][1])]
        return cls(tuple(terms))

    def __str__(self) -> str:
        """Return what `read` takes, one text for one ranking."""
        names = [f"{one.filter}:{one.score}" if one.filter else one.score for one in self.measures]
        if not self._is_weighed:
            return " + ".join(names)
        return " + ".join(f"{weight!r}*{name}" for (weight, _), name in zip(self.terms, names, strict=True))

    @property
    def words(self) -> str:
        """The ranking in words."""
        if not self._is_weighed:
            return " + ".join(measure.words for measure in self.measures)
        return " + ".join(f"{weight:.6g} {measure.words}" for weight, measure in self.terms)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What it reads."""
        return tuple(measure for _, measure in self.terms)

    @property
    def only(self) -> Measure | None:
        """Its measure where it is no sum."""
        return self.terms[0][1] if len(self.terms) == 1 else None

    def sql(self, name: str) -> str:
        """Return an expression over the columns of the measures."""
        if self.only is not None:
            return self.only.column
        sums = (f"${name}_weight_{i} * {measure.column}" for i, (_, measure) in enumerate(self.terms, 1))
        return f"({' + '.join(sums)})"

    def parameters(self, name: str) -> dict[str, float | int | str]:
        """Return the values of the expression."""
        if self.only is not None:
            return {}
        return {f"{name}_weight_{i}": weight for i, (weight, _) in enumerate(self.terms, 1)}

    @property
    def _is_weighed(self) -> bool:
        return self.only is None and any(weight != 1 for weight, _ in self.terms)


def _number(text: str | None) -> float | None:
    """Return a weight, 1 where none is written; None where it is no number above 0."""
    try:
        value = 1.0 if text is None else float(text)
    except ValueError:
        return None
    return value if 0 < value <= 1e9 else None
