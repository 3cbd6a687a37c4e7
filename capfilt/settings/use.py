"""How captioner and filter are used: how a caption is drawn, how a text is read."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from capfilt.layers import Settings


class Decoding(Settings):
    """How the captioner draws a caption (BLIP, section 3.3: nucleus sampling, p = 0.9)."""

    method: Literal["nucleus", "greedy", "beam"] = "nucleus"
    """nucleus draws, greedy takes the likeliest token, beam keeps the likeliest beginnings."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Mass of the nucleus: draw from the likeliest tokens that together reach it."""
    top_k: int = Field(0, ge=0)
    """Draw from this many likeliest tokens at most; 0 for no such limit."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it before the draw."""
    beams: int = Field(3, ge=1)
    """Beginnings that beam search keeps."""
    length_penalty: float = 1.0
    """Beam scores are divided by the length to this power."""
    length_counts: Literal["generated", "whole"] | None = None
    """What beam search takes for a caption's length: the tokens it generated, end included (transformers),
    or all of them, prompt included and end not (BLIP's released code); by default the captioner's own."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1, tokens that stand in the caption become less likely."""
    min_tokens: int | None = Field(None, ge=0)
    """Shortest caption, in tokens, neither prompt nor end counted; by default the captioner's own."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest caption, in tokens, neither prompt nor end counted; by default the captioner's own."""
    prompt: str | None = None
    """Words that every caption begins with, not part of its text, or what the captioner is told to do; by
    default the captioner's own. Where there are several prompts, the first."""
    prompts: tuple[str, ...] = ()
    """Several prompts, taken in turn: candidate n is written with prompt n modulo their number."""

    @model_validator(mode="before")
    @classmethod
    def _first_of_several(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("prompts"), (list, tuple)):
            return values
        several = tuple(values["prompts"])
        first = several[0] if several and values.get("prompt") is None else values.get("prompt")
        # One of one is `prompt`, so that it has one digest however it was given.
        return {**values, "prompt": first, "prompts": () if several == (first,) else several}

    @model_validator(mode="after")
    def _prompts_agree(self) -> Self:
        if self.prompts and self.prompt != self.prompts[0]:
            raise ValueError(
                f"prompt is {self.prompt!r}, which is not the first of prompts; give one of both"
            )
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError("one of the prompts is given twice")
        return self

    @model_serializer(mode="wrap")
    def _without_several(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Leave `prompts` out where there is one: what it wrote keeps its record and its digest."""
        values: dict[str, Any] = handler(self)
        if not self.prompts and info.include is None:
            values.pop("prompts", None)
        return values

    @model_validator(mode="after")
    def _lengths_in_order(self) -> Self:
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens is above max_tokens")
        return self


class SettledDecoding(Decoding):
    """Decoding with nothing left open: what models are given. The defaults are ours (BLIP, section 3.3)."""

    length_counts: Literal["generated", "whole"] = "generated"
    """What beam search takes for a caption's length."""
    min_tokens: int = Field(5, ge=0)
    """Shortest caption, in tokens, neither prompt nor end counted."""
    max_tokens: int = Field(20, ge=1)
    """Longest caption, in tokens, neither prompt nor end counted."""
    prompt: str = ""
    """Words that every caption begins with, not part of its text; where there are several, the first."""

    def of(self, prompt: str) -> SettledDecoding:
        """Return the same decoding with one prompt."""
        return self.model_copy(update={"prompt": prompt, "prompts": ()})

    def prompt_of(self, candidate: int) -> str:
        """Return the prompt that a candidate is written with."""
        return self.prompts[candidate % len(self.prompts)] if self.prompts else self.prompt


class Matching(Settings):
    """How the filter reads a text; by default as the model was made to (see a bundle's card)."""

    match_token: Literal["cls", "enc"] | None = None
    """First token of a text whose match is judged: [CLS] or [ENC] (BLIP, section 3.1: [Encode])."""
    clean_up: Literal["none", "blip"] | None = None
    """blip: lower case and no punctuation, at most 30 words, as the released code's data sets do."""
    question: str | None = Field(None, pattern=r"\{text\}")
    """What a model that answers is asked of a text, which stands where it says {text}; by default whether the
    image shows it."""


class Server(Settings):
    """How a captioner that a server runs is asked; `bundles.captioner` holds its address."""

    model: str | None = None
    """Name of the model, for a server that has several."""
    api_key_env: str = Field("OPENAI_API_KEY", pattern=r"^[A-Za-z_]\w*$")
    """Environment variable that holds the server's key. The key itself is never recorded."""
    concurrency: int = Field(8, ge=1, le=1024)
    """Requests on their way at once, from each process that takes shards."""
    timeout_s: float = Field(300.0, gt=0)
    """Longest wait for one answer, in seconds."""
    retries: int = Field(5, ge=0, le=100)
    """How often a request is sent again that failed for a reason that may pass."""
    backoff_s: float = Field(1.0, gt=0)
    """Wait before it is sent again, in seconds, doubled every time."""
    image_px: int = Field(1024, ge=32, le=8192)
    """Longest side of a picture that is sent, in pixels; a larger one is reduced."""
    image_format: Literal["jpeg", "png"] = "jpeg"
    """How a picture is sent: as a JPEG of quality 90, or a PNG, several times as large and without loss."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of a request, as the server's manual has them, such as
    {chat_template_kwargs = {enable_thinking = false}}."""

    @model_validator(mode="after")
    def _extra_is_further(self) -> Self:
        ours = {"model", "messages", "stream", "n", "temperature", "top_p", "max_tokens", "seed"}
        if taken := sorted(ours & self.extra.keys()):
            raise ValueError(f"extra holds {taken[0]}, which other settings say")
        return self
