from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from read_page import number

from capfilt.provenance.statistics.counts import Exported, Funnel, Verdict
from capfilt.provenance.statistics.distributions import Distribution, ScoreGrid
from capfilt.reports.html.charts import funnel_chart, histogram_chart, joint_chart, rank_correlation
from capfilt.reports.html.page import cell
from capfilt.reports.html.panels import Number, Table, percent


def distribution(source: str, bars: tuple[int, ...], threshold: float | None) -> Distribution:
    return Distribution(
        score="itm",
        filter=None,
        source=source,
        pairs=sum(bars),
        unscored=0,
        least=0.0,
        p10=0.1,
        p25=0.2,
        p50=0.5,
        p75=0.8,
        p90=0.9,
        most=1.0,
        low=0.0,
        high=1.0,
        bars=bars,
        threshold=threshold,
        reaching=None if threshold is None else sum(bars[2:]),
    )


def test_the_threshold_is_drawn_where_it_lies_and_bars_below_it_are_faint() -> None:
    panel = histogram_chart([distribution("web", (5, 3, 2, 8), 0.5)])
    root = ElementTree.fromstring(panel.drawing)
    bars = [path for path in root.iter("path") if path.get("fill") == "#0072b2"]
    faint = [path for path in bars if path.get("opacity") == "0.35"]
    assert (len(bars), len(faint)) == (4, 2)
    [line] = [path for path in root.iter("path") if path.get("stroke-dasharray")]
    at = float(re.findall(r"[\d.]+", line.attrib["d"])[0])
    assert max(_right(path.attrib["d"]) for path in faint) == pytest.approx(at, abs=0.2)
    assert panel.table.rows[0] == ("0 to 0.25", 5)
    assert "The threshold is 0.5" in panel.drawing


def _right(path: str) -> float:
    return max(float(x) for x in re.findall(r"[ML] ([\d.]+) ", path))


def test_the_bar_that_the_threshold_cuts_is_drawn_in_two_parts() -> None:
    panel = histogram_chart([distribution("synthetic", (5, 3, 2, 8), 0.6)])
    bars = re.findall(r'<path[^>]*fill="#d55e00"[^>]*>', panel.drawing)
    assert len(bars) == 5


def test_a_million_pairs_make_no_larger_drawing_than_a_thousand() -> None:
    few, many = (
        joint_chart(grid(np.random.default_rng(0).poisson(mean, (32, 32))), {"itm": 0.5})
        for mean in (4, 1000)
    )
    assert len(many.drawing) < 1.2 * len(few.drawing)
    assert len(many.drawing) < 60_000


def grid(counts: np.ndarray) -> ScoreGrid:
    return ScoreGrid("web", "itc", "itm", -1.0, 1.0, 0.0, 1.0, tuple(tuple(map(int, row)) for row in counts))


def test_the_table_behind_two_scores_holds_every_pair_in_its_place() -> None:
    counts = np.zeros((32, 32), dtype=int)
    counts[31, 0], counts[0, 31], counts[15, 16] = 7, 11, 13
    table = joint_chart(grid(counts), {}).table
    sums = [[number(cell(value)) for value in row[1:]] for row in table.rows]
    assert (sums[0][0], sums[7][7], sums[4][4]) == (7, 11, 13)
    assert sum(map(sum, sums)) == 31
    assert table.rows[0][0] == "0.875 to 1"
    assert table.head[1] == "\N{MINUS SIGN}1 to \N{MINUS SIGN}0.75"


def test_the_rank_correlation_is_that_of_the_ranks() -> None:
    counts = np.random.default_rng(1).poisson(0.7, (6, 5))
    ys, xs = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < one).sum() + ((values == one).sum() - 1) / 2 for one in values])

    expected = np.corrcoef(ranks(xs), ranks(ys))[0, 1]
    assert rank_correlation(counts.tolist()) == pytest.approx(expected)


def test_scores_that_do_not_vary_have_no_rank_correlation() -> None:
    assert rank_correlation([[3, 4]]) is None


def funnel(kept: int | None, exported: Exported | None) -> Funnel:
    return Funnel(
        samples=10,
        recorded=10,
        shards=1,
        used=9,
        refused=1,
        refused_by_reason={"unreadable_image": 1},
        texts_missing_by_reason={},
        captions={"web": 8, "synthetic": 9},
        verdicts=(Verdict("web", True, "kept", 3), Verdict("synthetic", True, "kept", 4)),
        kept=kept,
        images_kept=None if kept is None else 5,
        exported=exported,
    )


def test_the_funnel_ends_where_the_run_does() -> None:
    steps = [row[0] for row in funnel_chart(funnel(None, None)).table.rows]
    assert steps == ["samples read", "samples with a picture that can be used", "texts"]
    other = Exported(samples=4, shards=1, bytes=9, policy="another", is_current=False)
    rows = funnel_chart(funnel(7, other)).table.rows
    assert rows[3:] == [
        ("texts kept", 3, 4, 7),
        ("samples with a kept text", None, None, 5),
        ("samples in an export of another policy", None, None, 4),
    ]


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (1, 2, "50%"),
        (9999, 10000, "99.99%"),
        (1, 10**6, "0.01%"),
        (0, 5, "0%"),
        (5, 5, "100%"),
        (0, 0, "none"),
    ],
)
def test_a_share_is_never_called_all_or_nothing_when_it_is_not(part: int, whole: int, words: str) -> None:
    assert percent(part, whole) == words


def test_a_column_is_one_of_numbers_when_each_of_its_cells_is() -> None:
    table = Table(("a", "b", "c", "d"), [("x", 1, "one", Number("1,000")), ("y", None, 2, 2.5)])
    assert [table.is_number(column) for column in range(4)] == [False, True, False, True]
