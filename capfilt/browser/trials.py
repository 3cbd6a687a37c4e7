"""Policies on trial: what is proposed becomes the policy that `capfilt judge` would write, and its verdicts.

Verdicts of the last few policies are kept: the page asks for counts and for pictures of one and the same.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from capfilt.browser.verdicts import Pairs, Verdicts, judge
from capfilt.errors import CapfiltError
from capfilt.provenance.policy import Policy, TopFraction, newest_policy
from capfilt.provenance.ranking import Ranking
from capfilt.provenance.rundir import json_files
from capfilt.records import BEST_FIRST, Measure, is_digest
from capfilt.shell import shell_word
from capfilt.stages.judge import calibration_of
from capfilt.stages.wishes import Filters, rules_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from capfilt.browser.columns import Columns
    from capfilt.browser.proposal import Proposal
    from capfilt.browser.store import Store

_MOST = 4
"""Policies whose verdicts are in memory: a byte a pair, and nine more where they are asked for in SQL."""


@dataclass
class _Trial:
    """One policy's verdicts on one state of the rows."""

    columns: Columns
    verdicts: Verdicts
    table: str | None = None
    users: int = 0


@dataclass
class Trials:
    """Verdicts of policies over the rows of a run; its methods may be called from several threads."""

    store: Store
    _kept: OrderedDict[tuple[int, str], _Trial] = field(default_factory=OrderedDict)
    _tables: int = 0
    _calibrations: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    _in_force: tuple[tuple[str, ...], tuple[int, Policy] | None] | None = None

    def __post_init__(self) -> None:
        self._lock = threading.RLock()

    # -- which policy

    def in_force(self) -> tuple[int, Policy] | None:
        """Return the policy in force and its number; None where nothing was judged."""
        names = tuple(path.name for path in json_files(self.store.run.policies))
        with self._lock:
            if self._in_force is None or self._in_force[0] != names:
                self._in_force = (names, newest_policy(self.store.run))
            return self._in_force[1]

    def policy_of(self, proposal: Proposal | None) -> Policy | None:
        """Return the policy that a proposal asks for; without rules the one in force, None without either.

        CapfiltError as `capfilt judge` says it, where a rule cannot be applied.
        """
        if proposal is None or not proposal.is_given:
            found = self.in_force()
            return None if found is None else found[1]
        filters = self.filters(proposal.with_filter)
        return Policy(rules_of(proposal.judge(), filters, self._calibration), filters.chosen)

    def filters(self, chosen: str | None = None) -> Filters:
        """Return the filters that scored the run; `chosen` names the policy's own, by default the first."""
        run, digests = self.store.run, self.store.filters
        if not digests:
            raise CapfiltError(
                f"{run.path} holds no scores, so no rule can be applied",
                fix=f"score it first: capfilt score {shell_word(run.path)} --filter MODEL",
            )
        self.store.wait()
        measured: dict[str, set[str]] = {}
        for digest, score in self.store.measured:
            measured.setdefault(digest, set()).add(score)
        scores = {digest: frozenset(names) for digest, names in measured.items()}
        known = Filters(run, digests, digests[0], scores)
        return Filters(run, digests, known.named(chosen), scores) if chosen else known

    def own_filter(self, policy: Policy | None) -> str | None:
        """Return the filter whose scores are those without a name: the policy's, else the run's first."""
        if policy is not None and policy.filter is not None:
            return policy.filter
        return next(iter(self.store.filters), None)

    def measures(self, policy: Policy | None) -> list[Measure]:
        """Return what was measured of pairs, the policy's own filter first and its best score first."""
        own = self.own_filter(policy)
        measured = set(self.store.measured)
        found = [Measure(score) for score in BEST_FIRST if (own, score) in measured]
        further = [digest for digest in self.store.filters if digest != own and is_digest(digest)]
        return found + [
            Measure(score, digest)
            for digest in further
            for score in BEST_FIRST
            if (digest, score) in measured
        ]

    def physical(self, policy: Policy | None) -> dict[str, str | None]:
        """Return the store's columns by the names that people see."""
        own = self.own_filter(policy) or ""
        return {
            one.column: self.store.physical((one.filter or own, one.score)) for one in self.measures(policy)
        }

    def _calibration(self, digest: str) -> dict[str, Any] | None:
        if digest not in self._calibrations:
            self._calibrations[digest] = calibration_of(self.store.run, digest)
        return self._calibrations[digest]

    def forget_calibrations(self) -> None:
        """Read calibrations anew when they are needed next: a bundle may have got one."""
        self._calibrations.clear()

    # -- its verdicts

    def verdicts(self, policy: Policy) -> tuple[Verdicts, Columns]:
        """Return a policy's verdicts, and the rows that they are of, once all rows are loaded."""
        trial = self._trial(policy)
        return trial.verdicts, trial.columns

    def verdicts_of(
        self, policy: Policy | None, ordinals: Collection[int]
    ) -> tuple[Verdicts | None, Columns]:
        """Return the verdicts on some shards, without waiting for the others where these play no part.

        None for the verdicts where there is no policy.
        """
        if policy is None:
            is_whole = self.store.is_complete
            return None, self.store.columns() if is_whole else self.store.columns_of(ordinals)
        if self.store.is_complete or any(isinstance(rule, TopFraction) for rule in policy.rules):
            return self.verdicts(policy)
        columns = self.store.columns_of(ordinals)
        return judge(policy, self._pairs(policy, columns)), columns

    def sort_ahead(self) -> None:
        """Sort by the best score, once all rows are loaded: a slider's first step need not wait for it."""
        columns = self.store.columns()
        in_force = self.in_force()
        policy = in_force[1] if in_force is not None else Policy()
        if measures := self.measures(policy):
            # Without the lock: who slides a threshold meanwhile needs no order.
            self._pairs(policy, columns).ranked_by_picture(Ranking(((1.0, measures[0]),)))

    @contextmanager
    def table(self, policy: Policy) -> Iterator[str]:
        """Yield the name of a table of `number` and `code`, a policy's verdicts; it lasts for the block."""
        with self._lock:
            trial = self._trial(policy)
            if trial.table is None:
                trial.table = self._write(trial)
            trial.users += 1
        try:
            yield trial.table
        finally:
            with self._lock:
                trial.users -= 1
                self._let_go()

    def _trial(self, policy: Policy) -> _Trial:
        columns = self.store.columns()
        with self._lock:
            key = (id(columns), policy.digest)
            trial = self._kept.get(key)
            if trial is None or trial.columns is not columns:
                trial = _Trial(columns, judge(policy, self._pairs(policy, columns)))
                self._kept[key] = trial
            self._kept.move_to_end(key)
            self._let_go()
            return trial

    def _pairs(self, policy: Policy, columns: Columns) -> Pairs:
        return Pairs(columns, self.own_filter(policy), tuple(self.store.filters))

    def _write(self, trial: _Trial) -> str:
        import pyarrow as pa

        self._tables += 1
        name = f"verdicts_{self._tables}"
        with self.store.cursor() as cursor:
            cursor.register(
                "judged", pa.table({"number": trial.columns.numbers, "code": trial.verdicts.codes})
            )
            cursor.execute(f"CREATE TABLE {name} AS SELECT * FROM judged")
            cursor.unregister("judged")
        return name

    def _let_go(self) -> None:
        """Drop the oldest verdicts beyond those that are kept, and those of rows that are no more."""
        newest = next(reversed(self._kept.values())).columns
        for key, trial in list(self._kept.items()):
            if trial.users or (trial.columns is newest and len(self._kept) <= _MOST):
                continue
            del self._kept[key]
            if trial.table is not None:
                with self.store.cursor() as cursor:
                    cursor.execute(f"DROP TABLE IF EXISTS {trial.table}")
