"""Small pictures of samples, read from the shards by their byte offsets when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Picture:
    """Where the encoded picture of a sample lies."""

    path: Path
    """The shard."""
    offset: int | None
    size: int | None
    """None where there is no picture."""
    refusal: str | None
    """Why the sample was refused; None where its picture was used."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture, or the drawing that stands for one that cannot be shown."""

    jpeg: bytes
    refusal: str | None
    """Why there is a drawing; None for a real picture."""
    words: str
    """The refusal in words; empty for a real picture."""
