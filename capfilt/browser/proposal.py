"""A policy that is proposed: the options of `capfilt judge`, and of what is exported after it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from capfilt.errors import CapfiltError
from capfilt.records import SCORES
from capfilt.settings import Export, Judge
from capfilt.shell import shell_line

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TEXTS: tuple[str, ...] = get_args(Export.model_fields["texts"].annotation)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What `capfilt judge` may be told; a field that is None, empty or False is not given."""

    itm: str | None = None
    """Least ITM: a number, auto:precision=P or auto:recall=R."""
    itc: str | None = None
    vqa: str | None = None
    fraction: float | None = None
    """Share of all texts to keep, the best by `by`."""
    by: str | None = None
    """Score, or weighted sum of scores, that `fraction`, `per_image` and `rescue` rank by."""
    per_image: int | None = None
    rescue: bool = False
    also: tuple[str, ...] = ()
    """Thresholds of further filters: FILTER:itc=0.25."""
    with_filter: str | None = None
    """The filter whose scores are the policy's own: its first digits."""
    noise_rate: float | None = None
    """Share of wrong pairs assumed by auto:precision."""
    texts: str = "best"
    """Which kept texts of a picture go out when it is exported: best, all, web or synthetic."""

    def __post_init__(self) -> None:
        if self.texts not in TEXTS:
            raise CapfiltError(f"texts is {self.texts!r}", fix=f"name one of {', '.join(TEXTS)}")
        self.judge()

    @property
    def is_given(self) -> bool:
        """Whether any rule is proposed; without one the policy in force is looked at."""
        return self.judge().is_given or self.with_filter is not None

    def judge(self) -> Judge:
        """Return the rules as settings; CapfiltError where a value is none."""
        values: dict[str, Any] = {
            name: value
            for name in Judge.model_fields
            # 0 is equal to False, and is a value that is refused.
            if (value := getattr(self, name)) is not None and value is not False and value != ()
        }
        try:
            return Judge(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise CapfiltError(
                f"{'.'.join(map(str, first['loc']))} is {first['input']!r}: {first['msg']}",
                fix="see `capfilt judge --help`",
            ) from error

    def command(self, run: Path) -> str:
        """Return what to type for the same policy."""
        words = ["capfilt", "judge", str(run)]
        for name in (*SCORES, "fraction", "by", "per_image"):
            if (value := getattr(self, name)) is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        words += ["--rescue"] if self.rescue else []
        words += [word for one in self.also for word in ("--also", one)]
        if self.with_filter is not None:
            words += ["--with-filter", self.with_filter]
        if self.noise_rate is not None:
            words += ["--noise-rate", str(self.noise_rate)]
        return shell_line(words)

    def export_command(self, run: Path) -> str:
        """Return what to type for the export that goes with it."""
        texts = [] if self.texts == "best" else ["--texts", self.texts]
        return shell_line(["capfilt", "export", str(run), "--to", str(run / "export"), *texts])

    def query(self) -> list[tuple[str, str]]:
        """Return the proposal as the parameters of a link; what is left out is not given."""
        found: list[tuple[str, str]] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if isinstance(value, tuple):
                found += [(_PREFIX + field.name, one) for one in value]
            else:
                found.append((_PREFIX + field.name, "1" if value is True else str(value)))
        return found

    @classmethod
    def read(cls, query: Iterable[tuple[str, str]]) -> Proposal:
        """Return what `query` wrote; other names are passed over, CapfiltError for bad values."""
        values: dict[str, Any] = {}
        known = {field.name for field in fields(cls)}
        for key, text in query:
            name = key.removeprefix(_PREFIX)
            if not key.startswith(_PREFIX) or name not in known or not text.strip():
                continue
            if name == "also":
                values["also"] = (*values.get("also", ()), text)
            elif name == "rescue":
                values["rescue"] = text not in ("0", "false")
            elif name in ("fraction", "noise_rate", "per_image"):
                values[name] = _number(name, text, int if name == "per_image" else float)
            else:
                values[name] = text.strip()
        return cls(**values)


_PREFIX = "judge."
"""Of a proposal's parameters in a link, since a selection has some of the same names."""


def _number(name: str, text: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(text)
    except ValueError:
        raise CapfiltError(f"{name} is {text!r}, which is no number", fix="give a number") from None
