"""Pairs to look at: what was kept beside what was dropped, with pictures where the terminal takes some."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from capfilt.records import BEST_FIRST, Measure
from capfilt.reports.inline_images import at, sequence
from capfilt.reports.layout import DROPPED, KEPT, QUIET, is_wide, put, quoted, title, words
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image
    from rich.console import Console, RenderableType
    from rich.text import Text

    from capfilt.reports.inline_images import Box, Protocol

Row = dict[str, Any]

INDENT = 4
"""Columns that what is said of a text is indented."""
_GAP = 2
"""Columns between a picture and its texts, and between two cards."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of samples, and how the terminal takes them."""

    protocol: Protocol
    box: Box
    by_sample: Mapping[tuple[str, str], Image | str]
    """By shard and key, or why there is none; a sample that is not in it has a blank."""


@dataclass(frozen=True, slots=True)
class PairCard:
    """One pair as it is shown."""

    sample: tuple[str, str]
    """Shard and key."""
    lines: Sequence[tuple[int, Text]]
    """Each with how far it is indented."""


def show_examples(examples: Sequence[Row], console: Console, pictures: Pictures | None = None) -> None:
    """Print pairs that were kept and pairs that were dropped, side by side where there is room."""
    columns = [
        (heading, [_card(row, is_tall=pictures is not None) for row in examples if row["keep"] is keep])
        for keep, heading in ((True, "Kept, for example"), (False, "Dropped, for example"))
    ]
    show_cards(columns, console, pictures)


def show_cards(
    columns: Sequence[tuple[str, Sequence[PairCard]]], console: Console, pictures: Pictures | None
) -> None:
    """Print columns of cards under their headings: side by side in a wide terminal, else one by one."""
    filled = [(heading, cards) for heading, cards in columns if cards]
    if not is_wide(console):
        for heading, cards in filled:
            title(heading, console)
            for card in cards:
                _show_row([card], console, pictures)
        return
    if len(filled) == 1:
        [(heading, cards)] = filled
        filled = [(heading, cards[::2]), ("", cards[1::2])]
    if filled:
        console.print()
        _print_beside([_bold(heading) for heading, _ in filled], console, 0)
    for row in zip_longest(*(cards for _, cards in filled)):
        _show_row(row, console, pictures)


def scores_in_words(scores: Mapping[str, float]) -> str:
    """Return scores by their columns in words, the best score first."""
    known = [name for name in BEST_FIRST if name in scores]
    order = [*known, *sorted(scores.keys() - known)]
    return ", ".join(f"{Measure.of_column(name).words} {scores[name]:.3f}" for name in order)


def where(row: Row) -> Text:
    """Return where a pair lies."""
    from rich.text import Text

    return Text(f"{visible(row['shard'], 40)}/{visible(row['key'], 40)}", style=QUIET)


def _card(row: Row, *, is_tall: bool) -> PairCard:
    """Return a kept or dropped pair as a card; a tall one stands beside a picture and has lines enough."""
    from rich.text import Text

    text = Text.assemble(f"{row['source']}: ", (quoted(row["text"]), KEPT if row["keep"] else DROPPED))
    why = "" if row["keep"] else words(row["reason"])
    facts = [Text(part) for part in (why, scores_in_words(row["scores"])) if part] + [where(row)]
    told = facts if is_tall else [Text(", ").join(facts)]
    return PairCard((row["shard"], row["key"]), [(0, text), *((INDENT, line) for line in told)])


def _bold(text: str) -> Text:
    from rich.text import Text

    return Text(text, style="bold")


def _show_row(cards: Sequence[PairCard | None], console: Console, pictures: Pictures | None) -> None:
    """Print cards beside each other, then their pictures into the room that was left for them."""
    from rich.text import Text

    if pictures is not None:
        console.print()
    indent = 0 if pictures is None else pictures.box.columns + _GAP
    drawn = [pictures.by_sample.get(card.sample) if pictures and card else None for card in cards]
    shown = [
        _body(card, lost=picture if isinstance(picture, str) else "") if card is not None else Text("")
        for card, picture in zip(cards, drawn, strict=True)
    ]
    height = _print_beside(shown, console, indent)
    if pictures is None:
        return
    rest = pictures.box.rows - height
    if rest > 0:
        console.print("\n" * (rest - 1))
    height = max(height, pictures.box.rows)
    for number, picture in enumerate(drawn):
        if picture is not None and not isinstance(picture, str):
            column = number * _column_width(console, len(cards))
            console.file.write(at(column, height, sequence(picture, pictures.box, pictures.protocol)))
    console.file.flush()


def _column_width(console: Console, cards: int) -> int:
    return (console.width + _GAP) // cards


def _body(card: PairCard, *, lost: str) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    lines = [*card.lines, *([(INDENT, Text(f"no picture: {lost}", style=QUIET))] if lost else ())]
    return Group(*(Padding(text, (0, 0, 0, indent)) for indent, text in lines))


def _print_beside(shown: Sequence[RenderableType], console: Console, indent: int) -> int:
    """Print things in columns of equal width, each indented; returns how many lines that took."""
    from rich.padding import Padding
    from rich.table import Table

    width = _column_width(console, len(shown))
    grid = Table.grid()
    for number in range(len(shown)):
        is_last = number == len(shown) - 1
        grid.add_column(width=console.width - number * width if is_last else width, overflow="fold")
    gaps = [_GAP] * (len(shown) - 1) + [0]
    grid.add_row(*(Padding(one, (0, gap, 0, indent)) for one, gap in zip(shown, gaps, strict=True)))
    return put(grid, console)
