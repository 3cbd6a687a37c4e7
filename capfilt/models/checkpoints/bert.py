"""BERT as the start of the text transformer: a transformers folder's sizes, vocabulary and weights.

BLIP's released code starts its text encoder and its text decoder from bert-base-uncased; then all but
self-attention is shared. So both self-attentions are BERT's, cross-attention is fresh, and so are the words
[DEC] and [ENC], which stand after BERT's. The LM head is BERT's where the folder has one.

One difference: BERT adds an embedding of the sentence, first or second, to every token, and BLIP has none.
The released code drops it; here the first sentence's is added to every position, so that what is read are
BERT's own states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.models.checkpoints.configs import CONFIG_FILE, read_json
from capfilt.models.checkpoints.names import TIED, Naming, check_fit
from capfilt.models.vocabulary import Vocabulary, load_vocabulary
from capfilt.models.wordpiece import EXTRA, read_words
from capfilt.settings import QFormer, Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.med import MED
    from capfilt.models.qformer import QFormer as QFormerModel

T = TypeVar("T", Text, QFormer)

DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 30522,
}
"""What a configuration of BERT means that does not say it."""
_AS_BERT = {"hidden_act": "gelu", "model_type": "bert", "position_embedding_type": "absolute"}
_SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "places": "max_position_embeddings",
    "norm_epsilon": "layer_norm_eps",
}
_NAMES = Naming("captioner", "released")
"""The released code's decoder is transformers' BERT with its LM head, one level below."""
_DECODER = "text_decoder."
_TIED = {copy.removeprefix(_DECODER): name.removeprefix(_DECODER) for copy, name in TIED.items()}
_WORDS, _TYPES = (f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "token_type"))
_PLACES = "bert.embeddings.position_ids"
_WORD_BIAS = "cls.predictions.bias"
_LM_HEAD = "cls.predictions."
_LEVEL = "bert."
_PARTS = ("embeddings.", "encoder.", "pooler.")
_STATES = ("bert.embeddings.", "bert.encoder.")
"""All that states depend on: a weight of these that nobody knows is refused."""
_LEFT_OUT = {
    _PLACES: "places of tokens, counted from 0",
    "bert.pooler.": "pooler, which nothing here reads",
    _LM_HEAD: "LM head, and the model writes nothing",
    "cls.seq_relationship.": "judge of whether one sentence follows another",
}
_ANOTHER_TASK = "serves a task that nothing here has"
_OLD = {".gamma": ".weight", ".beta": ".bias"}
"""How norms were called before."""
_FIX = "give a folder or a hub id of a BERT as transformers writes it, such as bert-base-uncased"


def bert_settings(folder: Path, text: T, called: str = "model.text") -> T:
    """Return the settings of a text side of BERT's sizes; longest text and dropout stay ours.

    `called` is the settings' own name, for advice.

    Raises CapfiltError for a folder without config.json, for another model than BERT, and where our longest
    text has no place in it.
    """
    config, file = _config(folder), folder / CONFIG_FILE
    for name, wanted in _AS_BERT.items():
        if config.get(name, wanted) != wanted:
            raise CapfiltError(f"{file}: {name} is {config[name]!r}, and BERT's is {wanted!r}", fix=_FIX)
    try:
        settled = changed(text, {ours: config[theirs] for ours, theirs in _SIZES.items()})
    except CapfiltError as error:
        raise CapfiltError(f"{file}: {error.what}", fix=_FIX) from error
    if settled.max_tokens > settled.places:
        raise CapfiltError(
            f"{file} has {settled.places} places, and {called}.max_tokens is {text.max_tokens}",
            fix=f"set {called}.max_tokens to {settled.places} at most",
        )
    return settled


def bert_vocabulary(folder: Path) -> Vocabulary:
    """Return BERT's vocabulary with [DEC] and [ENC] after it, as the released code adds them.

    Raises CapfiltError for a tokenizer that cannot be read or that is not this model's by its size.
    """
    found, entries = read_words(folder), _config(folder)["vocab_size"]
    if len(found.words) != entries:
        raise CapfiltError(
            f"{found.file} has {len(found.words)} entries; the model has embeddings for {entries}",
            fix="give the folder the tokenizer that the model was trained with",
        )
    return load_vocabulary(folder)


def start_text(model: MED, theirs: Mapping[str, Tensor], where: str) -> dict[str, str]:
    """Give the text transformer the weights of BERT, and the LM head where there is one.

    `model` has the sizes of `bert_settings` and the words of `bert_vocabulary`. Its cross-attention, its
    other heads, the embeddings of words that BERT lacks and their bias stay as they were drawn. Returns
    what was left out, a pattern of names -> what it is. Raises CapfiltError for weights that are missing or
    of another shape and for any of the embeddings or layers that nobody knows, by name; `where` is the
    folder's name there.
    """
    theirs = _plain(theirs, where)
    has_head = any(name.startswith(_LM_HEAD) for name in theirs)
    own = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if (name.startswith("text.") and ".cross." not in name)
        or (name.startswith("word_head.") and has_head)
    }
    needed = _needed(own, theirs)
    parts = (*_STATES, *((_LM_HEAD,) if "lm" in model.objectives else ()))
    read = {name: one for name, one in theirs.items() if name.startswith(parts) and name != _PLACES}
    check_fit(needed, read, where, _FIX)
    with torch.no_grad():
        for name, tensor in own.items():
            value = torch.cat([read[one] for one in _theirs(name)])
            tensor[: len(value)].copy_(value)
        model.text.positions.weight += read[_TYPES][0].to(model.text.positions.weight.dtype)
    return _left_out(name for name in theirs if name not in read)


def start_qformer(model: QFormerModel, theirs: Mapping[str, Tensor], where: str) -> None:
    """Give a Q-Former the weights of BERT (BLIP-2, section 3.1), and the LM head where there is one.

    Queries and text share self-attention, and both feed-forward parts begin as BERT's (LAVIS).
    Cross-attention, queries and heads stay as they were drawn, and so do words that BERT lacks. `model` has
    the sizes of `bert_settings` and the words of `bert_vocabulary`. Raises CapfiltError for weights that are
    missing or of another shape.
    """
    theirs = _plain(theirs, where)
    has_head = any(name.startswith(_LM_HEAD) for name in theirs)
    own = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if (name.startswith(("embeddings.", "qformer.")) and ".crossattention." not in name)
        or (name.startswith("word_head.") and has_head)
    }
    named = {name: _of_qformer(name) for name in own}
    needed = {named[name]: tensor for name, tensor in own.items()}
    words = len(theirs.get(_WORDS, needed[_WORDS]))
    for name in (_WORDS, _WORD_BIAS):
        if name in needed:
            needed[name] = needed[name][:words]
    check_fit(needed, {name: one for name, one in theirs.items() if name in needed}, where, _FIX)
    with torch.no_grad():
        for name, tensor in own.items():
            value = theirs[named[name]]
            tensor[: len(value)].copy_(value)
        if _TYPES in theirs:
            places = model.embeddings.position_embeddings.weight
            places += theirs[_TYPES][0].to(places.dtype)


def _of_qformer(ours: str) -> str:
    """Return BERT's name for a weight of a Q-Former."""
    if ours.startswith("word_head."):
        return _theirs(ours)[0]
    if ours.startswith("embeddings."):
        return _LEVEL + ours
    if ours.startswith("qformer.layernorm."):
        return ours.replace("qformer.layernorm.", f"{_LEVEL}embeddings.LayerNorm.")
    plain = ours.replace("qformer.", _LEVEL, 1).replace("_query.", ".")
    return plain.replace(".attention.attention.", ".attention.self.")


def _config(folder: Path) -> dict[str, Any]:
    """Return a configuration of BERT in full."""
    if not (folder / CONFIG_FILE).is_file():
        raise CapfiltError(f"{folder} is no folder of BERT: it holds no {CONFIG_FILE}", fix=_FIX)
    return {**DEFAULTS, **read_json(folder / CONFIG_FILE)}


def _theirs(ours: str) -> tuple[str, ...]:
    """Return BERT's names for a weight of ours; it has one self-attention for both of ours."""
    names = _NAMES.theirs(ours.replace(".attention.encoder.", ".attention.decoder."))
    return tuple(name.removeprefix(_DECODER) for name in names)


def _plain(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return BERT's weights by today's full names, what is tied held once."""
    plain = {}
    for name, tensor in weights.items():
        ending = next((old for old in _OLD if name.endswith(old)), "")
        new = name.removesuffix(ending) + _OLD.get(ending, "")
        plain[_LEVEL + new if new.startswith(_PARTS) else new] = tensor
    for copy, name in _TIED.items():
        if copy in plain and not torch.equal(plain.setdefault(name, plain[copy]), plain[copy]):
            raise CapfiltError(
                f"{where}: {copy} differs from {name}, and BLIP has one matrix for both",
                fix="give a BERT whose word embeddings are tied, as the released ones are",
            )
        plain.pop(copy, None)
    return plain


def _needed(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what must be there, by BERT's names, in the shapes it must have."""
    needed: dict[str, Tensor] = {}
    for name, tensor in own.items():
        names = _theirs(name)
        needed.update(zip(names, tensor.chunk(len(names)), strict=True))
    words = needed[_WORDS]
    rows = len(theirs.get(_WORDS, words))
    if len(words) - rows == len(EXTRA):
        for name in (_WORDS, _WORD_BIAS):
            if name in needed:
                needed[name] = needed[name][:rows]
    needed[_TYPES] = words.new_empty(max(1, len(theirs.get(_TYPES, words[:1]))), words.shape[1])
    return needed


def _left_out(names: Iterable[str]) -> dict[str, str]:
    """Return what is left out, another task's weights by the name of its part."""
    left = {}
    for name in names:
        known = next((part for part in _LEFT_OUT if name.startswith(part)), None)
        part = known or f"{name.partition('.')[0]}."
        left[part + ("*" if part.endswith(".") else "")] = _LEFT_OUT.get(part, _ANOTHER_TASK)
    return left
