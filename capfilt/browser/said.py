"""What people said of texts, beside the rows in memory; read anew when labels or rows change."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from capfilt.browser.quality import Said
from capfilt.provenance.labels import read_labels, text_digest

if TYPE_CHECKING:
    from capfilt.browser.store import Store
    from capfilt.browser.trials import Trials
    from capfilt.provenance.labels import Label


@dataclass
class Labels:
    """The labels of a run; its methods may be called from several threads."""

    store: Store
    trials: Trials
    _stamp: tuple[int, ...] | None = None
    _newest: dict[str, Label] = field(default_factory=dict)
    """What was said last of each pair, by pair_id."""
    _written: tuple[int, tuple[int, ...] | None] | None = None
    """State of the rows and of the file that the table `labels` shows."""
    _said: tuple[tuple[int, tuple[int, ...] | None], Said] | None = None

    def __post_init__(self) -> None:
        self._lock = threading.RLock()

    def refresh(self) -> bool:
        """Read the labels anew if their file changed; True where it did."""
        stamp = self._file_stamp()
        with self._lock:
            if stamp == self._stamp:
                return False
            newest: dict[str, Label] = {}
            for label in read_labels(self.store.run) if stamp else ():
                before = newest.get(label.pair_id)
                if before is None or label.when >= before.when:
                    newest[label.pair_id] = label
            is_first = self._stamp is None and not newest
            self._stamp, self._newest = stamp, newest
            return not is_first

    def write_table(self) -> None:
        """Have the table `labels` show what was said; waits for all rows where anything was."""
        with self._lock:
            if not self._newest and self._written is None:
                return
            columns = self.store.columns()
            state = (id(columns), self._stamp)
            if self._written == state:
                return
            rows = columns.places(list(self._newest))
            told = [
                (int(columns.numbers[row]), label.verdict.value, label.text_sha256)
                for row, label in zip(rows.tolist(), self._newest.values(), strict=True)
                if row >= 0
            ]
            texts = dict(
                self.store.rows(
                    "SELECT number, text FROM pairs WHERE number IN (SELECT unnest($numbers))",
                    {"numbers": [number for number, _, _ in told]},
                )
            )
            # A text that was written anew since was not looked at.
            fresh = [one[:2] for one in told if text_digest(texts.get(one[0]) or "") == one[2]]
            self.store.replace_labels(fresh)
            self._written = state

    def said(self) -> Said | None:
        """Return the labels as figures read them; None where there are none."""
        with self._lock:
            if not self._newest:
                return None
            columns = self.store.columns()
            state = (id(columns), self._stamp)
            if self._said is None or self._said[0] != state:
                own = self.trials.own_filter(self.trials.policy_of(None))
                self._said = (state, Said.of(self.store, columns, own))
            return self._said[1]

    def verdict(self, pair_id: str, text: str | None) -> str | None:
        """Return what was said last of a text; None where nobody looked at this very text."""
        label = self._newest.get(pair_id)
        is_fresh = label is not None and label.text_sha256 == text_digest(text or "")
        return label.verdict.value if label is not None and is_fresh else None

    def counts(self) -> dict[str, int]:
        """Return how many pairs have each verdict as the newest."""
        return dict(Counter(label.verdict.value for label in self._newest.values()))

    def _file_stamp(self) -> tuple[int, ...] | None:
        stamps: list[int] = []
        for file in (self.store.run.labels_file, self.store.run.strata_file):
            try:
                status = file.stat()
            except FileNotFoundError:
                stamps += [0, 0]
                continue
            stamps += [status.st_mtime_ns, status.st_size]
        return tuple(stamps) if any(stamps) else None
