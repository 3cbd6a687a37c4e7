from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import provenance_rows as made
import pytest
from counted_run import ITM, Counted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capfilt.provenance.commit import commit_scores
from capfilt.provenance.policy import AtLeast, PerImage, Policy, write_policy
from capfilt.provenance.rundir import RunDir
from capfilt.provenance.statistics.distributions import (
    BINS,
    distributions,
    edges_of,
    score_grids,
    thresholds_of,
)
from capfilt.provenance.statistics.reading import open_figures

if TYPE_CHECKING:
    from pathlib import Path


def test_quantiles_are_those_of_numpy(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        found = distributions(catalog, counted.run)
    assert [(one.score, one.source) for one in found] == [
        (score, source) for score in ("itm", "itc") for source in ("web", "synthetic")
    ]
    for one in found:
        values = counted.values(one.source, one.score)
        assert (one.least, one.most, one.pairs) == (values[0], values[-1], len(values))
        assert one.unscored == len(counted.of(one.source)) - len(values)
        for name, share in (("p10", 0.1), ("p25", 0.25), ("p50", 0.5), ("p75", 0.75), ("p90", 0.9)):
            assert getattr(one, name) == pytest.approx(np.quantile(values, share), abs=1e-12)


def test_histograms_are_those_of_numpy_over_one_range_for_all_sources(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        found = {(one.score, one.source): one for one in distributions(catalog, counted.run)}
    every = [value for source in ("web", "synthetic") for value in counted.values(source, "itc")]
    for (score, source), one in found.items():
        low, high = (0, 1) if score == "itm" else (min(every), max(every))
        bars, edges = np.histogram(counted.values(source, score), bins=BINS, range=(low, high))
        assert one.bars == tuple(bars)
        assert [edge for edge, _ in edges_of(one)] == pytest.approx(edges[:-1])
        assert edges_of(one)[-1][1] == one.high == high


def test_the_threshold_of_the_policy_stands_beside_the_score_that_it_asks_for(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        found = distributions(catalog, counted.run)
    for one in found:
        values = counted.values(one.source, one.score)
        if one.score == "itm":
            assert (one.threshold, one.reaching) == (ITM, sum(value >= ITM for value in values))
        else:
            assert (one.threshold, one.reaching) == (None, None)


def test_of_several_thresholds_for_one_score_the_highest_counts(run: RunDir) -> None:
    write_policy(
        run,
        Policy((AtLeast("itm", 0.4), PerImage(1), AtLeast("itm", 0.6), AtLeast("itc", -0.1)), "f" * 64),
    )
    assert thresholds_of(run) == {"itm": 0.6, "itc": -0.1}


def test_a_further_filter_stands_behind_the_one_in_force(counted: Counted, tmp_path: Path) -> None:
    import shutil

    run = RunDir(shutil.copytree(counted.run.path, tmp_path / "run"))
    digest = "1a2b3c4d" * 8
    mine = [row for row in counted.captions if row["shard"] == "00000"]
    rows = [made.score(row["pair_id"], "vqa", n / 100, digest) for n, row in enumerate(mine)]
    commit_scores(run, made.shard(0), filter_digest=digest, fingerprint="more", scores=rows)
    with open_figures(run) as catalog:
        found = distributions(catalog, run)
    assert [(one.score, one.filter) for one in found[::2]] == [
        ("itm", None),
        ("itc", None),
        ("vqa", "1a2b3c4d"),
    ]
    assert sum(one.pairs for one in found[4:]) == len(mine)
    assert found[4].measure.column == "vqa_1a2b3c4d"


def test_two_scores_are_counted_together_as_numpy_does(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        grids = score_grids(catalog, bins=8)
    assert [grid.source for grid in grids] == ["web", "synthetic"]
    for grid in grids:
        both = [
            (scores["itc"], scores["itm"])
            for row in counted.of(grid.source)
            if "itm" in (scores := counted.scores[row["pair_id"]])
        ]
        xs, ys = zip(*both, strict=True)
        ranges = [(grid.y_low, grid.y_high), (grid.x_low, grid.x_high)]
        expected, _, _ = np.histogram2d(ys, xs, bins=8, range=ranges)
        assert grid.counts == tuple(tuple(map(int, line)) for line in expected)
        assert (grid.y_low, grid.y_high) == (0, 1)


def test_a_column_that_is_no_score_is_refused(counted: Counted) -> None:
    with open_figures(counted.run) as catalog, pytest.raises(KeyError, match="text"):
        score_grids(catalog, "itc", "text")


values = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run without a policy, whose catalog is filled by hand."""
    return RunDir.create(tmp_path_factory.mktemp("empty") / "run")


def test_values_that_are_no_finite_numbers_are_counted_apart(empty: RunDir) -> None:
    with open_figures(empty) as catalog:
        rows = [("web", value) for value in (0.5, None, math.nan, math.inf, -math.inf)]
        catalog.executemany("INSERT INTO judged (source, itm) VALUES (?, ?)", rows)
        [one] = distributions(catalog, empty)
        assert score_grids(catalog) == []
    assert (one.pairs, one.unscored, sum(one.bars), one.p50) == (1, 4, 1, 0.5)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(web=values, synthetic=values)
def test_whatever_the_values_every_text_is_in_one_bar_and_the_median_is_right(
    empty: RunDir, web: list[float], synthetic: list[float]
) -> None:
    with open_figures(empty) as catalog:
        rows: list[tuple[Any, ...]] = [("web", v) for v in web] + [("synthetic", v) for v in synthetic]
        catalog.executemany("INSERT INTO judged (source, itc) VALUES (?, ?)", rows)
        found = {one.source: one for one in distributions(catalog, empty)}
    for source, given_values in (("web", web), ("synthetic", synthetic)):
        assert sum(found[source].bars) == len(given_values)
        assert found[source].p50 == pytest.approx(float(np.median(given_values)), abs=1e-12)
