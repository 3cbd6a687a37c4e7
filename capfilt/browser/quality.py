"""How good a policy's choice is, where the truth about some texts is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.browser.previews import Quality, Share
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.label_figures import Z95, Cell, precision_and_recall
from capfilt.provenance.labels import Verdict, read_labels, text_digest
from capfilt.provenance.strata import UNSCORED, Strata, cut_strata, known_strata
from capfilt.records import Source
from capfilt.stages.evaluate.pairs import RIGHT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from capfilt.browser.columns import Columns, Indices
    from capfilt.browser.store import Store
    from capfilt.browser.verdicts import Verdicts
    from capfilt.provenance.label_figures import Estimate
    from capfilt.provenance.labels import Label
    from capfilt.provenance.rundir import RunDir

_SAYS = {Verdict.MATCH: 1, Verdict.MISMATCH: -1}


def planted_quality(verdicts: Verdicts, columns: Columns) -> Quality | None:
    """Return precision and recall among web texts of which the metadata says whether they are right."""
    import numpy as np

    if RIGHT not in columns.kinds:
        return None
    is_told = columns.planted >= 0
    kinds = len(columns.kinds)
    every = np.bincount(columns.planted[is_told], minlength=kinds).tolist()
    kept = np.bincount(columns.planted[is_told & verdicts.keep], minlength=kinds).tolist()
    right = columns.kinds.index(RIGHT)
    return Quality(
        known_by="planted",
        texts=sum(every),
        precision=wilson(kept[right], sum(kept)),
        recall=wilson(kept[right], every[right]),
        kinds={kind: (kept[n], every[n]) for n, kind in enumerate(columns.kinds)},
    )


def wilson(count: int, of: int) -> Share | None:
    """Return a share with Wilson's 95% interval (Wilson, 1927); None of nothing."""
    if of == 0:
        return None
    share, square = count / of, Z95**2 / of
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    return Share(share, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Said:
    """What people said of the texts of a run, brought to their rows."""

    rows: Indices
    """Of labelled pairs, each once."""
    said: NDArray[np.int64]
    """Above 0 where more say match than mismatch, below 0 the other way."""
    kinds: tuple[str, ...]
    """match, mismatch or unsure, for each."""
    parts: NDArray[np.int64]
    """Of every pair with words, the number of its part, web and synthetic texts apart; -1 for others."""

    @classmethod
    def of(cls, store: Store, columns: Columns, filter_digest: str | None) -> Said:
        """Return the labels that count: those of texts as they stand and, where any is, of drawn samples.

        They are the ones that `provenance.labels.measured` counts.
        """
        import numpy as np

        labels, known = read_labels(store.run), known_strata(store.run)
        strata = known or _cut_now(store.run, filter_digest)
        sums: dict[int, int] = {}
        drawn: set[int] = set()
        for row, label in _fresh(labels, store, columns):
            sums[row] = sums.get(row, 0) + _SAYS.get(label.verdict, 0)
            if known is not None and (label.draw or "").startswith(f"{known.digest}-"):
                drawn.add(row)
        if any(sums[row] for row in drawn):
            sums = {row: value for row, value in sums.items() if row in drawn}
        said = np.array(list(sums.values()), np.int64)
        kinds = tuple("match" if v > 0 else "mismatch" if v < 0 else "unsure" for v in sums.values())
        return cls(np.array(list(sums), np.int64), said, kinds, _parts(strata, columns))


def labelled_quality(verdicts: Verdicts, said: Said) -> Quality | None:
    """Return precision and recall by the labels of people, each weighed by how it was drawn."""
    import numpy as np

    if not len(said.rows):
        return None
    known = said.parts >= 0
    place = said.parts * 2 + verdicts.keep
    count = int(said.parts.max()) + 1 if len(said.parts) else 0
    pairs = np.bincount(place[known], minlength=2 * count)
    mine = known[said.rows]
    matches = np.bincount(place[said.rows[mine & (said.said > 0)]], minlength=2 * count)
    mismatches = np.bincount(place[said.rows[mine & (said.said < 0)]], minlength=2 * count)
    cells = [
        Cell(
            (Source.WEB if number // 2 < _SPAN else Source.SYNTHETIC).value,
            number // 2 % _SPAN,
            bool(number % 2),
            int(pairs[number]),
            int(matches[number]),
            int(mismatches[number]),
        )
        for number in np.flatnonzero(pairs).tolist()
    ]
    precision, recall = precision_and_recall(cells)
    keep = verdicts.keep[said.rows]
    kinds = {
        kind: (sum(bool(k) for k, one in zip(keep, said.kinds, strict=True) if one == kind), of)
        for kind in ("match", "mismatch", "unsure")
        if (of := said.kinds.count(kind))
    }
    return Quality("labels", len(said.rows), _share(precision), _share(recall), kinds)


_SPAN = 64
"""Numbers of the parts of one source."""


def _share(estimate: Estimate) -> Share | None:
    return None if estimate.value is None else Share(estimate.value, estimate.low, estimate.high)


def _fresh(labels: Sequence[Label], store: Store, columns: Columns) -> list[tuple[int, Label]]:
    """Return the rows of labels whose text is still the one that was looked at."""
    rows = columns.places([label.pair_id for label in labels]).tolist()
    numbers = sorted({int(columns.numbers[row]) for row in rows if row >= 0})
    found = store.rows("SELECT number, text FROM pairs WHERE number IN (SELECT unnest($n))", {"n": numbers})
    digests = {number: text_digest(text or "") for number, text in found}
    return [
        (row, label)
        for row, label in zip(rows, labels, strict=True)
        if row >= 0 and digests.get(int(columns.numbers[row])) == label.text_sha256
    ]


def _parts(strata: Strata, columns: Columns) -> NDArray[np.int64]:
    """Return the number of each pair's part: from 0 for web texts, from _SPAN for synthetic ones."""
    import numpy as np

    parts = np.zeros(len(columns), np.int64)
    if strata.score is not None:
        values = columns.scores.get((strata.filter or "", strata.score))
        if values is None:
            values = np.full(len(columns), np.nan)
        for source, mine in ((Source.WEB, columns.is_web), (Source.SYNTHETIC, ~columns.is_web)):
            cuts = np.array(strata.cuts.get(source.value, ()), np.float64)
            # Part 0 is that of pairs without a score; the others follow in the order of the cuts.
            parts[mine] = np.searchsorted(cuts, values[mine], side="right") + 1
        parts[~np.isfinite(values)] = UNSCORED + 1
    parts[~columns.is_web] += _SPAN
    parts[columns.is_blank] = -1
    return parts


def _cut_now(run: RunDir, filter_digest: str | None) -> Strata:
    """Return how scores are spread, where no sample was drawn that would have decided it."""
    with open_catalog(run) as catalog:
        return cut_strata(catalog, filter_digest)
