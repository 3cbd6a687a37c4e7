"""What there is to choose from in a run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from capfilt.browser.cards import Facets, ScoreColumn, ShardFacet
from capfilt.browser.verdicts import REASONS
from capfilt.provenance.lineage import rounds_of
from capfilt.records import SCORES

if TYPE_CHECKING:
    from capfilt.browser.said import Labels
    from capfilt.browser.store import Store
    from capfilt.browser.trials import Trials
    from capfilt.provenance.policy import Policy


def facets(store: Store, trials: Trials, labels: Labels) -> Facets:
    """Return what there is to choose from: from manifests at once, from rows once all are loaded."""
    shards = [store.shards[ordinal] for ordinal in sorted(store.shards)]
    refusals: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for shard in shards:
        refusals.update(shard.manifest["reasons"])
        sources.update(shard.manifest["sources"])
    in_force = trials.in_force()
    policy = in_force[1] if in_force is not None else None
    is_complete = store.is_complete
    return Facets(
        samples=sum(shard.manifest["samples_in"] for shard in shards),
        pictures=sum(shard.manifest["statuses"].get("ok", 0) for shard in shards),
        texts=sum(sources.values()),
        sources=dict(sources.most_common()),
        reasons=_reasons(trials, policy) if is_complete else {},
        refusals=dict(refusals.most_common()),
        shards=[
            ShardFacet(
                name=shard.name,
                samples=shard.manifest["samples_in"],
                refused=shard.manifest["statuses"].get("refused", 0),
                texts=shard.manifest["rows"].get("captions", 0),
            )
            for shard in shards
        ],
        columns=_columns(store, trials, policy),
        filters=list(dict.fromkeys(one for one in (trials.own_filter(policy), *store.filters) if one)),
        rounds=[number for number, _ in rounds_of(store.run)],
        labels=labels.counts(),
        planted=_planted(store) if is_complete else {},
        policy=in_force[0] if in_force is not None else None,
        policy_words=policy.words if policy is not None else "",
        is_complete=is_complete,
    )


def _reasons(trials: Trials, policy: Policy | None) -> dict[str, int]:
    import numpy as np

    if policy is None:
        return {}
    counts = np.bincount(trials.verdicts(policy)[0].codes, minlength=len(REASONS)).tolist()
    return {reason.value: count for reason, count in zip(REASONS, counts, strict=True) if count}


def _columns(store: Store, trials: Trials, policy: Policy | None) -> list[ScoreColumn]:
    own = trials.own_filter(policy) or ""
    columns = store.columns() if store.is_complete else None
    found = []
    for measure in trials.measures(policy):
        scale = SCORES[measure.score]
        ends = None if columns is None else columns.ends((measure.filter or own, measure.score))
        found.append(
            ScoreColumn(
                name=measure.column,
                words=measure.words,
                low=scale.low,
                high=scale.high,
                least=None if ends is None else ends[0],
                most=None if ends is None else ends[1],
                is_probability=scale.is_probability,
            )
        )
    return found


def _planted(store: Store) -> dict[str, int]:
    import numpy as np

    columns = store.columns()
    told = columns.planted[columns.planted >= 0]
    return dict(zip(columns.kinds, np.bincount(told, minlength=len(columns.kinds)).tolist(), strict=True))
