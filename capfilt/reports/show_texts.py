"""What the texts and their scores are like, in a terminal: lengths, diversity, repetition, histograms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.records import Measure
from capfilt.reports.layout import (
    ASCII_THRESHOLD,
    DROPPED,
    QUIET,
    THRESHOLD,
    add,
    count,
    histogram,
    histogram_with_threshold,
    is_wide,
    percent,
    put,
    quoted,
    styled,
    table,
    title,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.text import Text

Row = dict[str, Any]

_LENGTHS_SHOWN = 30
"""Lengths from which on a histogram in a terminal counts them as one."""
_SHORT_TEXT = 60
"""Characters shown of a text that only stands for others."""


def show_texts(summary: Mapping[str, Any], console: Console) -> None:
    """Print how long and how different the texts are, which come again, and which went wrong."""
    if not summary["texts"]:
        return
    title("Texts", console)
    _show_lengths(summary["texts"], console)
    console.print()
    _show_diversity(summary["diversity"], console)
    console.print()
    for source, verb in (("web", "found"), ("synthetic", "written")):
        again = [row for row in summary["repeated"] if row["source"] == source]
        if again:
            console.print(f"{source}, {verb} most often:")
        for row in again:
            console.print(f"    {row['pairs']:,} times: {quoted(row['text'])}")
    _show_degenerate(summary, console)


def show_scores(scores: Sequence[Row], console: Console) -> None:
    """Print quantiles and histograms of every score, with the policy's threshold drawn in."""
    from rich.text import Text

    if not scores:
        return
    title("Scores", console)
    wide = is_wide(console)
    digits = ".3f" if wide else ".2f"
    made = table(
        "score", "source", ">texts", ">10%", ">25%", ">half", ">75%", ">90%", *(["", ">pass"] if wide else [])
    )
    for row in scores:
        values = (f"{row[name]:{digits}}" for name in ("p10", "p25", "p50", "p75", "p90"))
        more: list[str | Text] = [_bars(row, console), _passing(row)] if wide else []
        name = Measure(row["score"], row["filter"]).words
        add(made, name, row["source"], f"{row['pairs']:,}", *values, *more)
    put(made, console)
    if not wide:
        console.print()
        for row in scores:
            measure = Measure(row["score"], row["filter"]).words
            share = f" {_passing(row)} pass" if row["reaching"] is not None else ""
            console.print(Text.assemble(f"{measure} {row['source']:9} ", _bars(row, console), share))
    if any(row["threshold"] is not None for row in scores):
        mark = ASCII_THRESHOLD if console.options.ascii_only else THRESHOLD
        console.print(f"{mark} the policy's threshold; texts at or above it pass it", style=QUIET)
    for row in scores:
        if row["unscored"]:
            measure = Measure(row["score"], row["filter"]).words
            console.print(f"{count(row['unscored'], row['source'] + ' text')} without {measure}")


def _bars(row: Row, console: Console) -> Text:
    from rich.text import Text

    ascii_only = console.options.ascii_only
    drawn = histogram_with_threshold(
        row["bars"], row["low"], row["high"], row["threshold"], ascii_only=ascii_only
    )
    return Text.assemble(f"{row['low']:5.2f} |", drawn, f"| {row['high']:.2f}")


def _passing(row: Row) -> str:
    return "" if row["reaching"] is None else percent(row["reaching"], row["pairs"])


def _show_lengths(rows: Sequence[Row], console: Console) -> None:
    """Print quantiles of lengths in words; in a wide terminal beside their histograms."""
    wide = is_wide(console)
    heads = [">words: 10%", ">half", ">90%", ">most"]
    made = table("source", ">texts", ">distinct", *heads, *([f"0 to {_LENGTHS_SHOWN} words"] if wide else []))
    for row in rows:
        counts = (f"{row[name]:,}" for name in ("captions", "distinct"))
        lengths = (f"{row[name]:,}" for name in ("words_p10", "words_p50", "words_p90", "words_most"))
        add(made, row["source"], *counts, *lengths, *([_length_bars(row, console)] if wide else []))
    put(made, console)
    if not wide:
        for row in rows:
            console.print(f"{row['source']:9}  0 |{_length_bars(row, console)}| {_LENGTHS_SHOWN} words")


def _length_bars(row: Row, console: Console) -> str:
    counts = row["counts"]
    shown = [*counts[:_LENGTHS_SHOWN], sum(counts[_LENGTHS_SHOWN:])]
    return histogram(shown, ascii_only=console.options.ascii_only)


def _show_diversity(rows: Sequence[Row], console: Console) -> None:
    """Print the share of different n-grams, a line a source."""
    sizes = sorted({row["n"] for row in rows})
    made = table("distinct n-grams", *(f">n = {n}" for n in sizes))
    for source in dict.fromkeys(row["source"] for row in rows):
        shares = {row["n"]: row for row in rows if row["source"] == source}
        add(made, source, *(percent(shares[n]["distinct"], shares[n]["total"]) for n in sizes))
    put(made, console)
    drawn = max((row["captions"] for row in rows), default=0)
    console.print(f"of all sequences of n words in {drawn:,} drawn texts of each source", style=QUIET)


def _show_degenerate(summary: Mapping[str, Any], console: Console) -> None:
    """Print what a captioner did wrong, or that it did not."""
    totals = {row["source"]: row["captions"] for row in summary["texts"]}
    for row in summary["degenerate"]:
        share = percent(row["captions"], totals[row["source"]])
        line = f"{words(row['kind'])}: {count(row['captions'], row['source'] + ' text')}, {share}"
        style = DROPPED if row["source"] == "synthetic" else ""
        console.print(styled(line, style))
        for example in row["examples"]:
            console.print(f"    {quoted(example['text'], _SHORT_TEXT)}")
    if "synthetic" in totals and not any(row["source"] == "synthetic" for row in summary["degenerate"]):
        console.print("no synthetic text is empty, loops or repeats its prompt")
