"""How settings are made: groups of choices, and layers of values put over one another.

Values come from a pipeline's defaults, then a TOML file, then `--set a.b=c`, the last one winning.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from pathlib import Path


class Settings(BaseModel):
    """A group of choices: frozen, and a name it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def fingerprint(self) -> str:
        """Return the digest of these choices."""
        return digest_of(self.model_dump(mode="json"))


S = TypeVar("S", bound=Settings)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a settings file; a file that is missing or not TOML is the user's error."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CapfiltError(
            f"settings file {path} cannot be read: {error}", fix="give a TOML file, as in the README"
        ) from error


def changed(settings: S, *layers: Mapping[str, Any], assignments: Iterable[str] = ()) -> S:
    """Return the settings with `layers` (nested mappings) and then `assignments` (a.b=c) put over them."""
    values = settings.model_dump(mode="python")
    for layer in layers:
        _merge(values, layer)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise CapfiltError(
                f"--set {assignment} is not an assignment", fix="write --set name.of.setting=value"
            )
        _put(values, path.strip().split("."), _value(text.strip()))
    return validated(type(settings), values)


def validated(kind: type[S], values: Mapping[str, Any]) -> S:
    """Build settings, turning the first bad value into an error that names it."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        # Where a group may be of several kinds, the kind stands between the names, as no setting is written.
        parts = [str(part) for part in first["loc"]]
        name = ".".join(part for part in parts if not part[:1].isupper()) or kind.__name__.lower()
        given = (
            "" if first["type"] == "missing" or isinstance(first["input"], dict) else f" ({first['input']!r})"
        )
        raise CapfiltError(
            f"setting {name}{given}: {first['msg'].removeprefix('Value error, ')}",
            fix=f"choose another value, e.g. --set {name}=...; `capfilt settings` lists names and ranges",
        ) from error


def _merge(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for name, value in layer.items():
        if isinstance(value, Mapping) and isinstance(values.get(name), dict):
            _merge(values[name], value)
        else:
            values[name] = value


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    """Set one value inside nested dicts and lists; a list index is a number in the path."""
    here: Any = values
    for i, part in enumerate(path[:-1]):
        step: int | str | None
        if isinstance(here, (list, tuple)):
            step = int(part) if part.isdigit() and int(part) < len(here) else None
        else:
            step = part if part in here else None
        if step is None or not isinstance(here[step], (dict, list, tuple)):
            group = ".".join(path[: i + 1]) + ("" if step is None else f" is {here[step]!r} and")
            raise CapfiltError(
                f"there is no setting {'.'.join(path)}: {group} holds no settings",
                fix="`capfilt settings` lists them",
            )
        if isinstance(here[step], tuple):
            here[step] = list(here[step])
        here = here[step]
    last: int | str = path[-1]
    if isinstance(here, list):
        if not (path[-1].isdigit() and int(path[-1]) < len(here)):
            raise CapfiltError(
                f"there is no setting {'.'.join(path)}: {'.'.join(path[:-1])} has {len(here)} parts",
                fix="count them from 0; `capfilt settings` lists them",
            )
        last = int(path[-1])
    here[last] = value


def _value(text: str) -> Any:
    """Read a value as TOML would, and as plain text where TOML cannot."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return {"none": None, "null": None}.get(text.lower(), text)
