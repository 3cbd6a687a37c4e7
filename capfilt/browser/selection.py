"""Which pictures are looked at, and in what order, as one value that a link can hold.

A selection says what a person asks for and never how it is found: names of columns are checked against those
that the run has, and every other value reaches SQL as a parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError
from capfilt.records import SCORES, Measure, Reason, Refusal, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

INPUT_ORDER, RANDOM_ORDER = "input", "random"
KEPT, DROPPED = "kept", "dropped"
LABELS = ("match", "mismatch", "unsure")
UNLABELLED = "none"
REASONS = (*(one.value for one in Reason), *(one.value for one in Refusal))
_MOST_CHARACTERS = 1000
"""Of a text that is looked for."""


@dataclass(frozen=True, slots=True)
class Range:
    """Scores from `low` to `high`, both included; None is open."""

    column: str
    """A column of scores: itm, or itc_1a2b3c4d of a further filter."""
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        try:
            Measure.of_column(self.column)
        except ValueError:
            raise CapfiltError(
                f"{self.column!r} is no column of scores",
                fix=f"name one of {', '.join(SCORES)}, or one of a further filter such as itc_1a2b3c4d",
            ) from None
        if any(value is not None and not math.isfinite(value) for value in (self.low, self.high)):
            raise CapfiltError(
                f"a bound of {self.column} is no finite number", fix="give a number, or leave it out"
            )


@dataclass(frozen=True, slots=True)
class Selection:
    """What a picture must have to be shown: one text that meets everything asked of texts."""

    source: str | None = None
    """web or synthetic."""
    reason: str | None = None
    """Why a text was kept or dropped, or why a sample was refused."""
    shard: str | None = None
    ranges: tuple[Range, ...] = ()
    words: str = ""
    """Words that must all stand in the text, in any order, upper or lower case alike."""
    substring: str = ""
    """Characters that must stand in the text, upper or lower case alike."""
    verdict: str | None = None
    """kept or dropped."""
    label: str | None = None
    """match, mismatch or unsure, as a person said; none: nobody said anything."""
    order: str = INPUT_ORDER
    """input: as the shards hold them; random; or a column of scores, by the text that puts it first."""
    descending: bool = True
    """Whether the highest score comes first; other orders know one direction."""
    seed: int = 0
    """Of the random order."""

    def __post_init__(self) -> None:
        choices: dict[str, Sequence[str]] = {
            "source": [one.value for one in Source],
            "reason": REASONS,
            "verdict": (KEPT, DROPPED),
            "label": (*LABELS, UNLABELLED),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise CapfiltError(f"{name} is {value!r}", fix=f"name one of {', '.join(known)}")
        if self.order not in (INPUT_ORDER, RANDOM_ORDER):
            Range(self.order)
        for name in ("shard", "words", "substring"):
            # As the record has what UTF-8 cannot say.
            object.__setattr__(self, name, _stored(getattr(self, name)))
        if max(len(self.words), len(self.substring)) > _MOST_CHARACTERS:
            raise CapfiltError(
                f"a text of more than {_MOST_CHARACTERS:,} characters is looked for", fix="give a shorter one"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of scores that are named, each once."""
        ordered = () if self.order in (INPUT_ORDER, RANDOM_ORDER) else (self.order,)
        return tuple(dict.fromkeys((*ordered, *(one.column for one in self.ranges))))

    @property
    def asks_of_texts(self) -> bool:
        """Whether what is shown, or how many, depends on the texts of samples and not on these alone."""
        asked = (self.source, self.reason, self.words, self.substring, self.verdict, self.label)
        return any((*asked, self.ranges, self.columns))

    def query(self) -> list[tuple[str, str]]:
        """Return the selection as the parameters of a link; what is left out has its usual value."""
        found: list[tuple[str, str]] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.name == "ranges":
                found += [("range", f"{one.column}:{_number(one.low)}:{_number(one.high)}") for one in value]
            elif isinstance(value, bool):
                found.append((field.name, "1" if value else "0"))
            else:
                found.append((field.name, str(value)))
        return found

    @classmethod
    def read(cls, query: Iterable[tuple[str, str]]) -> Selection:
        """Return what `query` wrote; other names are passed over, CapfiltError for bad values.

        An empty value is the usual one, as forms send it. A range may come as `range=itm:0.2:0.5`, or as
        two fields, `itm.low=0.2` and `itm.high=0.5`.
        """
        values: dict[str, str] = {}
        ranges: dict[str, Range] = {}
        for name, value in query:
            if not value:
                continue
            column, _, end = name.rpartition(".")
            if name == "range":
                one = _range(value)
                ranges[one.column] = one
            elif end in ("low", "high"):
                known = ranges.get(column, Range(column))
                bound = _float(name, value)
                low, high = (bound, known.high) if end == "low" else (known.low, bound)
                ranges[column] = Range(column, low, high)
            else:
                values[name] = value
        return _selection(values, tuple(ranges.values()))

    def at(self, **changes: object) -> Selection:
        """Return the selection with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def _selection(values: Mapping[str, str], ranges: tuple[Range, ...]) -> Selection:
    names = ("source", "reason", "shard", "words", "substring", "verdict", "label", "order")
    found = Selection(ranges=ranges).at(**{name: values[name] for name in names if name in values})
    if "descending" in values:
        found = found.at(descending=values["descending"] not in ("0", "false"))
    if "seed" in values:
        found = found.at(seed=_integer("seed", values["seed"]))
    return found


def _range(text: str) -> Range:
    column, low, high = [*text.split(":"), "", ""][:3]
    return Range(column, *(_float(column, bound) if bound else None for bound in (low, high)))


def _stored(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def _float(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CapfiltError(f"{name} is {text!r}, which is no number", fix="give a number") from None


def _integer(name: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**63:
        raise CapfiltError(f"{name} is {text!r}", fix="give a whole number from 0") from None
    return value
