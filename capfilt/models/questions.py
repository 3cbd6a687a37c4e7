"""What is asked of a model that writes, in tokens that it has places for.

Reading is not training: a question may be longer than texts that are trained on, and the places of the
language model are its one limit, whether an answer is written then or judged. Where even they do not suffice
a question loses its beginning, since what is asked stands at its end (LAVIS: truncation_side="left").
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING

from capfilt.models.language_model import longest_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from capfilt.models.prompted import SoftPrompted


def longest_answer(model: SoftPrompted) -> int | None:
    """Return how many tokens may be written: half of the places that the queries leave; None for any number.

    An encoder-decoder writes in places of their own, all but that of its start token.
    """
    places = longest_text(model.language_model)
    if places is None:
        return None
    return places - 1 if model.is_encoder_decoder else (places - model.queries) // 2


def room_for_question(model: SoftPrompted, written: int) -> int | None:
    """Return how many tokens may stand between the queries and what is written; None for any number."""
    places = longest_text(model.language_model)
    if places is None:
        return None
    return places - model.queries - (0 if model.is_encoder_decoder else written)


def within(ids: Sequence[int], begin: int, room: int | None) -> list[int]:
    """Return a question's ids cut to `room`: all of the `begin` first ones, and the last of the others."""
    over = 0 if room is None else max(0, len(ids) - room)
    return [*ids[:begin], *ids[begin + over :]]


def shortened(text: str, fits: Callable[[str], bool]) -> str:
    """Return as much of a text's beginning as fits: whole words, or of a first word that is too long a part.

    Where not even a part does, nothing is left of it.
    """
    if fits(text):
        return text
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    if not ends or not fits(text[: ends[0]]):
        ends = list(range(1, ends[0] + 1 if ends else 1))
    taken = bisect_left(ends, True, key=lambda end: not fits(text[:end]))
    return text[: ends[taken - 1]] if taken else ""
