"""What another run judges differently, in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.reports.layout import (
    DROPPED,
    KEPT,
    QUIET,
    add,
    count,
    percent,
    put,
    quoted,
    styled,
    table,
    title,
    words,
)
from capfilt.reports.show_examples import INDENT, PairCard, scores_in_words, show_cards, where
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from capfilt.reports.show_examples import Pictures

Row = dict[str, Any]

_MOST_FACTS = 12
"""Lines shown of what the runs themselves differ in."""


def show_comparison(against: Mapping[str, Any], console: Console, pictures: Pictures | None = None) -> None:
    """Print a comparison: this run is here, the other there."""
    title(f"Against {visible(against['other'])}", console)
    made = table("", "policy in force")
    for name, policy in (("here", against["policy"]), ("there", against["policy_there"])):
        add(made, name, policy if policy is not None else "nothing was judged yet")
    put(made, console)
    console.print()
    for line in against["facts"][:_MOST_FACTS]:
        console.print(styled(f"there -> here, {line}", QUIET))
    if len(against["facts"]) > _MOST_FACTS:
        console.print(styled(f"and {len(against['facts']) - _MOST_FACTS} more differences", QUIET))
    _show_alone(against, console)
    if not against["judged"]:
        console.print("no text was judged by both")
        return
    share = percent(against["changed"], against["judged"]) or "0.0%"
    verb = "has" if against["changed"] == 1 else "have"
    changed = f"{against['changed']:,} of {count(against['judged'], 'text')} judged by both"
    console.print(f"{changed}, {share}, {verb} another verdict")
    console.print()
    _show_agreement(against["agreement"], console)
    _show_changes(against["changes"], console)
    _show_shifts(against["shifts"], console)
    columns = [
        (heading, [_card(row) for row in against["examples"] if row["keep"] is keep])
        for keep, heading in ((True, "Kept here, dropped there"), (False, "Dropped here, kept there"))
    ]
    show_cards(columns, console, pictures)


def _show_alone(against: Mapping[str, Any], console: Console) -> None:
    for name, alone in (("here", against["here_alone"]), ("there", against["there_alone"])):
        if alone:
            told = ", ".join(count(number, f"{source} text") for source, number in alone.items())
            console.print(f"only {name}: {told}")
    if against["unjudged"]:
        console.print(f"without a verdict in one of both: {count(against['unjudged'], 'text')}")


def _show_agreement(rows: Sequence[Row], console: Console) -> None:
    made = table("source", "text", ">both keep", ">only here", ">only there", ">neither")
    for row in rows:
        ways = ("kept_by_both", "kept_here_alone", "kept_there_alone", "dropped_by_both")
        add(made, row["source"], "same" if row["same_text"] else "other", *(f"{row[way]:,}" for way in ways))
    put(made, console)


def _show_changes(rows: Sequence[Row], console: Console) -> None:
    if not rows:
        return
    console.print()
    made = table("source", "here", "there", ">texts")
    for row in rows:
        here = styled(words(row["reason"]), KEPT if row["keep"] else DROPPED)
        there = styled(words(row["reason_there"]), DROPPED if row["keep"] else KEPT)
        add(made, row["source"], here, there, f"{row['pairs']:,}")
    put(made, console)


def _show_shifts(rows: Sequence[Row], console: Console) -> None:
    """Print how far scores of the same texts moved; where none did, say so."""
    console.print()
    moved = [row for row in rows if row["mean_absolute"] > 0]
    if rows and not moved:
        console.print("texts that are the same have the same scores")
    if not moved:
        return
    made = table("score", "source", ">same texts", ">mean change", ">mean distance")
    for row in moved:
        change, distance = f"{row['mean']:+.3f}", f"{row['mean_absolute']:.3f}"
        add(made, row["score"].upper(), row["source"], f"{row['pairs']:,}", change, distance)
    put(made, console)


def _card(row: Row) -> PairCard:
    from rich.text import Text

    here, there = (KEPT, DROPPED) if row["keep"] else (DROPPED, KEPT)
    lines = [(0, Text.assemble(f"{row['source']}: ", (quoted(row["text"]), here)))]
    if row["text_there"] != row["text"]:
        lines.append((0, Text.assemble("there: ", (quoted(row["text_there"]), there))))
    for name, reason, scores in (
        ("here", row["reason"], row["scores"]),
        ("there", row["reason_there"], row["scores_there"]),
    ):
        told = ", ".join(filter(None, [f"{name} {words(reason)}", scores_in_words(scores)]))
        lines.append((INDENT, Text(told)))
    lines.append((INDENT, where(row)))
    return PairCard((row["shard"], row["key"]), lines)
