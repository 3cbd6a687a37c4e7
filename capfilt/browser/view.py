"""A run opened for looking: what the page asks, answered from memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capfilt.browser.cards import Facets, Grid, History
    from capfilt.browser.previews import Applied, Live, Preview
    from capfilt.browser.proposal import Proposal
    from capfilt.browser.selection import Selection
    from capfilt.browser.thumbnails import Picture
    from capfilt.provenance.rundir import RunDir


class RunView:
    """A run opened for looking; its methods may be called from several threads."""

    run: RunDir

    @classmethod
    def open(cls, run: RunDir, *, kind_field: str = "noise_kind") -> RunView:
        """Return a view of what is committed now; CapfiltError where the record is damaged.

        `kind_field` is the field of the metadata that says what is known of a web text: `right`, or a kind of
        noise.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Free the memory."""

    def refresh(self) -> bool:
        """Take in what was committed, judged or labelled since; True where there was anything."""
        raise NotImplementedError

    def facets(self) -> Facets:
        """Return what there is to choose from."""
        raise NotImplementedError

    def grid(
        self, selection: Selection, offset: int = 0, limit: int = 24, proposal: Proposal | None = None
    ) -> Grid:
        """Return a page of the pictures that a selection fits, judged by the proposal or the policy in force."""
        raise NotImplementedError

    def history(self, shard: str, key: str) -> History:
        """Return what every round wrote and decided of one sample; CapfiltError where there is none."""
        raise NotImplementedError

    def preview(self, proposal: Proposal) -> Preview:
        """Return what a proposal would keep; one without rules is the policy in force."""
        raise NotImplementedError

    def apply(self, proposal: Proposal) -> Applied:
        """Write the policy as `capfilt judge` does."""
        raise NotImplementedError

    def live(self) -> Live:
        """Return where the run stands, read anew from its files."""
        raise NotImplementedError

    def picture(self, shard: str, key: str) -> Picture:
        """Return where a sample's picture lies; CapfiltError where there is no such sample."""
        raise NotImplementedError
