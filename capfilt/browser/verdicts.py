"""A policy's verdicts over arrays: what `Policy.render` says in SQL, fast enough for a slider.

Rules that rank need an order, and that order does not depend on where a slider stands. So each is sorted once
and every later verdict is a walk along it; the SQL would sort millions of pairs at each step. The SQL is what
`capfilt judge` and the views mean, and tests hold the two against each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from capfilt.provenance.policy import AtLeast, PerImage, Rescue, TopFraction
from capfilt.records import Measure, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from capfilt.browser.columns import Columns, Floats, Indices
    from capfilt.provenance.policy import Policy
    from capfilt.provenance.ranking import Ranking

    Codes = NDArray[np.uint8]
    Mask = NDArray[np.bool_]

REASONS = (Reason.KEPT, *(reason for reason in Reason if reason is not Reason.KEPT))
"""By code: 0 is kept, every other one is dropped."""
CODE = {reason: code for code, reason in enumerate(REASONS)}
_KEPT = CODE[Reason.KEPT]


@dataclass(frozen=True)
class Pairs:
    """Pairs as the policies of one filter see them."""

    columns: Columns
    filter: str | None
    """The filter whose scores are meant where a measure names none."""
    further: tuple[str, ...] = ()
    """Digests of all filters of the run."""

    def values(self, measure: Measure) -> Floats:
        """Return the column of a measure: NaN where a pair lacks it."""
        import numpy as np

        digest = self.filter if measure.filter is None else self._whole(measure.filter)
        found = self.columns.scores.get((digest or "", measure.score))
        return np.full(len(self.columns), np.nan) if found is None else found

    def _whole(self, digits: str) -> str:
        return next((digest for digest in self.further if digest.startswith(digits)), digits)

    def ranked(self, ranking: Ranking) -> Indices:
        """Return the rows that have all of a ranking's scores, the best first and equal ones by pair_id."""
        return self._order(f"{self.filter} {ranking}", lambda: self._sorted(ranking))

    def ranked_by_picture(self, ranking: Ranking) -> Indices:
        """Return the same rows, those of a picture together."""
        import numpy as np

        def ordered() -> Indices:
            rows = self.ranked(ranking)
            return rows[np.argsort(self.columns.picture[rows], kind="stable")]

        return self._order(f"{self.filter} {ranking} by picture", ordered)

    def ranked_twins(self, ranking: Ranking) -> Indices:
        """Return those of the same rows whose text their picture has again, equal texts of it together."""
        import numpy as np

        def ordered() -> Indices:
            rows = self.ranked_by_picture(ranking)
            twin = self.columns.twin
            rows = rows[twin[rows] >= 0]
            return rows[np.lexsort((twin[rows], self.columns.picture[rows]))]

        return self._order(f"{self.filter} {ranking} by text", ordered)

    def _order(self, name: str, make: Callable[[], Indices]) -> Indices:
        orders = self.columns.orders
        found = orders.get(name)
        if found is None:
            found = make()
            if len(orders) >= _MOST_ORDERS:
                orders.pop(next(iter(orders)), None)
            orders[name] = found
        return found

    def _sorted(self, ranking: Ranking) -> Indices:
        import numpy as np

        if ranking.only is not None:
            values = self.values(ranking.only)
        else:  # summed in the order in which SQL sums
            first, *others = (weight * self.values(measure) for weight, measure in ranking.terms)
            values = first
            for other in others:
                values = values + other
        by_name = self.columns.by_name
        rows = by_name[np.isfinite(values[by_name])]
        return rows[np.argsort(-values[rows], kind="stable")]


_MOST_ORDERS = 8
"""Orders that are kept in memory, a number a pair each."""


@dataclass(frozen=True)
class Verdicts:
    """A policy's verdict on every pair."""

    policy: Policy
    codes: Codes
    """Place of each pair's reason in REASONS."""

    @cached_property
    def keep(self) -> Mask:
        """Which pairs are kept."""
        kept: Mask = self.codes == _KEPT
        return kept


def judge(policy: Policy, pairs: Pairs) -> Verdicts:
    """Return the verdicts of a policy; those of its rendered SQL."""
    import numpy as np

    columns = pairs.columns
    codes = np.zeros(len(columns), np.uint8)
    for measure in policy.measures:
        codes[~np.isfinite(pairs.values(measure))] = CODE[Reason.UNSCORED]
    codes[columns.is_blank] = CODE[Reason.EMPTY_CAPTION]
    is_scored = codes == _KEPT
    for rule in policy.rules:
        if isinstance(rule, AtLeast):
            dropped = (codes == _KEPT) & (pairs.values(rule.measure) < rule.threshold)
            codes[dropped] = CODE[Reason.BELOW_THRESHOLD]
        elif isinstance(rule, TopFraction):
            _drop_below_fraction(rule, pairs, codes, is_scored)
        elif isinstance(rule, Rescue):
            _drop_rescues(rule, pairs, codes)
        else:
            _drop_all_but_best(rule, pairs, codes)
    return Verdicts(policy, codes)


def _drop_below_fraction(rule: TopFraction, pairs: Pairs, codes: Codes, is_scored: Mask) -> None:
    import numpy as np

    order = pairs.ranked(rule.ranking)
    order = order[is_scored[order]]
    most = math.floor(rule.fraction * len(order) + 1e-6)
    beyond = np.zeros(len(codes), np.bool_)
    beyond[order[most:]] = True
    codes[beyond & (codes == _KEPT)] = CODE[Reason.BELOW_FRACTION]


def _drop_rescues(rule: Rescue, pairs: Pairs, codes: Codes) -> None:
    import numpy as np

    columns = pairs.columns
    survives = codes == _KEPT
    has_web = np.zeros(columns.pictures, np.bool_)
    has_web[columns.picture[survives & columns.is_web]] = True
    synthetic = survives & ~columns.is_web
    order = pairs.ranked_by_picture(rule.ranking)
    order = order[synthetic[order]]
    codes[order[_place_among(columns.picture[order]) >= 1]] = CODE[Reason.NOT_BEST_OF_IMAGE]
    codes[synthetic & has_web[columns.picture]] = CODE[Reason.WEB_TEXT_KEPT]


def _drop_all_but_best(rule: PerImage, pairs: Pairs, codes: Codes) -> None:
    import numpy as np

    columns = pairs.columns
    order = pairs.ranked_by_picture(rule.ranking)
    order = order[codes[order] == _KEPT]
    twins = pairs.ranked_twins(rule.ranking)
    twins = twins[codes[twins] == _KEPT]
    again = twins[_place_among(columns.picture[twins], columns.twin[twins]) >= 1]
    place = _place_among(columns.picture[order])
    if len(again):  # a text counts where it stands first
        codes[again] = CODE[Reason.REPEATED_TEXT]
        repeats = np.cumsum(codes[order] != _KEPT)
        place -= repeats - repeats[np.arange(len(order)) - place]  # those of pictures before are not meant
    codes[order[place >= rule.n]] = CODE[Reason.NOT_BEST_OF_IMAGE]


def _place_among(*groups: NDArray[Any]) -> Indices:
    """Return the place of each row among those alike in all of these, from 0; they stand together."""
    import numpy as np

    rows = len(groups[0])
    is_first = np.ones(rows, np.bool_)
    is_first[1:] = np.logical_or.reduce([group[1:] != group[:-1] for group in groups])
    starts = np.flatnonzero(is_first)
    return np.arange(rows) - np.repeat(starts, np.diff(np.append(starts, rows)))


def exported(verdicts: Verdicts, columns: Columns, texts: str) -> int:
    """Return how many samples an export of these texts (best, all, web, synthetic) holds."""
    import numpy as np

    keep = verdicts.keep
    if texts in ("web", "synthetic"):
        keep = keep & (columns.is_web == (texts == "web"))
    return int(np.count_nonzero(np.bincount(columns.picture[keep], minlength=1)))


def reason_of(code: int) -> str:
    """Return the reason of a code."""
    return REASONS[code].value


def codes_of(reasons: Sequence[str]) -> list[int]:
    """Return the codes of reasons."""
    return [CODE[Reason(reason)] for reason in reasons]
