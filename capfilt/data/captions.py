"""The clean-up of captions that the data sets of BLIP's released code do before the tokenizer.

A model sees in use the texts it saw in training, so it is met where a model was trained with it and left
out where not: a filter's card says which (see `capfilt.settings.Matching.clean_up`).
"""

from __future__ import annotations

import re

MAX_WORDS = 30
"""Words that are kept of a caption, as the released code has it for COCO."""

_MARKS = dict.fromkeys(map(ord, '.!"()*#:;~'), " ")
"""Marks that part words; commas, dashes, quotes and whatever else stays."""
_GAP = re.compile(r"\s{2,}")


def cleaned(text: str, max_words: int = MAX_WORDS) -> str:
    """Return the caption in lower case, without marks and wide gaps, and its first `max_words` words.

    Words are what single blanks part: a lone tab or line break stands inside one, as in the released code.
    """
    words = _GAP.sub(" ", text.lower().translate(_MARKS)).rstrip("\n").strip(" ").split(" ")
    return " ".join(words[:max_words])
