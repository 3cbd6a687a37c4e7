"""Captions by a model that a server runs: anything that speaks OpenAI's chat completions.

vLLM, SGLang, llama.cpp's llama-server and Ollama do, and so do hosted services. A caption is a request of its
own, with a seed of its own, so that it does not depend on what else was asked; how many are on their way at
once is the server's to make use of.

What a caption depends on is sent and not left to the server: with its defaults a sampling that the record
calls "nucleus, 0.9" would be another one. vLLM takes them from the model's generation_config.json (of
Qwen2.5-VL: top_k 1, repetition penalty 1.05), llama-server has top_k 40 and min_p 0.05. How far a seed makes
an answer repeatable is for the server to say.
"""

from __future__ import annotations

import base64
import io
import os
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.data.images import flattened
from capfilt.draws import seed_of
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.layers import validated
from capfilt.models.api_client import Client, RefusedRequestError, address, in_threads, one_line
from capfilt.models.backends.answers import PROMPT, caption_of
from capfilt.models.cards import Card, Conventions
from capfilt.settings import Foreign, Server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from PIL.Image import Image

    from capfilt.models.protocols import ImageBatch
    from capfilt.settings import SettledDecoding

CONVENTIONS = Conventions(prompt=PROMPT, min_tokens=0, max_tokens=64)
"""A sentence of a chat model is longer than one of BLIP's, and it knows itself when it has ended."""
ASKING = frozenset({"url", "api_key_env", "concurrency", "timeout_s", "retries", "backoff_s"})
"""What a card holds of how the server is asked: no caption depends on it."""
LEAST_SIDE_PX = 32
"""A picture is stretched to at least this. The web has pictures of one pixel, and of one row of them, and
models of patches refuse them (Qwen2-VL: sides below 28 pixels, one side 200 times the other), so that one
such picture would end a run."""
JPEG_QUALITY = 90
_SEED_BITS = 31
"""llama.cpp's seeds have 32 bits, and the highest number means a random one."""
_LISTED = 20


@dataclass(frozen=True)
class Dialect:
    """What a kind of server calls what OpenAI's API has no name for; None where it has nothing such."""

    top_k: str | None
    repetition_penalty: str | None
    min_tokens: str | None
    neutral: Mapping[str, float] = field(default_factory=dict)
    """Values that switch the server's own defaults off."""


_VLLM = Dialect(
    "top_k", "repetition_penalty", "min_tokens", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
)
DIALECTS = {
    "vllm": _VLLM,
    "sglang": _VLLM,
    "llamacpp": Dialect("top_k", "repeat_penalty", None, {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}),
    "library": Dialect(None, None, None),  # Ollama: it leaves unheard what it does not know
}
"""By what the server's list of models says in `owned_by`."""
OTHER = Dialect("top_k", "repetition_penalty", "min_tokens")
"""Any other server: what it refuses it says, so that names are sent only where a choice needs them."""


def is_address(source: str) -> bool:
    """Return whether what was given as a model is an address; one that went through a `Path` still is."""
    return re.match(r"https?:/", source.strip(), re.I) is not None


def describe(url: str, settings: Server) -> Card:
    """Return what a server says of the model it serves, as the card of a captioner.

    Its `weights` is the digest of the model's name and of what the server tells of the model itself, and not
    of where it stands: the same model behind another port, or on another machine, writes the same captions.
    The options hold the address, the model, what was told of it, and the settings. Raises CapfiltError where
    no server answers, where it has no model or several and none was chosen, and for a bad address or key.
    """
    where = address(url)
    patient = settings.model_copy(update={"retries": 0})
    listed = _listed(_client(where, patient), settings.model)
    model = _chosen(where, listed, settings.model)
    said = listed.get(model, {})
    told: dict[str, Any] = {
        name: one_line(said[name]) for name in ("root", "owned_by") if isinstance(said.get(name), str)
    }
    meta = said.get("meta")
    if isinstance(meta, dict):  # llama.cpp: its quantisations differ in size, and the name may not say which
        told |= {name: meta[name] for name in ("n_params", "size") if isinstance(meta.get(name), int)}
    identity = {name: value for name, value in told.items() if name != "owned_by"}
    said_of_it = {**settings.model_dump(mode="json"), "url": where, "model": model, "told": told}
    return Card(
        kind="captioner",
        objectives=("lm",),
        weights=digest_of({"server": "openai", "model": model, "root": None, **identity}),
        model=Foreign(
            backend="server",
            options={name: value for name, value in said_of_it.items() if name not in ASKING},
            asked={name: value for name, value in said_of_it.items() if name in ASKING},
        ),
        vocabulary=0,
        conventions=CONVENTIONS,
    )


def captioner(_bundle: Path, card: Card, _device: str, _precision: str) -> ServerCaptioner:
    """Return the captioner of a card that `describe` made; device and precision are the server's own.

    Raises CapfiltError where the server does not answer, or serves another model by now.
    """
    options = {**card.foreign.options, **card.foreign.asked}
    url = options.pop("url")
    options.pop("told")
    settings = validated(Server, options)
    now = describe(url, settings)
    if now.weights != card.weights:
        raise CapfiltError(
            f"{url} serves another model than the one that was chosen: {_named(now)} instead of "
            f"{_named(card)}",
            fix="serve the same model again, or start a new run",
        )
    return ServerCaptioner(card, settings)


class ServerCaptioner:
    """Writes captions by asking a server, several requests at a time."""

    def __init__(self, card: Card, settings: Server) -> None:
        self.digest = card.digest
        told = card.foreign.options["told"]
        self._url: str = card.foreign.asked["url"]
        self._settings = settings
        self._owner: str = told.get("owned_by", "")
        self._dialect = DIALECTS.get(self._owner, OTHER)

    def caption(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> list[list[str]]:
        """Return captions by picture and candidate; see `protocols.Captioner`.

        A greedy answer is asked for once. Raises CapfiltError for what the server does not take,
        RunFailedError where it does not answer.
        """
        fields = self._fields(decoding)
        each = 1 if decoding.method == "greedy" else candidates
        threads = self._settings.concurrency
        stop = threading.Event()
        client = _client(self._url, self._settings, stop)
        urls = in_threads(self._data_url, batch.pictures, threads, stop)

        def asked(place: tuple[int, int]) -> str:
            picture, candidate = place
            key = ("caption", seed, batch.sha256[picture], candidate)
            drawn = {"seed": seed_of(*key) % 2**_SEED_BITS} if decoding.method != "greedy" else {}
            content = [
                {"type": "image_url", "image_url": {"url": urls[picture]}},
                {"type": "text", "text": decoding.prompt or PROMPT},
            ]
            messages = [{"role": "user", "content": content}]
            try:
                return _text_of(client, {**fields, **drawn, "messages": messages}, key)
            except CapfiltError as error:
                error.what += f" (picture {batch.sha256[picture]})"
                raise

        places = [(picture, candidate) for picture in range(len(batch)) for candidate in range(each)]
        texts = in_threads(asked, places, threads, stop)
        rows = [texts[n * each : (n + 1) * each] for n in range(len(batch))]
        # A greedy answer is the only one there is: every candidate is that one.
        return [(mine * candidates)[:candidates] for mine in rows]

    def _fields(self, decoding: SettledDecoding) -> dict[str, Any]:
        """Return what all requests say; a choice that the server cannot follow is refused."""
        if decoding.method == "beam":
            raise CapfiltError(
                "decoding.method is beam, and OpenAI's API has no beam search",
                fix="choose nucleus or greedy, e.g. --set decoding.method=nucleus",
            )
        fields: dict[str, Any] = {"model": self._settings.model, "max_tokens": decoding.max_tokens}
        fields |= {**self._dialect.neutral, "temperature": 0.0, **self._settings.extra}
        chosen = {"repetition_penalty": (decoding.repetition_penalty, 1.0)}
        chosen["min_tokens"] = (decoding.min_tokens, 0)
        if decoding.method == "nucleus":
            fields |= {"temperature": decoding.temperature, "top_p": decoding.top_p}
            chosen["top_k"] = (decoding.top_k, 0)
        for name, (value, nothing) in chosen.items():
            theirs = getattr(self._dialect, name)
            if value != nothing and theirs is None:
                raise CapfiltError(
                    f"decoding.{name} is {value}, which a server of {self._owner!r} leaves unheard",
                    fix=f"--set decoding.{name}={nothing}",
                )
            if value != nothing:
                fields[theirs] = value
        return fields

    def _data_url(self, picture: Image) -> str:
        """Return a picture as it is sent: upright, in RGB, transparency on white, no side too long.

        It was decoded by `data.images`, so that the server's own decoder meets no strange format and no
        orientation, and larger sides are for nothing: models reduce what is above about 1,000 pixels, and a
        photograph of 24 megapixels would travel as 10 MB.
        """
        from PIL.Image import Resampling

        image = flattened(picture)
        scale = max(1.0, LEAST_SIDE_PX / min(image.size))
        scale = min(scale, self._settings.image_px / max(image.size))
        size = (
            max(LEAST_SIDE_PX, round(image.width * scale)),
            max(LEAST_SIDE_PX, round(image.height * scale)),
        )
        if size != image.size:
            image = image.resize(size, Resampling.BICUBIC, reducing_gap=3.0)
        file = io.BytesIO()
        kind = self._settings.image_format
        # Without subsampling: half the resolution of colour is what small pictures and letters cannot spare.
        image.save(file, kind, **({"quality": JPEG_QUALITY, "subsampling": 0} if kind == "jpeg" else {}))
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _text_of(client: Client, body: Mapping[str, Any], key: tuple[str | int, ...]) -> str:
    """Return the caption that a request comes to; empty where the model refused or said nothing."""

    def read(answer: Any) -> str:
        content = answer["choices"][0]["message"].get("content")
        parts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
        return caption_of("".join(parts))

    return client.ask("/chat/completions", read, body, key=key)


def _client(url: str, settings: Server, stop: threading.Event | None = None) -> Client:
    name = settings.api_key_env
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise CapfiltError(
            f"the environment variable {name} holds characters that no key has", fix=f"set {name} again"
        )
    key_mend = f"set the environment variable {name} to a key of this server"
    mends = {
        401: key_mend,
        403: key_mend,
        404: "give the address up to where /chat/completions follows, as http://HOST:PORT/v1",
        413: "send smaller pictures, e.g. --set server.image_px=512",
        0: "serve a model that takes pictures, and change the choice that the server names "
        "(decoding, server.extra)",
    }
    return Client(
        url,
        key,
        settings.timeout_s,
        settings.retries,
        settings.backoff_s,
        mends,
        stop or threading.Event(),
    )


def _listed(client: Client, wanted: str | None) -> dict[str, dict[str, Any]]:
    """Return what the server's list says of its models, by name; nothing where there is no list to ask."""

    def read(answer: Any) -> dict[str, dict[str, Any]]:
        models = [dict(model) for model in answer["data"] or ()]
        # A name goes into records and onto screens as it is, since it is what the server is asked for.
        return {
            model["id"]: model
            for model in models
            if isinstance(model["id"], str) and model["id"].isprintable()
        }

    try:
        return client.ask("/models", read)
    except RefusedRequestError as error:
        if wanted is not None and error.status in (404, 405, 501):
            return {}
        raise
    except RunFailedError as error:
        raise CapfiltError(
            error.what, fix="start the server, wait until it has loaded its model, and check the address"
        ) from error


def _chosen(url: str, listed: Mapping[str, Any], wanted: str | None) -> str:
    """Return the model that is meant: the one that was named, or the only one."""
    names = sorted(listed)
    if wanted is not None and (wanted in listed or not listed):
        return wanted
    if wanted is None and len(names) == 1:
        return names[0]
    shown = ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
    what = f"has no model {wanted}; it has {shown}" if wanted is not None else f"has several models: {shown}"
    if not names:
        raise CapfiltError(f"{url} serves no model", fix="load one there")
    raise CapfiltError(f"{url} {what}", fix=f"name one of them, e.g. --set server.model={names[0]}")


def _named(card: Card) -> str:
    options = card.foreign.options
    told = ", ".join(f"{name} {value}" for name, value in options["told"].items())
    return f"{options['model']} ({told or 'of which it says no more'})"
