"""Record in a run where its models come from, how they were trained, and how they were measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from capfilt.canonical import canonical_json
from capfilt.models.cards import METRICS_FILE, read_calibration, read_card
from capfilt.provenance.commit import record_calibration, record_metrics, record_model

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir

MODEL_ROW_SETTINGS = (
    "objectives",
    "model",
    "vocabulary",
    "training",
    "conventions",
    "origin",
    "resized_from_px",
)
"""Parts of a card that `models.settings` holds."""


def record_bundle(run: RunDir, path: Path) -> None:
    """Record a model, its calibration and its training's rows in the run's provenance."""
    card = read_card(path)
    values = card.model_dump(mode="json")
    record_model(
        run,
        {
            "model": card.digest,
            "kind": card.kind,
            "path": str(path.absolute()),
            "parent": card.parent,
            "data": card.data,
            "settings": canonical_json({name: values[name] for name in MODEL_ROW_SETTINGS}),
            "versions": canonical_json(card.versions),
        },
    )
    calibration = read_calibration(path)
    if calibration is not None:
        rows = [{"model": card.digest, **row} for row in calibration["rows"]]
        record_calibration(run, card.digest, rows)
    if (path / METRICS_FILE).exists():
        metrics = json.loads((path / METRICS_FILE).read_text(encoding="utf-8"))
        # By the bundle's name: a run may hold several joint models.
        record_metrics(run, path.name, [{"model": path.name, **row} for row in metrics])
