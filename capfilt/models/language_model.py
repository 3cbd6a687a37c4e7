"""A frozen language model of transformers: built from its config, read with states in front, continued.

Decoder-only and encoder-decoder models are told apart here and nowhere else in decoding: to what writes
captions both are a beginning that is read once, and one token at a time after it.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Mapping


def language_config(config: Mapping[str, Any]) -> Any:
    """Return transformers' configuration of what a config.json holds; CapfiltError where it has none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise CapfiltError(
            f"model.language.config has model_type {kind!r}, which transformers does not know",
            fix="set bundles.language to the folder of a language model, with its config.json",
        )
    # Numbers of the file's type are its weights'; what is built here has those that are asked for.
    values = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    return CONFIG_MAPPING[kind].from_dict(copy.deepcopy(values))


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is that of an encoder-decoder, such as T5."""
    return bool(language_config(config).is_encoder_decoder)


def build_language_model(config: Mapping[str, Any]) -> Any:
    """Return a language model of this structure, frozen, with fresh weights in torch's default type.

    `config` is what the config.json of a transformers folder holds, and its activation is kept: LAVIS has
    the exact GELU in FlanT5, which the config of a released BLIP-2 says and that of FlanT5 does not. Input
    and output embeddings that the config keeps apart stay so, where transformers ties those of T5 and would
    read one into the other. Raises CapfiltError for a config that transformers does not know or cannot build.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    try:
        settings = language_config(config)
        auto: Any = AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM
        model: Any = auto.from_config(settings, dtype=torch.get_default_dtype())
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, ImportError) as error:
        raise CapfiltError(
            "transformers cannot build the language model of model.language.config: "
            + str(error).partition("\n")[0],
            fix="set bundles.language to the folder of a text-only language model, with its config.json",
        ) from error
    _keep_apart(model, config)
    return model.requires_grad_(False).eval()


def _keep_apart(model: Any, config: Mapping[str, Any]) -> None:
    """Give the output layer a matrix of its own where the config says that it has one.

    transformers 5 says of every T5 that its embeddings are tied, remembers in `scale_decoder_outputs` what
    the file said, and unties them where a folder has two.
    """
    if config.get("tie_word_embeddings") is not False and config.get("scale_decoder_outputs") is not False:
        return
    words, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is not None and output.weight is words.weight:
        output.weight = nn.Parameter(output.weight.detach().clone())


def embedding_width(model: Any) -> int:
    """Return the width of a token's embedding, which prompts must have."""
    return int(model.get_input_embeddings().weight.shape[1])


def recompute_layers(model: Any, on: bool) -> None:
    """Have the backward pass compute the layers' states again instead of keeping them, or not.

    transformers does so in training mode alone, in which a frozen model would drop states.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.__dict__.pop("forward", None)
            if on:
                layer.__dict__["forward"] = partial(checkpoint, layer.forward, use_reentrant=False)


def longest_text(model: Any) -> int | None:
    """Return how many positions the model has, states in front included; None where there is no limit."""
    places = getattr(model.config, "max_position_embeddings", None)
    return int(places) if places else None


def check_places(model: Any, queries: int, max_tokens: int, *, texts: int = 1) -> None:
    """Refuse `texts` of up to `max_tokens` each, in one row after the queries, that a model cannot place.

    An encoder and its decoder have places of their own, so that there a text never stands after another.
    Raises CapfiltError that says how long texts may be: a table of positions would end a training, or a
    worker, with the first text that is too long.
    """
    places = longest_text(model)
    texts = 1 if model.config.is_encoder_decoder else texts
    if places is None or queries + texts * max_tokens <= places:
        return
    what = f"{max_tokens} tokens" if texts == 1 else f"{texts} texts of {max_tokens} tokens"
    raise CapfiltError(
        f"{queries} queries and {what} stand in one row, and the language model has {places} places",
        fix=f"set model.language.max_tokens to {max(0, places - queries) // texts} or lower",
    )


@dataclass
class Continued:
    """A language model in the middle of texts, a row each, that began with states in front.

    Rows have the same length and nothing is padded, so that no mask is given: transformers would ask a GPU
    whether it masks anything, and wait for the answer at every token.
    """

    model: Any
    cache: Any = None
    encoded: Tensor | None = None
    """States of the encoder, (rows, positions, width)."""

    @classmethod
    def after(cls, model: Any, prompts: Tensor, ids: Tensor) -> tuple[Continued, Tensor]:
        """Read states (rows, states, width), then ids (rows, tokens); returns the logits of what follows.

        An encoder-decoder reads both in its encoder, and its decoder the start token.
        """
        words = model.get_input_embeddings()
        embedded = torch.cat([prompts.to(words.weight.dtype), words(ids)], 1)
        if not model.config.is_encoder_decoder:
            begun = cls(model)
            return begun, begun._read(inputs_embeds=embedded)
        begun = cls(model, encoded=model.get_encoder()(inputs_embeds=embedded)[0])
        return begun, begun.next_logits(ids.new_full((len(embedded), 1), decoder_start(model)))

    def next_logits(self, ids: Tensor) -> Tensor:
        """Return the logits, (rows, vocabulary), after these ids (rows, tokens), which are then read."""
        if self.encoded is not None:
            return self._read(decoder_input_ids=ids, encoder_outputs=(self.encoded,))
        return self._read(input_ids=ids)

    def repeat(self, times: int) -> Continued:
        """Return the same with every row so many times, side by side; this one stays as it is."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(times)
        encoded = None if self.encoded is None else self.encoded.repeat_interleave(times, 0)
        return Continued(self.model, cache, encoded)

    def take(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was."""
        self.cache.batch_select_indices(rows)
        self.encoded = None if self.encoded is None else self.encoded[rows]

    def _read(self, **inputs: Any) -> Tensor:
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            inputs["logits_to_keep"] = 1
        read = self.model(**inputs, past_key_values=self.cache, use_cache=True, return_dict=True)
        self.cache = read.past_key_values
        logits: Tensor = read.logits[:, -1]
        return logits


def decoder_start(model: Any) -> int:
    """Return the id that the decoder of an encoder-decoder begins with."""
    for source in (model.config, model.generation_config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if getattr(source, name, None) is not None:
                return int(getattr(source, name))
    raise CapfiltError(
        "model.language.config names no decoder_start_token_id",
        fix="name it in the config.json of the language model's folder; T5's is 0, its padding",
    )
