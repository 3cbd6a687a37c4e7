"""The small things that a page in a terminal is made of: titles, tables, bars, quoted texts.

Colour only repeats what stands there in words or shapes, so that a pipe, an ASCII terminal and a reader who
sees no colours miss nothing.
"""

from __future__ import annotations

from math import ceil, floor
from typing import TYPE_CHECKING

from capfilt.reports.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS = " .:-=+*#@"
THRESHOLD, ASCII_THRESHOLD = "┊", "!"
"""Drawn between two bars."""
WIDE = 116
"""Columns from which on a page puts things side by side."""
KEPT, DROPPED, QUIET = "green", "red", "dim"
LONGEST_TEXT = 160
"""Characters of a caption that are shown."""
DIGEST = 12
"""Characters of a digest that are shown."""

_LEAST_BAR, _MOST_BAR = 8, 40
_EIGHTHS = ("", *"▏▎▍▌▋▊▉")


def is_wide(console: Console) -> bool:
    """Return whether there is room for things side by side."""
    return console.width >= WIDE


def title(text: str, console: Console) -> None:
    """Print a heading, with a blank line before it."""
    console.print()
    console.print(text, style="bold")


def table(*titles: str) -> Table:
    """Return an empty table; a title that begins with > stands over numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style=QUIET)
    for name in titles:
        is_number = name.startswith(">")
        made.add_column(name.removeprefix(">"), justify="right" if is_number else "left", overflow="fold")
    return made


def add(to: Table, *cells: str | Text) -> None:
    """Add a row; what is a plain text is made safe to show, what is a Text has been."""
    to.add_row(*(visible(cell) if isinstance(cell, str) else cell for cell in cells))


def styled(text: str, style: str) -> Text:
    """Return a text in a style, made safe to show."""
    from rich.text import Text

    return Text(visible(text), style=style)


def quoted(text: str, most: int = LONGEST_TEXT) -> str:
    """Return a stranger's text in quotation marks, cut and made safe to show."""
    return f'"{visible(text, most)}"'


def words(name: str) -> str:
    """Return a name of ours in words: below threshold."""
    return visible(name.replace("_", " "))


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 shard, 2 shards."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def percent(part: float, whole: float) -> str:
    """Return a share with one decimal; nothing of nothing is empty, and a few of many are not called none."""
    if not whole:
        return ""
    share = part / whole
    if 0 < share < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def put(shown: RenderableType, console: Console) -> int:
    """Print something without the blanks at its lines' ends; returns how many lines it took."""
    from rich.segment import Segment, Segments

    lines = console.render_lines(shown, pad=False)
    for line in lines:
        while line and not line[-1].text.rstrip():
            line.pop()
        if line:
            line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
        line.append(Segment.line())
    console.print(Segments(segment for line in lines for segment in line), end="")
    return len(lines)


def put_with_bars(
    titles: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    shares: Sequence[tuple[float, str]],
    console: Console,
) -> None:
    """Print a table whose rows end in a bar each, as long as there is room; a share is from 0 to 1."""
    without, made = table(*titles), table(*titles, "")
    for row in rows:
        add(without, *row)
    room = min(_MOST_BAR, console.width - console.measure(without).maximum - 2)
    if room < _LEAST_BAR:
        put(without, console)
        return
    for row, (share, style) in zip(rows, shares, strict=True):
        add(made, *row, bar(share, room, style, ascii_only=console.options.ascii_only))
    put(made, console)


def bar(share: float, columns: int, style: str = "", *, ascii_only: bool = False) -> Text:
    """Return a share from 0 to 1 as a bar, by eighths of a column; whatever is above nothing is seen."""
    from rich.text import Text

    if ascii_only:
        return Text("#" * max(round(share * columns), int(share > 0)), style=style)
    eighths = max(round(share * columns * 8), int(share > 0))
    return Text("█" * (eighths // 8) + _EIGHTHS[eighths % 8], style=style)


def histogram(counts: Sequence[int], *, ascii_only: bool = False) -> str:
    """Return counts as one line of bars, the highest one full; whatever is not empty is seen."""
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    most = max(counts, default=0)
    if most == 0:
        return blocks[0] * len(counts)
    return "".join(blocks[-(-count * (len(blocks) - 1) // most)] for count in counts)


def histogram_with_threshold(
    counts: Sequence[int], low: float, high: float, threshold: float | None, *, ascii_only: bool = False
) -> Text:
    """Return bars from low to high, with the threshold drawn between those below it and those above.

    It stands at the edge that is nearest, and the bar that it would cut has no colour. Without a threshold
    a blank at the end makes both as long.
    """
    from rich.text import Text

    bars = histogram(counts, ascii_only=ascii_only)
    if threshold is None:
        return Text(bars + " ")
    place = (threshold - low) / (high - low) * len(bars) if high > low else 0.0
    edge, below, above = (min(len(bars), max(0, at)) for at in (round(place), floor(place), ceil(place)))
    drawn = Text(bars)
    drawn.stylize(DROPPED, 0, below)
    drawn.stylize(KEPT, above)
    mark = Text(ASCII_THRESHOLD if ascii_only else THRESHOLD, style="bold")
    return Text.assemble(drawn[:edge], mark, drawn[edge:])
