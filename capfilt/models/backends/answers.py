"""What a chat model is asked where nothing is chosen, and the caption in what it answers."""

from __future__ import annotations

import re

from capfilt.models.api_client import one_line

PROMPT = "Describe the image in one short sentence."


def caption_of(answer: str) -> str:
    """Return the caption in a model's answer, on one line: what it thought on the way is left out.

    A thought that never ends was cut off by decoding.max_tokens, and nothing of it is a caption; one that
    never begins was begun by the model's template.
    """
    text = re.sub(r"<think>.*?(</think>|\Z)", " ", answer, flags=re.S)
    return one_line(text.rpartition("</think>")[2])
