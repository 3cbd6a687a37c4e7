"""What a policy on trial comes to: counts, histograms, and how good it is where that is known."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from capfilt.browser.previews import BINS, Count, Histogram, Preview
from capfilt.browser.quality import labelled_quality, planted_quality
from capfilt.browser.verdicts import REASONS, exported
from capfilt.provenance.policy import AtLeast, Policy
from capfilt.records import SCORES, Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from capfilt.browser.columns import Columns
    from capfilt.browser.proposal import Proposal
    from capfilt.browser.quality import Said
    from capfilt.browser.trials import Trials
    from capfilt.browser.verdicts import Verdicts
    from capfilt.records import Measure

_NONE = BINS
"""The bar of pairs without a score, which no histogram shows."""


def preview(trials: Trials, proposal: Proposal, said: Said | None) -> Preview:
    """Return what a proposal would keep; `said` are the labels of people, where there are any.

    Without a policy, proposed or in force, every text that has words is kept.
    """
    began = time.monotonic()
    policy = trials.policy_of(proposal) or Policy()
    verdicts, columns = trials.verdicts(policy)
    counts = _counts(verdicts, columns)
    quality = [planted_quality(verdicts, columns)]
    if said is not None:
        quality.append(labelled_quality(verdicts, said))
    run = trials.store.run.path
    return Preview(
        words=policy.words,
        digest=policy.digest,
        command=proposal.command(run),
        export_command=proposal.export_command(run),
        counts=counts,
        kept=sum(one.texts for one in counts if one.keep),
        texts=len(columns),
        pictures_kept=exported(verdicts, columns, "all"),
        exported=exported(verdicts, columns, proposal.texts),
        histograms=_histograms(trials, policy, verdicts, columns),
        quality=[one for one in quality if one is not None],
        seconds=time.monotonic() - began,
    )


def _counts(verdicts: Verdicts, columns: Columns) -> list[Count]:
    import numpy as np

    kinds = len(REASONS)
    numbers = np.bincount(columns.is_web * np.uint8(kinds) + verdicts.codes, minlength=2 * kinds)
    found = []
    for source, base in ((Source.WEB, kinds), (Source.SYNTHETIC, 0)):
        for code, reason in enumerate(REASONS):
            if number := int(numbers[base + code]):
                found.append(Count(source.value, code == 0, reason.value, number))
    return found


def _histograms(trials: Trials, policy: Policy, verdicts: Verdicts, columns: Columns) -> list[Histogram]:
    import numpy as np

    own = trials.own_filter(policy) or ""
    thresholds = {rule.measure.column: rule.threshold for rule in policy.rules if isinstance(rule, AtLeast)}
    found = []
    for measure in trials.measures(policy):
        bars, low, high = binned(columns, (measure.filter or own, measure.score), measure)
        # Four histograms of one walk: web or synthetic, kept or dropped.
        place = bars + np.uint8(BINS + 1) * (columns.is_web + np.uint8(2) * verdicts.keep)
        counts = np.bincount(place, minlength=4 * (BINS + 1)).reshape(4, BINS + 1)[:, :_NONE].tolist()
        for source, number in ((Source.WEB, 1), (Source.SYNTHETIC, 0)):
            dropped, kept = counts[number], counts[2 + number]
            if any(dropped) or any(kept):
                threshold = thresholds.get(measure.column)
                one = Histogram(measure.column, source.value, low, high, kept, dropped, threshold)
                found.append(one)
    return found


def binned(
    columns: Columns, column: tuple[str, str], measure: Measure
) -> tuple[NDArray[np.uint8], float, float]:
    """Return the bar of each pair, the low end of the first bar and the high end of the last one.

    A probability is drawn from 0 to 1, a cosine from the least to the most that was measured.
    """
    import numpy as np

    if column in columns.bins:
        return columns.bins[column]
    values, scale = columns.scores[column], SCORES[measure.score]
    is_there = np.isfinite(values)
    low, high = scale.low, scale.high
    if not scale.is_probability:
        low, high = columns.ends(column) or (low, high)
    bars = np.full(len(columns), _NONE, np.uint8)
    scaled = (values[is_there] - low) / max(high - low, 1e-9) * BINS
    bars[is_there] = np.clip(scaled, 0, BINS - 1).astype(np.uint8)
    columns.bins[column] = (bars, low, high)
    return columns.bins[column]
