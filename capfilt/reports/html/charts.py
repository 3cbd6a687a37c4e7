"""The charts of what was judged: the funnel, the scores, two scores against each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from capfilt.provenance.statistics.distributions import edges_of
from capfilt.records import SCORES, Measure
from capfilt.reports.drawing import INK, QUIET, number, plain_numbers
from capfilt.reports.html.panels import (
    CHOSEN,
    COLOURS,
    ON_COLOUR,
    Panel,
    Table,
    percent,
    sheet,
    upright_threshold,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from capfilt.provenance.statistics.counts import Funnel
    from capfilt.provenance.statistics.distributions import Distribution, ScoreGrid
    from capfilt.reports.html.panels import Cell

_GREY = "#9A9A9A"
_PALE = 0.35
"""How strongly a bar below the threshold is painted."""
_LETTER = 0.022
"""Share of the width that a letter takes: a bar has room for its words or does without."""
_SHADES = (0.16, 0.3, 0.45, 0.62, 0.8, 1.0)
_COARSE = 8
"""Rows and columns of the table behind two scores drawn against each other."""


def funnel_chart(funnel: Funnel) -> Panel:
    """Draw how many samples and texts there are after each step."""
    steps = _steps(funnel)
    most = max(1, *(sum(parts.values()) for _, parts in steps))
    with sheet(0.55 * len(steps)) as drawn:
        axes = drawn.figure.subplots()
        axes.set_xlim(0, most)
        axes.set_ylim(len(steps) - 0.45, -0.5)
        axes.set_axis_off()
        for place, (what, parts) in enumerate(steps):
            total = f"{sum(parts.values()):,} {what}"
            write(axes, total, (0, place - 0.14), color=INK, fontsize=9)
            left = 0
            for source, count in parts.items():
                colour = COLOURS.get(source, _GREY)
                axes.barh(place + 0.16, count, 0.4, left=left, color=colour, linewidth=0)
                words = f"{source} {count:,}"
                if source in COLOURS and count > _LETTER * len(words) * most:
                    write(axes, words, (left, place + 0.16), move=(4, -2.8), color=ON_COLOUR)
                left += count
        alt = "; ".join(
            f"{sum(parts.values()):,} {what}"
            + "".join(f", {count:,} of them {source}" for source, count in parts.items() if source)
            for what, parts in steps
        )
        return drawn.panel(
            "funnel",
            "Samples and texts after each step",
            alt=f"From above to below: {alt}.",
            table=Table(
                ("step", *COLOURS, "all"),
                [
                    (what, *(parts.get(source) for source in COLOURS), sum(parts.values()))
                    for what, parts in steps
                ],
            ),
        )


def _steps(funnel: Funnel) -> list[tuple[str, dict[str, int]]]:
    """Return what there is after each step, by source where it is texts."""
    steps = [
        ("samples read", {"": funnel.samples}),
        ("samples with a picture that can be used", {"": funnel.used}),
        ("texts", dict(funnel.captions)),
    ]
    if funnel.kept is not None and funnel.images_kept is not None:
        kept = dict.fromkeys(funnel.captions, 0)
        for verdict in funnel.verdicts:
            kept[verdict.source] += verdict.pairs if verdict.keep else 0
        steps += [("texts kept", kept), ("samples with a kept text", {"": funnel.images_kept})]
    if funnel.exported is not None:
        what = "samples exported" if funnel.exported.is_current else "samples in an export of another policy"
        steps.append((what, {"": funnel.exported.samples}))
    return steps


def histogram_chart(of: Sequence[Distribution]) -> Panel:
    """Draw how one score lies, a row for each source, with the threshold through all of them."""
    first = of[0]
    name, threshold = first.measure.words, first.threshold
    with sheet(0.55 + 1.2 * len(of)) as drawn:
        grid = drawn.figure.subplots(len(of), 1, sharex=True, squeeze=False)
        for place, (one, axes) in enumerate(zip(of, grid[:, 0], strict=True)):
            _bars(axes, one)
            axes.set_xlim(first.low, max(first.high, first.low + 1e-3))
            axes.set_title(f"{one.source} texts", color=COLOURS[one.source], fontsize=9, weight="bold")
            axes.set_title(_reaching(one), loc="right", color=QUIET, fontsize=8)
            axes.grid(visible=False, axis="x")
            axes.locator_params(axis="y", nbins=3, integer=True)
            plain_numbers(axes)
            if threshold is not None:
                axes.set_ylim(top=1.2 * max(one.bars))
                upright_threshold(axes, threshold, "" if place else f"threshold {threshold:.3g}")
        drawn.figure.supxlabel(f"{name}, {SCORES[first.score].kind}", fontsize=8.5, color=QUIET)
        alt = "; ".join(f"{one.source} texts: {_reaching(one)}, median {one.p50:.3g}" for one in of)
        ends = [f"{low:.3g} to {high:.3g}" for low, high in edges_of(first)]
        rows = zip(ends, *(one.bars for one in of), strict=True)
        return drawn.panel(
            f"scores-{first.measure.column}",
            f"{name} of web and synthetic texts",
            alt=alt + ("." if threshold is None else f". The threshold is {threshold:.6g}."),
            table=Table(
                (name, *(f"{one.source} texts" for one in of)), [row for row in rows if any(row[1:])]
            ),
            note="" if threshold is None else "Faint bars lie below the threshold.",
        )


def _bars(axes: Axes, one: Distribution) -> None:
    """Draw the bars, pale below the threshold; one that it cuts is drawn in both."""
    threshold = -math.inf if one.threshold is None else one.threshold
    for low, high, alpha in ((-math.inf, threshold, _PALE), (threshold, math.inf, 1.0)):
        cut = [(max(left, low), min(right, high)) for left, right in edges_of(one)]
        drawn = [(left, right, count) for (left, right), count in zip(cut, one.bars, strict=True)]
        drawn = [(left, right, count) for left, right, count in drawn if left < right and count]
        axes.bar(
            [left for left, _, _ in drawn],
            [count for _, _, count in drawn],
            [right - left for left, right, _ in drawn],
            align="edge",
            color=COLOURS[one.source],
            alpha=alpha,
            linewidth=0,
        )


def _reaching(one: Distribution) -> str:
    if one.reaching is None:
        return f"{one.pairs:,} pairs"
    return f"{percent(one.reaching, one.pairs)} of {one.pairs:,} reach it"


def joint_chart(grid: ScoreGrid, thresholds: Mapping[str, float]) -> Panel:
    """Draw two scores against each other: the stronger a cell, the more pairs."""
    across, up = Measure.of_column(grid.x).words, Measure.of_column(grid.y).words
    title = f"{across} against {up}, {grid.source} texts"
    most = max(map(max, grid.counts))
    with sheet(3.0) as drawn:
        axes = drawn.figure.subplots()
        axes.set_xlim(grid.x_low, max(grid.x_high, grid.x_low + 1e-3))
        axes.set_ylim(grid.y_low, max(grid.y_high, grid.y_low + 1e-3))
        axes.grid(visible=False)
        _paint_cells(axes, grid)
        for column, line in ((grid.x, axes.axvline), (grid.y, axes.axhline)):
            if column in thresholds:
                line(thresholds[column], color=CHOSEN, linewidth=1.1, linestyle=(0, (4, 2)), zorder=4)
        axes.set_xlabel(across)
        axes.set_title(up, color=QUIET, fontsize=8.5)
        axes.locator_params(nbins=5)
        plain_numbers(axes)
        correlation = rank_correlation(grid.counts)
        agree = "" if correlation is None else f"Their rank correlation is {correlation:.2f}. "
        note = f"{agree}The strongest cells hold up to {most:,} pairs."
        if {grid.x, grid.y} & set(thresholds):
            note += " The broken line is the threshold."
        return drawn.panel(
            f"joint-{grid.source}",
            title,
            alt=f"{sum(map(sum, grid.counts)):,} pairs counted in cells. {note}",
            table=_coarse(grid),
            note=note,
        )


def rank_correlation(counts: Sequence[Sequence[int]]) -> float | None:
    """Return Spearman's correlation of a table of counts, those of one row or column being ties.

    None where either does not vary.
    """
    total = sum(map(sum, counts))
    up = _centred_ranks([sum(row) for row in counts], total)
    across = _centred_ranks([sum(column) for column in zip(*counts, strict=True)], total)
    cells = [
        (across[x], up[y], count) for y, row in enumerate(counts) for x, count in enumerate(row) if count
    ]
    spread = sum(x * x * n for x, _, n in cells) * sum(y * y * n for _, y, n in cells)
    return sum(x * y * n for x, y, n in cells) / math.sqrt(spread) if spread > 0 else None


def _centred_ranks(counts: Sequence[int], total: int) -> list[float]:
    ranks, before = [], 0
    for count in counts:
        ranks.append(before + count / 2 - total / 2)
        before += count
    return ranks


def _paint_cells(axes: Axes, grid: ScoreGrid) -> None:
    """Paint the cells in a few shades, each as one shape: the drawing stays small whatever it shows."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    rows = len(grid.counts)
    width, height = (grid.x_high - grid.x_low) / rows, (grid.y_high - grid.y_low) / rows
    most = math.log1p(max(map(max, grid.counts)))
    shades: dict[int, list[Path]] = {}
    for row, counts in enumerate(grid.counts):
        for column, pairs in enumerate(counts):
            if not pairs:
                continue
            x, y = grid.x_low + column * width, grid.y_low + row * height
            corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
            shade = min(len(_SHADES) - 1, int(math.log1p(pairs) / most * len(_SHADES)))
            shades.setdefault(shade, []).append(Path(corners, closed=True))
    for shade, cells in sorted(shades.items()):
        shape = Path.make_compound_path(*cells)
        patch = PathPatch(shape, color=COLOURS[grid.source], alpha=_SHADES[shade], linewidth=0, zorder=2)
        axes.add_patch(patch)


def _coarse(grid: ScoreGrid) -> Table:
    """Return the cells as a table of fewer rows and columns, the highest row first."""
    by = max(1, len(grid.counts) // _COARSE)
    sums = [[0] * _COARSE for _ in range(_COARSE)]
    for row, counts in enumerate(grid.counts):
        for column, pairs in enumerate(counts):
            sums[min(row // by, _COARSE - 1)][min(column // by, _COARSE - 1)] += pairs

    def ends(low: float, high: float, place: int) -> str:
        step = (high - low) / _COARSE
        return f"{number(round(low + place * step, 3))} to {number(round(low + (place + 1) * step, 3))}"

    names = f"{Measure.of_column(grid.y).words} (down), {Measure.of_column(grid.x).words} (across)"
    head = (names, *(ends(grid.x_low, grid.x_high, column) for column in range(_COARSE)))
    rows: list[list[Cell]] = [
        [ends(grid.y_low, grid.y_high, row), *(count or None for count in sums[row])]
        for row in reversed(range(_COARSE))
    ]
    return Table(head, rows)
