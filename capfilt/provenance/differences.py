"""Say how two JSON values differ, for the message that refuses other choices on the same run.

A changed choice is one line; a changed list of ten thousand shards is one line too.
"""

from __future__ import annotations

from typing import Any

from capfilt.canonical import canonical_json

_MANY = 8
"""More keys of one mapping that changed, came or went are counted rather than listed."""
_LONG = 80
"""Characters; longer values are cut and longer lists summed up."""


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return one line a difference between two JSON values; many in one list or mapping are summed up."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        shared = [key for key in sorted(old) if key in new]
        changed = [key for key in shared if old[key] != new[key]]
        if len(changed) > _MANY and not any(isinstance(old[key], dict) for key in changed):
            lines = _sums(name, "changed", changed)
        else:
            lines = [line for key in changed for line in differences(old[key], new[key], _joined(name, key))]
        lines += _one_sided(name, "removed", {key: old[key] for key in sorted(old) if key not in new})
        return lines + _one_sided(name, "added", {key: new[key] for key in sorted(new) if key not in old})
    if isinstance(old, list) and isinstance(new, list) and len(canonical_json([old, new])) > _LONG:
        return _list_differences(old, new, name)
    return [f"{name}: {shown(old)} -> {shown(new)}"]


def _list_differences(old: list[Any], new: list[Any], name: str) -> list[str]:
    was, now = ({_label(item): item for item in items} for items in (old, new))
    lines = _sums(name, "changed", [label for label in was if label in now and was[label] != now[label]])
    lines += _sums(name, "removed", [label for label in was if label not in now])
    lines += _sums(name, "added", [label for label in now if label not in was])
    return lines or [f"{name}: the same {len(now)} items, in another order or number"]


def _one_sided(name: str, what: str, items: dict[str, Any]) -> list[str]:
    if len(items) > _MANY:
        return _sums(name, what, list(items))
    if what == "added":
        return [f"{_joined(name, key)}: nothing -> {shown(value)}" for key, value in items.items()]
    return [f"{_joined(name, key)}: {shown(value)} -> nothing" for key, value in items.items()]


def _sums(name: str, what: str, labels: list[str]) -> list[str]:
    if not labels:
        return []
    more = ", ..." if len(labels) > 3 else ""
    return [f"{len(labels)} {name or 'facts'} {what}: {', '.join(map(_plain, labels[:3]))}{more}"]


def _label(item: Any) -> str:
    """Name an item of a list: its name, where it has one, else itself."""
    if isinstance(item, dict) and "name" in item:
        return str(item["name"])
    return item if isinstance(item, str) else canonical_json(item)


def _joined(name: str, key: str) -> str:
    return f"{name}.{_plain(key)}" if name else _plain(key)


def shown(value: Any) -> str:
    """Return a value on one line, cut to 80 characters, with what a terminal would obey escaped."""
    text = _plain(canonical_json(value) if not isinstance(value, str) else value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def _plain(text: str) -> str:
    """Escape what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
