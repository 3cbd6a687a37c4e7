from __future__ import annotations

import io
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from capfilt.errors import CapfiltError
from capfilt.reports import drawing
from capfilt.reports.charts import bars_with_intervals
from capfilt.reports.drawing import SERIES, Chart, number, shown, style_of, write_chart

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [("none", 0.09, 0.07, 0.11), ("C+F", 0.47, 0.43, 0.51)]


def chart(title: str = "R@1") -> Chart:
    return bars_with_intervals(ROWS, title, "share")


def test_the_ending_of_the_name_decides_the_format(tmp_path: Path) -> None:
    write_chart(tmp_path / "a.png", chart())
    write_chart(tmp_path / "b.SVG", chart())
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.width) == ("PNG", 1200)
    assert b"<svg" in (tmp_path / "b.SVG").read_bytes()[:1000]


def test_another_ending_is_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(CapfiltError) as caught:
        write_chart(tmp_path / "a.pdf", chart())
    assert ".png or .svg" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture_names_neither_a_date_nor_a_version(kind: Any) -> None:
    data = chart().as_bytes(kind)
    assert mpl.__version__.encode() not in data
    assert b"date" not in data.lower()
    with Image.open(io.BytesIO(chart().as_bytes())) as image:
        assert set(image.info) == {"dpi"}


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_equal_values_give_equal_bytes(kind: Any) -> None:
    once = chart()
    assert once.as_bytes(kind) == once.as_bytes(kind) == chart().as_bytes(kind)
    assert chart("R@5").as_bytes(kind) != chart().as_bytes(kind)


def test_another_process_gives_the_same_bytes() -> None:
    code = (
        "import sys; from capfilt.reports.charts import bars_with_intervals as bars;"
        f"sys.stdout.buffer.write(bars({ROWS!r}, 'R@1', 'share').as_bytes('svg'))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert other.stdout == chart().as_bytes("svg")


def test_the_readers_own_settings_change_no_picture_and_are_left_alone() -> None:
    plain = chart().as_bytes()
    mine = {"lines.linewidth": 9.0, "figure.facecolor": "red", "font.size": 20.0, "axes.grid": False}
    with mpl.rc_context(mine):
        assert chart().as_bytes() == plain
        assert {name: mpl.rcParams[name] for name in mine} == mine


def test_drawing_loads_no_pyplot() -> None:
    code = (
        "import sys; import capfilt.reports.charts, capfilt.reports.training_curves;"
        "assert 'matplotlib' not in sys.modules;"
        f"capfilt.reports.charts.bars_with_intervals({ROWS!r}, 'a', 'b').as_bytes();"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


HOSTILE = "$x_1^{2}$ _a\n\x1b[31m \\frac{1}{0} 日本 \u202e{} %s"


def test_text_that_a_terminal_obeys_or_the_font_lacks_is_shown_as_its_escape() -> None:
    assert shown(HOSTILE, 200) == "$x_1^{2}$ _a\\n\\x1b[31m \\frac{1}{0} \\u65e5\\u672c \\u202e{} %s"
    assert shown("Ünïcode, ελληνικά", 200) == "Ünïcode, ελληνικά"


@given(text=st.text(max_size=80), most=st.integers(4, 40))
def test_shown_text_is_printable_and_no_longer_than_asked(text: str, most: int) -> None:
    line = shown(text, most)
    assert len(line) <= most
    assert line.isprintable()


def test_a_dollar_starts_no_mathematics() -> None:
    # Taken as mathematics, the first would be an error and the second would lose its dollars.
    broken = bars_with_intervals([("$\\frac{1}$", 1, 0, 2)], "$\\frac{1}$", "$\\frac{1}$").as_bytes("svg")
    assert broken.count(b"<!-- $\\frac{1}$ -->") == 3
    priced = bars_with_intervals([("$5 and $6", 1, 0, 2)], "t", "u").as_bytes("svg")
    assert b"<!-- $5 and $6 -->" in priced


def test_numbers_are_written_as_people_do() -> None:
    wanted = {20000: "20,000", 0.25: "0.25", 0: "0", -0.5: "\N{MINUS SIGN}0.5", 1e-5: "1e\N{MINUS SIGN}05"}
    assert {value: number(value) for value in wanted} == wanted


def test_the_first_lines_differ_in_colour_or_dashes() -> None:
    styles = [str(style_of(place)) for place in range(3 * len(SERIES))]
    assert len(set(styles)) == len(styles)


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colour", [drawing.INK, drawing.QUIET])
def test_text_has_the_contrast_that_small_print_needs(colour: str) -> None:
    assert 1.05 / (luminance(colour) + 0.05) >= 4.5  # WCAG 2, AA
