"""Figures in words and in pictures, by hand."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from capfilt.errors import CapfiltError
from capfilt.evaluation.intervals import Figure
from capfilt.reports.evaluation import _thinned, figure_words, headline, write_evaluation
from capfilt.stages.evaluate.results import Evaluation, Findings, Measured, check_place

if TYPE_CHECKING:
    from pathlib import Path

NOT_KNOWN = Figure(math.nan, math.nan, math.nan)
FACTS = {"pictures": 1200, "texts": 6000, "device": "cpu", "precision": "fp32", "is_cut": True, "refused": {}}


def evaluation(figure: Figure) -> Evaluation:
    measured = [Measured("image to text", "ITC", "R@1", figure)]
    return Evaluation("retrieval", "m", "d", Findings(measured, [{"rank_itc": 1}], [], FACTS))


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (Figure(0.1234, 0.1, 0.2), "0.123 [0.100, 0.200]"),
        (Figure(12.34, 11.0, 13.0), "12.3 [11.0, 13.0]"),
        (Figure(0.5, 0.5, 0.5), "0.500"),
        (Figure(0.5, math.nan, math.nan), "0.500"),
        (NOT_KNOWN, "-"),
    ],
)
def test_a_figure_is_told_with_its_interval_where_it_has_one(figure: Figure, words: str) -> None:
    assert figure_words(figure) == words


def test_the_first_line_says_what_was_evaluated() -> None:
    words = headline(evaluation(NOT_KNOWN))
    assert words == "retrieval by m on d: 1,200 pictures, 6,000 texts, on cpu in fp32, the first ones"


def test_what_cannot_be_measured_is_null_in_json_and_a_gap_in_the_picture(tmp_path: Path) -> None:
    write_evaluation(evaluation(NOT_KNOWN), tmp_path / "out")
    value = json.loads((tmp_path / "out" / "results.json").read_text())
    assert value["figures"][0]["value"] is None
    assert (tmp_path / "out" / "retrieval.png").stat().st_size > 1000


def test_a_long_curve_keeps_its_ends() -> None:
    points = _thinned(range(10_001), range(10_001))
    assert (points[0], points[-1]) == ((0.0, 0.0), (10_000.0, 10_000.0))
    assert len(points) == 400
    assert points == sorted(set(points))


def test_only_an_evaluation_or_nothing_is_replaced(tmp_path: Path) -> None:
    write_evaluation(evaluation(NOT_KNOWN), tmp_path / "out")
    check_place(tmp_path / "out")
    check_place(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(CapfiltError, match="it is a file"):
        check_place(tmp_path / "file")
    with pytest.raises(CapfiltError, match="it holds other things"):
        check_place(tmp_path)
