"""What a chat model is asked where nothing is chosen, and the caption in what it answers."""

from __future__ import annotations

import re
from typing import Any

from capfilt.models.api_client import one_line
from capfilt.models.protocols import Written
from capfilt.records import Unfinished

PROMPT = "Describe the image in one short sentence."


def caption_of(answer: str) -> str:
    """Return the caption in a model's answer, on one line: what it thought on the way is left out.

    A thought that never ends was cut off by decoding.max_tokens, and nothing of it is a caption; one that
    never begins was begun by the model's template.
    """
    text = re.sub(r"<think>.*?(</think>|\Z)", " ", answer, flags=re.S)
    return one_line(text.rpartition("</think>")[2])


def written_in(answer: Any) -> Written:
    """Return the caption in an answer of OpenAI's API, and whether the model ended it.

    It is empty where the model refused, said nothing, or was kept from saying it. Raises LookupError,
    TypeError or AttributeError for an answer of another form.
    """
    choice = answer["choices"][0]
    ended, message = choice.get("finish_reason"), choice["message"]
    content, refusal = message.get("content"), message.get("refusal")
    if ended == "content_filter":
        return Written("", Unfinished.CONTENT_FILTER)
    parts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    text = caption_of("".join(parts))
    if not text and isinstance(refusal, str) and refusal:
        return Written("", Unfinished.REFUSED)
    return Written(text, Unfinished.LENGTH if ended == "length" else None)
