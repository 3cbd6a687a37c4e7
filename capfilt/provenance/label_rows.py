"""What people said of pairs, as lines of one file that only grows.

A line is one call: all of its labels or none. Writers take turns by an flock, and the line's end is written
with it, so that a process killed in the middle leaves a line without an end, which nobody reads and the next
writer takes away. Nothing is ever changed: who thinks better of it adds a label.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json
from capfilt.errors import CapfiltError
from capfilt.files import disk_errors, flush_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from capfilt.provenance.rundir import RunDir

MOST_CHARACTERS = {"pair_id": 64, "who": 100, "note": 2000, "draw": 100, "text_sha256": 64}
"""Longest texts of a label, in characters."""
_YEAR_10000 = 253402300800
"""Seconds since 1970; dates in files end before it."""


class Verdict(StrEnum):
    """What a person said of a pair."""

    MATCH = "match"
    """The text says what the picture shows."""
    MISMATCH = "mismatch"
    UNSURE = "unsure"
    UNDONE = "undone"
    """The person takes back what was said before; the pair counts as not labelled by that person."""


@dataclass(frozen=True, slots=True)
class Label:
    """One person's word on one pair, at one time."""

    pair_id: str
    verdict: Verdict
    who: str
    """Name of the person, as the person gave it."""
    when: float
    """Seconds since 1970."""
    note: str = ""
    draw: str | None = None
    """Name of the drawn sample that the pair came from; None for a pair that was come upon otherwise, which
    says nothing of the others."""
    text_sha256: str | None = None
    """Digest of the text that was looked at (`text_digest`); a label of another text counts no more."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "verdict", Verdict(self.verdict))
        except ValueError:
            raise CapfiltError(
                f"{str(self.verdict)[:40]!r} is no verdict", fix=f"give {', '.join(Verdict)}"
            ) from None
        if not (isinstance(self.when, (int, float)) and 0 <= self.when < _YEAR_10000):
            raise CapfiltError(f"the time of a label is {self.when!r}", fix="give seconds since 1970")
        # Microseconds, which a date in a file can say too.
        object.__setattr__(self, "when", round(float(self.when), 6))
        for name in MOST_CHARACTERS:
            if (text := getattr(self, name)) is not None:
                # What UTF-8 cannot say is escaped, as in every row of a run.
                object.__setattr__(self, name, text.encode("utf-8", "backslashreplace").decode("utf-8"))
        object.__setattr__(self, "who", self.who.strip())
        if not self.who:
            raise CapfiltError("a label says who gave it, and this one does not", fix="give a name")
        for name, most in MOST_CHARACTERS.items():
            if len(getattr(self, name) or "") > most:
                raise CapfiltError(
                    f"{name} of a label has more than {most} characters", fix="write it shorter"
                )


def text_digest(text: str) -> str:
    """Return the digest of a text that was labelled: sha256 of its UTF-8, in hex."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def read_every_label(run: RunDir) -> list[Label]:
    """Return every label in the order they were added, those that were superseded or taken back too."""
    try:
        data = run.labels_file.read_bytes()
    except FileNotFoundError:
        return []
    # What stands behind the last line's end was being written by a process that was killed, or still is.
    whole = data[: data.rfind(b"\n") + 1]
    return [
        label for number, line in enumerate(whole.splitlines(), 1) for label in _labels(run, number, line)
    ]


def newest_labels(labels: Iterable[Label]) -> list[Label]:
    """Return each person's newest label of each pair; of equal times the one that was added last."""
    newest: dict[tuple[str, str], Label] = {}
    for label in labels:
        before = newest.get((label.pair_id, label.who))
        if before is None or label.when >= before.when:
            newest[label.pair_id, label.who] = label
    return list(newest.values())


def append_labels(run: RunDir, labels: Sequence[Label], *, only_new: bool = False) -> int:
    """Add labels at the end, all or none, and return how many; `only_new` leaves out those that are there."""
    with disk_errors(run.labels_file), _held(run) as descriptor:
        known = set(read_every_label(run)) if only_new else set()
        new = [label for label in dict.fromkeys(labels) if label not in known]
        if new:
            line = canonical_json([asdict(label) for label in new]).encode("utf-8") + b"\n"
            _write_all(descriptor, line)
    return len(new)


@contextmanager
def _held(run: RunDir) -> Iterator[int]:
    """Open the file as the only writer, without what a killed one left behind its last line."""
    run.labels.mkdir(parents=True, exist_ok=True)
    is_new = not run.labels_file.exists()
    descriptor = os.open(run.labels_file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, _end_of_lines(descriptor))
        yield descriptor
        if is_new:
            flush_folder(run.labels)
    finally:
        os.close(descriptor)


def _end_of_lines(descriptor: int) -> int:
    """Return the length of a file up to the end of its last whole line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - (1 << 16))
        if (found := os.pread(descriptor, end - start, start).rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0


def _write_all(descriptor: int, line: bytes) -> None:
    """Append a line and flush it; where the disk is full nothing is appended."""
    before = os.fstat(descriptor).st_size
    left = memoryview(line)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _labels(run: RunDir, number: int, line: bytes) -> list[Label]:
    names = {field.name for field in fields(Label)}
    try:
        rows: Any = json.loads(line)
        if not isinstance(rows, list):
            raise TypeError(type(rows))
        return [Label(**{name: row[name] for name in names}) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, CapfiltError) as error:
        raise CapfiltError(
            f"line {number} of {run.labels_file} is no list of labels",
            fix="remove the line; what stands in others is not touched by it",
        ) from error
