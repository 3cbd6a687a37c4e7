"""Versions of what numbers depend on, read from package metadata without importing anything."""

from __future__ import annotations

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Return versions of capfilt, Python and the libraries that compute or store something."""
    from capfilt import __version__

    found = {"capfilt": __version__, "python": platform.python_version()}
    for name in ("torch", "timm", "tokenizers", "pillow", "numpy", "pyarrow", "duckdb"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
