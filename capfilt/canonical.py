"""One text and one digest for a value, so that two runs can be compared by their bytes."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and no escapes beyond JSON's own.

    Text that is not valid Unicode (a lone surrogate out of somebody's JSON) is escaped, so that the
    result can always be encoded as UTF-8. NaN and infinities become null, which JSON can say.
    """
    text = json.dumps(_finite(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def digest_of(value: Any) -> str:
    """Return the sha256, in hex, of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()


def digest_of_rows(rows: Iterable[Any]) -> str:
    """Return what `digest_of` gives for the list of the rows, of which one at a time is held."""
    digest = hashlib.sha256(b"[")
    for number, row in enumerate(rows):
        digest.update((("," if number else "") + canonical_json(row)).encode("utf-8"))
    digest.update(b"]")
    return digest.hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
