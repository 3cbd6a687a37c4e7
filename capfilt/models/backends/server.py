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

import os
import re
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.draws import seed_of
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.layers import validated
from capfilt.models.api_client import Client, RefusedRequestError, address, in_threads, one_line
from capfilt.models.backends.answers import PROMPT, written_in
from capfilt.models.backends.sent_pictures import PlainPicture, data_url
from capfilt.models.cards import Card, Conventions
from capfilt.models.protocols import Written
from capfilt.records import Unfinished
from capfilt.settings import Foreign, Server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from capfilt.models.protocols import ImageBatch
    from capfilt.settings import SettledDecoding

CONVENTIONS = Conventions(prompt=PROMPT, min_tokens=0, max_tokens=64)
"""A sentence of a chat model is longer than one of BLIP's, and it knows itself when it has ended."""
ASKING = frozenset({"url", "api_key_env", "concurrency", "timeout_s", "retries", "backoff_s"})
"""What a card holds of how the server is asked: no caption depends on it."""
OF_A_PICTURE = frozenset({400, 403, 413, 422})
"""Statuses with which servers refuse single pictures: too many tokens of them, too long a request, contents
that they filter. The same statuses mean a request that the server never takes."""
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
        rows = self._write(batch, decoding, seed=seed, candidates=candidates, takes_refusals=False)
        return [[one.text for one in mine] for mine in rows]

    def write(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> list[list[Written]]:
        """Return captions with how each ended; see `protocols.TellingCaptioner`.

        A picture is refused alone where the server answers the same request with a plain picture in its
        place; where it does not, it takes no such request, and CapfiltError is raised as by `caption`.
        """
        return self._write(batch, decoding, seed=seed, candidates=candidates, takes_refusals=True)

    def _write(
        self,
        batch: ImageBatch,
        decoding: SettledDecoding,
        *,
        seed: int,
        candidates: int,
        takes_refusals: bool,
    ) -> list[list[Written]]:
        fields = self._fields(decoding)
        each = 1 if decoding.method == "greedy" else candidates
        threads = self._settings.concurrency
        stop = threading.Event()
        client = _client(self._url, self._settings, stop)
        urls = in_threads(partial(data_url, settings=self._settings), batch.pictures, threads, stop)

        def sent(url: str, key: tuple[str | int, ...]) -> Written:
            drawn = {"seed": seed_of(*key) % 2**_SEED_BITS} if decoding.method != "greedy" else {}
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": decoding.prompt or PROMPT},
            ]
            messages = [{"role": "user", "content": content}]
            body = {**fields, **drawn, "messages": messages}
            return client.ask("/chat/completions", written_in, body, key=key)

        plain = PlainPicture(self._settings)

        def asked(place: tuple[int, int]) -> Written:
            picture, candidate = place
            key = ("caption", seed, batch.sha256[picture], candidate)
            try:
                return sent(urls[picture], key)
            except CapfiltError as error:
                error.what += f" (picture {batch.sha256[picture]})"
                may_be_its_own = isinstance(error, RefusedRequestError) and error.status in OF_A_PICTURE
                if not (takes_refusals and may_be_its_own):
                    raise
                if not plain.is_taken(batch.pictures[picture], lambda url: sent(url, key)):
                    raise
                return Written("", Unfinished.REFUSED, error.what)

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
