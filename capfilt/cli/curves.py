"""The curves of a training as a picture, beside its rows."""

from __future__ import annotations

import json
from pathlib import Path

from capfilt.models.cards import METRICS_FILE, read_card

CURVES_FILE = "curves.png"


def write_curves(bundle: Path, to: Path | None = None) -> Path:
    """Draw the measurements of a bundle's training; returns the picture, by default in the bundle."""
    from capfilt.reports.drawing import write_chart
    from capfilt.reports.training_curves import training_curves

    picture = to or bundle / CURVES_FILE
    rows = json.loads((bundle / METRICS_FILE).read_text(encoding="utf-8"))
    write_chart(picture, training_curves(rows, f"Training of the {read_card(bundle).kind}"))
    return picture
