from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from capfilt.provenance.catalog import open_catalog
from capfilt.reports.html.losses import POINTS, loss_chart, losses

if TYPE_CHECKING:
    from capfilt.provenance.rundir import RunDir


@pytest.fixture(scope="module")
def curves(run: RunDir) -> list[tuple[str, str]]:
    with open_catalog(run) as catalog:
        return losses(catalog)


def test_every_loss_has_a_curve_in_the_order_of_the_trainings(curves) -> None:
    assert [(curve.model, curve.name) for curve in curves] == [("captioner", "lm"), ("filter", "itm")]


def test_phases_follow_each_other_and_are_parted(curves) -> None:
    assert curves[0].phases == [("1: first", 0.0), ("2: then", 300.0)]
    points = curves[0].points["validation"]
    gap = [math.isnan(value) for _, value in points].index(True)
    assert [round(step) for step, _ in points] == [100, 200, 300, 300, 400, 500, 600]
    assert gap == 3


def test_a_long_training_is_averaged_and_ends_where_it_ended(run: RunDir, curves) -> None:
    train = [(step, value) for step, value in curves[0].points["train"] if not math.isnan(value)]
    assert len(train) <= 2 * POINTS
    first = [value for step, value in train if step <= 300]
    with open_catalog(run) as catalog:
        [(mean,)] = catalog.execute(
            "SELECT avg(value) FROM metrics WHERE model = 'captioner' AND name = 'lm' AND split = 'train' "
            "AND phase = '1: first'"
        ).fetchall()
    assert np.mean(first) == pytest.approx(mean, rel=0.01)
    assert train[-1][0] > 597
    assert train[-1][1] == pytest.approx(2 / 4, rel=0.01)


def test_the_chart_says_how_a_training_ended(curves) -> None:
    panel = loss_chart(curves[1])
    assert panel.title == "filter: ITM loss"
    assert "0.5 on held-out pairs" in panel.drawing
    assert ["held-out pairs", 600, 0.5] in [list(row) for row in panel.table.rows]
