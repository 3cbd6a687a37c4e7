from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from capfilt.provenance.rundir import StageRecord, save_stage
from capfilt.provenance.statistics.reading import open_figures
from capfilt.provenance.statistics.timings import timings

if TYPE_CHECKING:
    from capfilt.provenance.rundir import RunDir


def _did(run: RunDir, stage: str, start: int, seconds: float | None, count: int | None) -> None:
    record = StageRecord(stage, start, started=1000.0 * start)
    if seconds is not None:
        record = record.finished("done", ended=1000.0 * start + seconds, count=count)
    save_stage(run, record)


def test_speed_and_cost_are_worked_out_by_hand(run: RunDir) -> None:
    _did(run, "train_captioner_and_filter", 1, 1800, 900)
    _did(run, "recaption_and_score", 2, 600, 1200)
    _did(run, "recaption_and_score", 3, 300, 1500)
    _did(run, "export", 4, None, None)
    with open_figures(run) as catalog:
        stages, spent = timings(catalog, price_per_hour=2.0)
    assert [(one.unit, one.per_second, one.cost) for one in stages] == [
        ("steps", 0.5, 1.0),
        ("images", 2.0, pytest.approx(1 / 3)),
        ("images", 5.0, pytest.approx(1 / 6)),
        ("samples", None, None),
    ]
    # 2,700 images in 900 seconds; 45 minutes in all, 15 of them for images.
    assert (spent.seconds, spent.images, spent.images_per_s) == (2700, 2700, 3.0)
    assert spent.cost == pytest.approx(1.5)
    assert spent.cost_per_million_images == pytest.approx(0.5 / 2700 * 1e6)


def test_without_a_price_nothing_costs_anything_and_nothing_is_free(run: RunDir) -> None:
    _did(run, "recaption_and_score", 1, 10, 100)
    with open_figures(run) as catalog:
        stages, spent = timings(catalog)
    assert (stages[0].cost, spent.cost, spent.cost_per_million_images) == (None, None, None)


def test_a_stage_of_a_pipelines_own_has_no_unit_and_counts_no_images(run: RunDir) -> None:
    _did(run, "translate", 1, 10, 100)
    with open_figures(run) as catalog:
        stages, spent = timings(catalog, price_per_hour=1)
    assert stages[0].unit is None
    assert (spent.images, spent.images_per_s, spent.seconds) == (0, None, 10)


def test_a_run_that_did_nothing_took_no_time(run: RunDir) -> None:
    with open_figures(run) as catalog:
        stages, spent = timings(catalog)
    assert (stages, spent.seconds, spent.images_per_s) == ([], 0, None)
