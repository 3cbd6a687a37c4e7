"""The tables of `evaluate gain` against means and intervals that numpy works out, on a narrow terminal."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from capfilt.evaluation.intervals import Figure
from capfilt.reports.drawing import write_chart
from capfilt.reports.gain import ALONG, TABLES, figure_words, gain_curves, show_gain
from capfilt.reports.text import terminal
from capfilt.stages.gain.arms import WORDS
from capfilt.stages.gain.measure import Gain

if TYPE_CHECKING:
    from pathlib import Path

STUDENT = {2: 12.706204736432095, 3: 4.302652729911275, 4: 3.182446305284263}
"""97.5% of Student's distribution, by how many values there are."""
FIGURES = {
    "text R@1, %": ("image to text", "ITC, then ITM", "R@1", 100),
    "image R@1, %": ("text to image", "ITC, then ITM", "R@1", 100),
    "CIDEr-D": ("nearness to the references", "model", "CIDEr-D", 1),
}
TEXTS = {"none": 5700, "F": 2610, "C": 11700, "C+F": 8123, "repeated": 8123}
WHENS = {"as pre-trained (zero-shot)": "pre-trained", "after fine-tuning": "fine-tuned"}


def rows(
    arms: tuple[str, ...], seeds: int, whens: tuple[str, ...] = ("pre-trained", "fine-tuned")
) -> list[dict[str, Any]]:
    """Figures at steps 1000 and 2000, as drawn; and some of the same name that no table shows."""
    rng = np.random.default_rng(5)
    made = []
    for arm in arms:
        for seed in range(seeds):
            for when in whens:
                for step in (1000, 2000) if when == "pre-trained" else (2000,):
                    for table, row, measure, scale in (
                        *FIGURES.values(),
                        ("text to image", "ITC", "R@1", 100),
                    ):
                        value = float(rng.uniform(0.3, 0.5) * (1 if scale == 100 else 8))
                        place = {"arm": arm, "seed": seed, "when": when, "step": step}
                        what = {"table": table, "row": row, "measure": measure, "value": value}
                        made.append({**place, **what, "low": None, "high": None})
    return made


def shown(gain: Gain, width: int = 80) -> str:
    file = io.StringIO()
    show_gain(gain, terminal(file, width=width))
    return file.getvalue()


def tables(text: str) -> dict[str, dict[str, list[str]]]:
    """The cells of each table, by its title and the row's name."""
    found: dict[str, dict[str, list[str]]] = {}
    for block in text.split("\n\n"):
        title, *lines = block.splitlines()
        if title in WHENS:
            assert re.split(r"\s{2,}", lines[0]) == ["texts", *FIGURES]
            cells = (re.split(r"\s{2,}", line.rstrip()) for line in lines[1:])
            found[title] = {name: mine for name, *mine in cells}
    return found


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_the_tables_hold_the_mean_over_seeds_and_its_interval(seeds: int) -> None:
    arms = ("none", "F", "C+F")
    made = rows(arms, seeds)

    found = tables(shown(Gain(made, TEXTS, []), width=120))

    assert list(found) == list(WHENS)
    for title, when in WHENS.items():
        assert list(found[title]) == list(arms)
        for arm in arms:
            expected = []
            for table, row, measure, scale in FIGURES.values():
                place = (arm, when, 2000, table, row, measure)
                names = ("arm", "when", "step", "table", "row", "measure")
                values = [scale * one["value"] for one in made if tuple(one[name] for name in names) == place]
                assert len(values) == seeds
                half = STUDENT[seeds] * np.std(values, ddof=1) / math.sqrt(seeds)
                numbers = (np.mean(values), np.mean(values) - half, np.mean(values) + half)
                digits = 1 if scale == 100 else 2
                mean, low, high = (f"{number:.{digits}f}" for number in numbers)
                expected.append(f"{mean} [{low}, {high}]")
            assert found[title][arm] == expected


def test_it_fits_a_terminal_of_80_columns_however_wide_the_intervals_are() -> None:
    made = rows(("none", "F", "C", "C+F", "repeated"), 2)
    for row in made:
        row["value"] = float(row["seed"]) * (10 if row["measure"] == "CIDEr-D" else 1)
    text = shown(Gain(made, TEXTS, []))
    assert max(map(len, text.splitlines())) <= 80
    cells = tables(text)["after fine-tuning"]["repeated"]
    assert cells[0] == "50.0 [-585.3, 685.3]"
    assert cells[2] == "5.00 [-58.53, 68.53]"


def test_a_legend_says_what_each_arm_is_how_many_texts_it_has_and_how_many_seeds() -> None:
    made = [row for row in rows(("none", "C+F"), 3) if not (row["arm"] == "none" and row["seed"])]
    text = shown(Gain(made, TEXTS, [("none", 1), ("none", 2), ("F", 0), ("F", 1)]), width=200)
    lines = text.splitlines()
    assert f"none: {WORDS['none']}; 5,700 texts, 1 seed" in lines
    assert f"C+F: {WORDS['C+F']}; 8,123 texts, 3 seeds" in lines
    assert lines[-1] == "not run: none with seed 1, 2; F with seed 0, 1"
    assert not any(line.startswith("repeated") for line in lines)


def test_one_seed_has_no_interval_and_an_unknown_figure_is_left_empty() -> None:
    made = rows(("none", "F"), 1)
    for row in made:
        if (row["arm"], row["measure"]) == ("F", "CIDEr-D"):
            row["value"] = None
    found = tables(shown(Gain(made, TEXTS, [])))["as pre-trained (zero-shot)"]
    assert all(re.fullmatch(r"\d+\.\d+", cell) for cell in found["none"])
    assert len(found["F"]) == 2


def test_what_was_not_measured_has_no_table() -> None:
    found = tables(shown(Gain(rows(("none",), 2, ("pre-trained",)), TEXTS, [])))
    assert list(found) == ["as pre-trained (zero-shot)"]
    nothing = shown(Gain([], TEXTS, [("none", 0), ("F", 0)]))
    assert nothing.split() == ["not", "run:", "none", "with", "seed", "0;", "F", "with", "seed", "0"]


def test_a_figure_is_told_in_its_unit() -> None:
    assert figure_words(Figure(0.412, 0.38, 0.444), percent=True) == "41.2 [38.0, 44.4]"
    assert figure_words(Figure(0.412, 0.38, 0.444), percent=False) == "0.41 [0.38, 0.44]"
    assert figure_words(Figure(1.0, math.nan, math.nan), percent=True) == "100.0"
    assert figure_words(Figure(math.nan, math.nan, math.nan), percent=True) == ""


def test_the_way_of_each_arm_is_a_picture(tmp_path: Path) -> None:
    gain = Gain(rows(("none", "C+F"), 3), TEXTS, [])
    assert ALONG in TABLES["as pre-trained (zero-shot)"]
    write_chart(tmp_path / "way.png", gain_curves(gain, ALONG))
    assert (tmp_path / "way.png").read_bytes().startswith(b"\x89PNG")
    write_chart(tmp_path / "nothing.png", gain_curves(Gain([], TEXTS, []), ALONG))
    assert (tmp_path / "nothing.png").read_bytes() != (tmp_path / "way.png").read_bytes()
