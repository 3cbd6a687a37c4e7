"""The house style of every picture: paper white, thin grids, colours that a colour-blind reader tells apart.

It stands in one place so that the pictures of a run look like one hand's. They are drawn on figures of our
own, never through pyplot: no display is asked for, and the same values give the same bytes.
"""

from __future__ import annotations

import io
import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from capfilt.errors import CapfiltError
from capfilt.files import write_whole
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of lines, in their order: Okabe and Ito's, without the yellow that white paper swallows."""
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
"""What tells lines apart when the colours are used up."""
INK, QUIET, GRID = "#222222", "#666666", "#E4E4E4"
"""What is read first, what is read after it, and what is only looked along."""
WIDTH_IN, DPI = 8.0, 150
"""1200 px wide, at a width where the smallest text is 17 px high."""
LONGEST_TITLE, LONGEST_LABEL = 80, 36
"""Characters of a title and of a line's name that are shown."""

_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a dollar in somebody's caption is a dollar
    "svg.hashsalt": "capfilt",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that widths are the same everywhere
    "font.size": 8.5,
    "figure.dpi": DPI,
    "figure.titlesize": 11,
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 8.5,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": "#9A9A9A",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": "#9A9A9A",
    "ytick.color": "#9A9A9A",
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
}
_THE_READERS_OWN = ("backend", "backend_fallback", "interactive", "toolbar", "webagg.open_in_browser")
"""What of matplotlib's settings is no matter of style and stays as it is."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture that is drawn and not yet written."""

    figure: Figure

    def as_bytes(self, kind: Literal["png", "svg"] = "png") -> bytes:
        """Return the picture's file: no date and no version in it, so that equal pictures are equal files."""
        data = io.BytesIO()
        nothing = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        with house_style():
            self.figure.savefig(data, format=kind, dpi=DPI, metadata=nothing)
        return data.getvalue()


def write_chart(path: Path, chart: Chart) -> None:
    """Write a picture, all or nothing, as PNG or SVG by the path's ending; another is a CapfiltError."""
    kind = path.suffix.lower()
    if kind not in (".png", ".svg"):
        raise CapfiltError(
            f"{visible(str(path))}: pictures are drawn as PNG or SVG",
            fix="give a name that ends in .png or .svg",
        )
    write_whole(path, chart.as_bytes("svg" if kind == ".svg" else "png"))


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in our style, whatever the reader's matplotlibrc says; it is as before afterwards."""
    import matplotlib as mpl

    style: dict[Any, Any] = {
        name: value for name, value in mpl.rcParamsDefault.items() if name not in _THE_READERS_OWN
    }
    style.update(_STYLE)
    with mpl.rc_context(style):
        yield


def new_figure(title: str, height_in: float) -> Figure:
    """Return a white figure of the usual width with its title at the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(shown(title, LONGEST_TITLE), x=0.012, ha="left", weight="bold")
    return figure


def empty_chart(title: str, words: str) -> Chart:
    """Return a picture that says why there is nothing to see."""
    with house_style():
        figure = new_figure(title, 2.0)
        figure.text(0.5, 0.42, shown(words, LONGEST_TITLE), ha="center", va="center", color=QUIET)
    return Chart(figure)


def shown(text: str, most: int = LONGEST_LABEL) -> str:
    """Return text as it can be drawn on one line; what the font has no shape for is shown as its escape."""
    line = "".join(
        character if ord(character) in _shapes() else character.encode("unicode_escape").decode("ascii")
        for character in visible(text, most)
    )
    return visible(line, most)


@cache
def _shapes() -> frozenset[int]:
    """Return the code points that our font can draw."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def finite(value: float | None) -> float:
    """Return a number that can be drawn, or NaN: a gap."""
    return math.nan if value is None or not math.isfinite(value) else float(value)


def line(axes: Axes, xs: Sequence[float], ys: Sequence[float], **style: Any) -> None:
    """Draw a line with gaps where a value is none; a point without neighbours is a dot, or it were lost."""
    numbers = [finite(y) for y in ys]
    axes.plot(xs, numbers, **style)
    around = [math.nan, *numbers, math.nan]
    alone = [
        (x, y)
        for x, y, before, after in zip(xs, numbers, around, around[2:], strict=False)
        if not math.isnan(y) and math.isnan(before) and math.isnan(after)
    ]
    if alone and not style.get("marker"):
        axes.plot(*zip(*alone, strict=True), "o", markersize=4, color=style.get("color"), zorder=3)


def plain_numbers(axes: Axes, *, x: bool = True, y: bool = True) -> None:
    """Write the numbers of the axes as people do: 20,000 and 0.25."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in [axes.xaxis] * x + [axes.yaxis] * y:
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axis.set_minor_formatter(NullFormatter())


def number(value: float) -> str:
    """Return a tick's number, with thousands apart and a true minus."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
    return text.replace("-", "\N{MINUS SIGN}")


def style_of(place: int) -> dict[str, Any]:
    """Return colour and dashes of the line at a place; the first 21 differ."""
    return {
        "color": SERIES[place % len(SERIES)],
        "linestyle": DASHES[place // len(SERIES) % len(DASHES)],
    }
