"""`capfilt settings`: every choice by its name, as `--set` takes it."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from capfilt.cli import options
from capfilt.cli.output import next_step, print_json, print_next
from capfilt.cli.pipelines import DEFAULT, load_pipeline
from capfilt.reports.text import terminal, visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

    from capfilt.layers import Settings

_LIMITS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def settings(pipeline: options.PipelineOption = DEFAULT, json: options.JsonOption = False) -> None:
    """List every setting: its name, a pipeline's value, its range, and what it means.

    Example: capfilt settings --pipeline small
    """
    rows = list(setting_rows(load_pipeline(pipeline).choices()))
    if json:
        print_json(rows)
        return
    console = terminal()
    for row in rows:
        limits = f" ({row['range']})" if row["range"] else ""
        console.print(f"{row['name']} = {_shown(row['value'])}{limits}", soft_wrap=True)
        console.print(f"    {row['meaning']}", soft_wrap=True)
    print_next(
        next_step("bootstrap", "WEB", "--clean", "CLEAN", "--out", "RUN", "--pipeline", pipeline)
        + " --set seed=1"
    )


def setting_rows(values: Settings, prefix: str = "") -> Iterator[dict[str, Any]]:
    """Yield name, value, range and meaning of every setting, those of groups and phases by dotted names."""
    from capfilt.layers import Settings

    for name in type(values).model_fields:
        value = getattr(values, name)
        path = f"{prefix}{name}"
        if isinstance(value, Settings):
            yield from setting_rows(value, f"{path}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], Settings):
            for number, item in enumerate(value):
                yield from setting_rows(item, f"{path}.{number}.")
        else:
            field = _documented(type(values), name)
            yield {
                "name": path,
                "value": values.model_dump(mode="json", include={name})[name],
                "range": _range(field),
                "meaning": field.description or "",
            }


def _shown(value: Any) -> str:
    """Return a value as `--set` takes it."""
    if value is None:
        return "none"
    return visible(value) if isinstance(value, str) and value else jsonlib.dumps(value)


def _documented(kind: type[Settings], name: str) -> FieldInfo:
    """Return the field where it is documented: a pipeline that changes a default need not say it again."""
    from capfilt.layers import Settings

    groups = [base for base in kind.__mro__ if issubclass(base, Settings) and name in base.model_fields]
    found = [base.model_fields[name] for base in groups]
    return next((field for field in found if field.description), found[0])


def _range(field: FieldInfo) -> str:
    """Return what a field accepts beyond its type, in words."""
    words = [
        text.format(limit)
        for constraint in field.metadata
        for name, text in _LIMITS.items()
        if (limit := getattr(constraint, name, None)) is not None
    ]
    words += [str(pattern) for c in field.metadata if (pattern := getattr(c, "pattern", None)) is not None]
    return ", ".join(words) or _options(field.annotation)


def _options(annotation: Any) -> str:
    """Return the values of a Literal, or the names of plain types: `int or none`."""
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if annotation is bool:
        return "true|false"
    if get_origin(annotation) is tuple:
        return "list"
    plain = [get_args(part)[0] if get_origin(part) is Annotated else part for part in get_args(annotation)]
    parts = [part for part in plain or (annotation,) if isinstance(part, type)]
    names = ["none" if part is type(None) else part.__name__.lower() for part in parts]
    return " or ".join(dict.fromkeys(names))
