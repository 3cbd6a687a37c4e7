"""A run opened for looking: what the page asks, answered from memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from capfilt.browser import facets, grid, live, preview
from capfilt.browser.cards import Grid
from capfilt.browser.history import history
from capfilt.browser.previews import Applied
from capfilt.browser.said import Labels
from capfilt.browser.shards import ROW_BITS, ManifestReader
from capfilt.browser.store import ClosedError, open_store
from capfilt.browser.thumbnails import Thumbnail, Thumbnails, Unused, max_pixels_of
from capfilt.browser.trials import Trials
from capfilt.data.judged import Place
from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import rebuild_catalog
from capfilt.stages.judge import judge_run

if TYPE_CHECKING:
    from collections.abc import Hashable

    from capfilt.browser.cards import Facets, History
    from capfilt.browser.previews import Live, Preview
    from capfilt.browser.proposal import Proposal
    from capfilt.browser.selection import Selection
    from capfilt.browser.store import Store
    from capfilt.provenance.policy import Policy
    from capfilt.provenance.rundir import RunDir

_MOST_TOTALS = 64
"""Selections whose totals are remembered while the rows stay as they are."""
_PICTURE = """
    SELECT is_ok, refusal, image_offset, image_size, lower(hex(image_sha256)), width, height FROM samples
    WHERE sample >= $first AND sample < $end AND key = $key ORDER BY is_ok DESC, sample LIMIT 1
"""


@dataclass
class RunView:
    """A run opened for looking; its methods may be called from several threads."""

    run: RunDir
    store: Store
    trials: Trials
    _labels: Labels
    _totals: dict[Hashable, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._thumbnails = Thumbnails(self.place, max_pixels=max_pixels_of(self.run))
        self._refreshing = threading.Lock()
        self._policy = self.trials.in_force()
        self._readers = {self.run.path: self.store.manifests}

    @classmethod
    def open(cls, run: RunDir, *, kind_field: str = "noise_kind") -> RunView:
        """Return a view of what is committed now; CapfiltError where the record is damaged.

        `kind_field` is the field of the metadata that says what is known of a web text: `right`, or a kind of
        noise. Samples are there at once; texts and scores are loaded behind, and what needs them waits.
        """
        store = open_store(run, kind_field=kind_field)
        trials = Trials(store)
        view = cls(run, store, trials, Labels(store, trials))
        view._labels.refresh()
        threading.Thread(target=view._sort_ahead, daemon=True, name="capfilt-sort").start()
        return view

    def _sort_ahead(self) -> None:
        try:
            self.trials.sort_ahead()
        except (CapfiltError, ClosedError):
            return  # whoever asks for these rows is told

    def close(self) -> None:
        """Free the memory."""
        self.store.close()

    def refresh(self) -> bool:
        """Take in what was committed, judged or labelled since; True where there was anything."""
        with self._refreshing:
            policy, self._policy = self._policy, self.trials.in_force()
            rows = self.store.refresh()
            labels = self._labels.refresh()
            self.trials.forget_calibrations()
            if rows or labels:
                self._totals.clear()
            return rows or labels or self._policy != policy

    def facets(self) -> Facets:
        """Return what there is to choose from; verdicts and ranges once all rows are loaded."""
        return facets.facets(self.store, self.trials, self._labels)

    def grid(
        self, selection: Selection, offset: int = 0, limit: int = 24, proposal: Proposal | None = None
    ) -> Grid:
        """Return a page of the pictures that a selection fits, judged by the proposal or the policy in force.

        CapfiltError for a shard or a column that is not there, and for a page of more than 500 pictures.
        """
        offset, limit = grid.checked(offset, limit)
        policy = self.trials.policy_of(proposal)
        if selection.asks_of_texts:
            self.store.wait()
        found = grid.asked(selection, self.store, self.trials.physical(policy))
        if selection.label is not None:
            self._labels.write_table()
        if not found.reads_verdicts:
            return self._grid(selection, offset, limit, policy, None)
        if policy is None:
            return Grid([], total=0, texts=0, offset=offset, limit=limit)
        with self.trials.table(policy) as table:
            return self._grid(selection, offset, limit, policy, table)

    def _grid(
        self, selection: Selection, offset: int, limit: int, policy: Policy | None, table: str | None
    ) -> Grid:
        page = grid.Page(self.store, self.trials.physical(policy), table, self._labels)
        fits = selection.at(order="input", descending=True, seed=0)
        digest = policy.digest if policy is not None and table is not None else None
        name = (self.store.version, fits, repr(page.columns), digest)
        samples, counted = grid.page_of(selection, page, offset, limit, self._totals.get(name))
        self._remember(name, counted)
        judged = self.trials.verdicts_of(policy, {sample >> ROW_BITS for sample in samples})
        # Columns of scores come with the rows that have them.
        page = grid.Page(self.store, self.trials.physical(policy), table, self._labels)
        rows = grid.cards(samples, selection, page, *judged)
        return Grid(rows, total=counted[0], texts=counted[1], offset=offset, limit=limit)

    def _remember(self, name: Hashable, counted: tuple[int, int]) -> None:
        """Keep what a selection fits: it is the same on every page of it."""
        if len(self._totals) >= _MOST_TOTALS:
            self._totals.clear()
        self._totals[name] = counted

    def history(self, shard: str, key: str) -> History:
        """Return what every round wrote and decided of one sample; CapfiltError where there is none."""
        return history(self.run, shard, key, self._labels, self._reader)

    def preview(self, proposal: Proposal) -> Preview:
        """Return what a proposal would keep; one without rules is the policy in force.

        CapfiltError as `capfilt judge` says it, where a rule cannot be applied.
        """
        return preview.preview(self.trials, proposal, self._labels.said())

    def apply(self, proposal: Proposal) -> Applied:
        """Write the policy as `capfilt judge` does; CapfiltError where no rule is proposed."""
        if not proposal.is_given:
            raise CapfiltError("no rule is proposed, so there is nothing to apply", fix="choose a threshold")
        number, policy = judge_run(self.run, proposal.judge(), filter_digest=proposal.with_filter)
        rebuild_catalog(self.run)
        return Applied(
            policy=number,
            words=policy.words,
            command=proposal.command(self.run.path),
            export_command=proposal.export_command(self.run.path),
        )

    def live(self) -> Live:
        """Return where the run stands, in its last round, read anew from its files."""
        return live.live(self.run, self._reader)

    def _reader(self, run: RunDir) -> ManifestReader:
        """Return the reader of a round's manifests, which knows those that it has read."""
        return self._readers.setdefault(run.path, ManifestReader(run))

    def place(self, shard: str, key: str) -> Place | Unused:
        """Return where a sample's picture lies; CapfiltError where there is no such sample."""
        found = next((one for one in list(self.store.shards.values()) if one.name == shard), None)
        if found is not None:
            ends = {"first": found.base, "end": found.base + (1 << ROW_BITS), "key": key}
            for is_ok, refusal, *place in self.store.rows(_PICTURE, ends):
                return Place(found.tar, *place) if is_ok else Unused(refusal or "missing_image")
        raise CapfiltError(
            f"there is no sample {key[:80]!r} in shard {shard[:80]!r}", fix="follow a link of the page"
        )

    def thumbnail(self, shard: str, key: str, px: int) -> Thumbnail:
        """Return a sample's picture, at most `px` pixels wide and high, or a drawing that says why not."""
        return self._thumbnails.thumbnail(shard, key, px)
