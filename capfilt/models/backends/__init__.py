"""Models that other software builds and runs, one file each; a captioner or a filter to everybody else.

A backend is a module with `captioner` or `filter`, or both, and `recognises` where it reads folders of
transformers:

    captioner(bundle: Path, card: Card, device: str, precision: str) -> Captioner
    filter(bundle: Path, card: Card, device: str, precision: str) -> Filter
    recognises(config: Mapping[str, Any]) -> Kind | None        what the folder of a config.json holds for it
    check(folder: Path, options: Mapping[str, Any]) -> None     refuses a folder that lacks what it needs

They are looked up by name and imported when one is asked for: most need libraries that take seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from types import ModuleType

BACKENDS: dict[str, str] = {
    "dual_encoder": "capfilt.models.backends.dual_encoder",
    "chat": "capfilt.models.backends.chat",
    "server": "capfilt.models.backends.server",
    "python": "capfilt.models.backends.python",
}
"""Module of each, by the name that a card has; in this order they are asked whether they know a folder."""


def backend(name: str) -> ModuleType:
    """Return a backend's module; CapfiltError where there is none of that name."""
    if name not in BACKENDS:
        raise CapfiltError(
            f"there is no backend {name}",
            fix=f"give one of {', '.join(BACKENDS)}, or update capfilt where a newer version made the bundle",
        )
    return import_module(BACKENDS[name])
