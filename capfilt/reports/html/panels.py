"""What a chart is on the page: a small drawing, its description in words, and its numbers as a table.

A panel is drawn as wide as a phone, so that its letters are as large there as anywhere; wider screens and
paper stand panels beside each other. Where colours mean something, words beside the lines say it too.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.reports.drawing import INK, QUIET, SERIES, house_style
from capfilt.reports.html.svg import svg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN = 3.7, 2.7
"""266 pt: at the 360 px of a phone one point is 1.35 px."""
COLOURS = {"web": SERIES[0], "synthetic": SERIES[1]}
RIGHT, SHUFFLED, HARD = SERIES[2], SERIES[3], SERIES[4]
"""Held-out pairs, and wrong ones made from them."""
CHOSEN = INK
"""The policy's threshold."""
ON_COLOUR = "#FFFFFF"
"""Words on a bar."""


class Number(str):
    """A number that is written already; it stands in its column as numbers do."""

    __slots__ = ()


Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers, for those who want them or who see no drawing; the first column names the row."""

    head: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    def is_number(self, column: int) -> bool:
        """Return whether a column holds numbers and nothing else."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return column > 0 and all(not isinstance(cell, str) or isinstance(cell, Number) for cell in cells)


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of the page."""

    title: str
    drawing: Markup
    table: Table
    note: str = ""
    """How to read it."""


class Sheet:
    """A panel that is being drawn; `panel` ends it."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    def legend(self, axes: Axes) -> None:
        """Write what the lines are above the drawing, where no line runs through the words."""
        lines, names = axes.get_legend_handles_labels()
        style: dict[str, Any] = {"handlelength": 1.8, "columnspacing": 1.2, "borderpad": 0.1, "fontsize": 8}
        self.figure.legend(lines, names, loc="outside upper left", ncols=len(lines), **style)

    def panel(self, name: str, title: str, *, alt: str, table: Table, note: str = "") -> Panel:
        """Return the finished panel; `name` is unique on the page, and `alt` says what there is to see."""
        return Panel(title, svg(self.figure, name, f"{title}. {alt}"), table, note)


@contextmanager
def sheet(height_in: float = HEIGHT_IN) -> Iterator[Sheet]:
    """Draw in the house's style, on a sheet as wide as a phone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with house_style():
        layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.03)
        figure = Figure(figsize=(WIDTH_IN, height_in), layout=layout)
        FigureCanvasAgg(figure)
        yield Sheet(figure)


def write(axes: Axes, words: str, at: tuple[float, float], **style: Any) -> None:
    """Write words at a point of the data, moved by `move` points."""
    axes.annotate(
        words,
        at,
        xytext=style.pop("move", (0, 0)),
        textcoords="offset points",
        color=style.pop("color", QUIET),
        fontsize=style.pop("fontsize", 8),
        annotation_clip=False,
        **style,
    )


def upright_threshold(axes: Axes, value: float, words: str = "") -> None:
    """Draw the policy's threshold on the axis from left to right, with its words at the top."""
    axes.axvline(value, color=CHOSEN, linewidth=1.1, linestyle=(0, (4, 2)), zorder=4)
    if words:
        low, high = axes.get_xlim()
        on_the_right = value > low + 0.55 * (high - low)
        axes.annotate(
            words,
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if on_the_right else 4, -2),
            textcoords="offset points",
            ha="right" if on_the_right else "left",
            va="top",
            fontsize=8,
            color=INK,
        )


def percent(part: float, whole: float) -> str:
    """Return a share as people read it; never 100% or 0% of what is nearly so."""
    if not whole:
        return "none"
    share = 100 * part / whole
    if 99.5 <= share < 100 or 0 < share < 0.5:
        return f"{min(max(share, 0.01), 99.99):.2f}%"
    return f"{share:.0f}%"
