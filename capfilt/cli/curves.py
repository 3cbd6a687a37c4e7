"""The curves of a training as a picture, beside its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.models.cards import METRICS_FILE, read_card

if TYPE_CHECKING:
    from capfilt.provenance.rundir import RunDir

CURVES_FILE = "curves.png"


def write_curves(bundle: Path, to: Path | None = None) -> Path:
    """Draw the measurements of a bundle's training; returns the picture, by default in the bundle."""
    from capfilt.reports.drawing import write_chart
    from capfilt.reports.training_curves import training_curves

    picture = to or bundle / CURVES_FILE
    rows = json.loads((bundle / METRICS_FILE).read_text(encoding="utf-8"))
    write_chart(picture, training_curves(rows, f"Training of the {read_card(bundle).kind}"))
    return picture


def write_run_curves(run: RunDir) -> list[Path]:
    """Draw each training of a run, unless its picture is there; returns all pictures.

    A model that was given brings the measurements of a training elsewhere, which are not this run's.
    """
    pictures = []
    for metrics in sorted((run.path / "models").glob(f"*/{METRICS_FILE}")):
        bundle = metrics.parent
        if bundle.name.startswith(".") or run.given_file(bundle.name).exists():
            continue
        picture = run.curves(bundle.name)
        if not picture.exists() or picture.stat().st_mtime_ns < metrics.stat().st_mtime_ns:
            write_curves(bundle, picture)
        pictures.append(picture)
    return pictures
