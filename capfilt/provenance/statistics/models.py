"""Who wrote and scored: the models of a run, and how far each filter's scores can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.provenance.statistics.reading import rows

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class ModelUsed:
    """One model that wrote or scored something, or that a training started from."""

    kind: str
    """captioner, filter or joint."""
    model: str
    """Digest of the weights."""
    path: str
    parent: str | None
    """Digest of the model it was started from; None from scratch."""
    data: str | None
    """Digest of the pairs it was trained on; None when unknown."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """How well one score of one filter tells held-out clean pairs from wrong ones; `schema.CALIBRATION`."""

    model: str
    score: str
    negatives: str
    """shuffled or hard."""
    positives: int
    negatives_count: int
    auroc: float | None
    """None where no pair was measured."""
    auroc_low: float
    """95% interval."""
    auroc_high: float
    precision_at_half: float | None
    recall_at_half: float | None
    weak: bool | None
    """Whether it is no better than chance; None against hard negatives."""


def models_used(catalog: duckdb.DuckDBPyConnection) -> list[ModelUsed]:
    """Return the models of the run by kind and path."""
    sql = "SELECT kind, model, path, parent, data FROM models ORDER BY kind, path"
    return [ModelUsed(**row) for row in rows(catalog, sql)]


def calibrations(catalog: duckdb.DuckDBPyConnection) -> list[Calibrated]:
    """Return what was measured of the filters, against shuffled captions first."""
    sql = "SELECT * FROM calibration ORDER BY model, score DESC, negatives DESC"
    return [Calibrated(**row) for row in rows(catalog, sql)]


def uncalibrated(catalog: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the digests of filters that scored pairs and that nobody calibrated."""
    sql = (
        "SELECT DISTINCT filter FROM scores WHERE filter NOT IN (SELECT model FROM calibration) ORDER BY ALL"
    )
    return [row["filter"] for row in rows(catalog, sql)]
