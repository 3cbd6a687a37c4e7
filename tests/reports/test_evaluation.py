"""Figures in words and in pictures, by hand."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from capfilt.errors import CapfiltError
from capfilt.evaluation.intervals import Figure
from capfilt.reports.evaluation import _kinds_of_noise, figure_words, headline, write_evaluation
from capfilt.stages.evaluate.curves import score_curve
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


def of_a_filter(kinds: tuple[str, ...]) -> Evaluation:
    right, wrong = np.array([0.9, 0.8, 0.4]), np.array([0.7, 0.2])
    curves = [score_curve(kind, row, right, wrong) for kind in kinds for row in ("ITM", "random")]
    measured = [Measured(f"right pairs and {kinds[0]}", "ITM", "AP", NOT_KNOWN)]
    return Evaluation("filter", "m", "d", Findings(measured, [{"kind": "right"}], [], FACTS, curves=curves))


def test_a_filter_is_drawn_by_kind_of_noise_where_there_are_several(tmp_path: Path) -> None:
    write_evaluation(of_a_filter(("swap",)), tmp_path / "one")
    write_evaluation(of_a_filter(("junk", "swap", "all wrong ones")), tmp_path / "three")
    pictures = [sorted(path.name for path in (tmp_path / out).glob("*.png")) for out in ("one", "three")]
    assert pictures == [["roc.png"], ["precision_by_kind.png", "roc.png", "roc_by_kind.png"]]


def test_curves_are_written_for_others_to_draw(tmp_path: Path) -> None:
    write_evaluation(of_a_filter(("swap",)), tmp_path / "out")
    curves = json.loads((tmp_path / "out" / "results.json").read_text())["curves"]
    assert [(one["kind"], one["row"]) for one in curves] == [("swap", "ITM"), ("swap", "random")]
    # 0.9 and 0.8 are right, 0.7 is wrong, 0.4 is right, 0.2 is wrong.
    assert curves[0]["threshold"] == [0.9, 0.8, 0.7, 0.4, 0.2]
    assert curves[0]["right_kept"] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert curves[0]["wrong_kept"] == [0, 0, 0.5, 0.5, 1]
    assert curves[0]["precision"] == pytest.approx([1, 1, 2 / 3, 3 / 4, 3 / 5])
    assert (curves[0]["right_pairs"], curves[0]["wrong_pairs"]) == (3, 2)


def test_a_curve_is_drawn_from_where_nothing_is_kept() -> None:
    [kind] = _kinds_of_noise(of_a_filter(("swap",)).found.curves)
    itm, random = kind.curves
    assert itm.roc[:3] == [(0, 0), (0, pytest.approx(1 / 3)), (0, pytest.approx(2 / 3))]
    assert itm.roc[-1] == (1, 1)
    assert itm.precision[-1] == (1, pytest.approx(3 / 5))
    assert (itm.baseline, random.baseline) == (False, True)


def test_only_an_evaluation_or_nothing_is_replaced(tmp_path: Path) -> None:
    write_evaluation(evaluation(NOT_KNOWN), tmp_path / "out")
    check_place(tmp_path / "out")
    check_place(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(CapfiltError, match="it is a file"):
        check_place(tmp_path / "file")
    with pytest.raises(CapfiltError, match="it holds other things"):
        check_place(tmp_path)
