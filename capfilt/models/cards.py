"""What a bundle says of itself, read without its weights and without torch.

    capfilt.json         the card: kind, digest of the weights, structure, lineage, training, versions
    model.safetensors    the weights
    tokenizer.json       the vocabulary, as `tokenizers` reads it
    vocab.txt            the same, one entry a line
    calibration.json     for a filter: how its scores tell held-out clean pairs from wrong ones
    metrics.json         the rows of its training

The card is the only file that is believed; the rest must agree with it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from capfilt.errors import CapfiltError
from capfilt.settings import Model, Settings, validated

if TYPE_CHECKING:
    from pathlib import Path

CARD_FILE = "capfilt.json"
WEIGHTS_FILE = "model.safetensors"
CALIBRATION_FILE = "calibration.json"
METRICS_FILE = "metrics.json"
Objective = Literal["itc", "itm", "lm"]
Kind = Literal["captioner", "filter", "joint"]


class Card(Settings):
    """What a bundle is and where it comes from."""

    format: Literal[1] = 1
    """Version of this layout."""
    kind: Kind
    """captioner writes, filter scores, joint does both."""
    objectives: tuple[Objective, ...]
    """What the model was trained for, which says which parts it has."""
    weights: str
    """sha256 of model.safetensors."""
    model: Model
    """How it is built."""
    vocabulary: int
    """Entries of its vocabulary."""
    parent: str | None = None
    """Digest of the weights it was started from; none from scratch."""
    data: str | None = None
    """Digest of the pairs it was trained on."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings of the training, and what it came to."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the libraries that trained it."""


def read_card(path: Path) -> Card:
    """Read what a bundle says it is, without its weights."""
    try:
        values = json.loads((path / CARD_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = "there is no such folder" if not path.exists() else f"it has no {CARD_FILE}"
        raise CapfiltError(
            f"{path} is no bundle: {what}",
            fix="give a folder that `capfilt train captioner|filter CLEAN --out BUNDLE` made, or one in a "
            "run's models/",
        ) from error
    except (OSError, ValueError) as error:
        raise CapfiltError(
            f"{path / CARD_FILE} cannot be read: {error}", fix="give a whole bundle; copy it again"
        ) from error
    if not isinstance(values, dict) or values.get("format") != 1:
        raise CapfiltError(
            f"{path / CARD_FILE} is of a format that this version does not know", fix="update capfilt"
        )
    try:
        return validated(Card, values)
    except CapfiltError as error:
        raise CapfiltError(
            f"{path / CARD_FILE} is damaged: {error.what}", fix="give a whole bundle; copy it again"
        ) from error


def read_calibration(path: Path) -> dict[str, Any] | None:
    """Read a filter's calibration; None when it has none."""
    file = path / CALIBRATION_FILE
    if not file.exists():
        return None
    try:
        calibration: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CapfiltError(
            f"{file} cannot be read: {error}", fix="give a whole bundle; copy it again"
        ) from error
    return calibration
