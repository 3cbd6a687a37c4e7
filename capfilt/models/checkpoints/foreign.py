"""Checkpoints that capfilt did not write, as bundles: transformers folders, and .pth of BLIP or LAVIS.

Conventions go by origin: a transformers folder is read as transformers reads it, a .pth as the released code
does, and the card of the bundle says so. Every weight is used, or named as what serves something else, or
refused: a checkpoint that is nearly right would give numbers that are nearly right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import ValidationError

from capfilt.errors import CapfiltError
from capfilt.models.bundle import Packed, built, empty, load_bundle, pack
from capfilt.models.cards import CARD_FILE, Conventions, Objective, Origin, read_card
from capfilt.models.checkpoints.configs import (
    CONFIG_FILE,
    model_of,
    model_of_shapes,
    preprocessor_of,
    read_json,
    with_defaults,
)
from capfilt.models.checkpoints.hub import Found, find_checkpoint, find_vocabulary
from capfilt.models.checkpoints.names import (
    FRESH_HEADS,
    PART_OF,
    TEMPERATURE,
    Half,
    Naming,
    check_fit,
    few,
    halves,
    joined,
    left_out,
    names_of,
)
from capfilt.models.checkpoints.resizing import resized, with_positions, with_side
from capfilt.models.checkpoints.weight_files import WeightFiles, read_folder, read_pth
from capfilt.models.vocabulary import Vocabulary, load_vocabulary
from capfilt.models.wordpiece import TOKENIZER_FILE, VOCABULARY_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from capfilt.settings import Model

Role = Literal["captioner", "filter", "init"]
"""What a checkpoint is given for; to start a training from, it may be anything that BLIP has."""

AS_TRANSFORMERS = Conventions(
    match_token="cls", clean_up="none", prompt="", min_tokens=0, max_tokens=20, length_counts="generated"
)
"""BlipForConditionalGeneration.generate asks for 20 new tokens unless it is told otherwise; what a folder's
generation_config.json says does not reach its text decoder."""
AS_RELEASED = Conventions(
    match_token="enc",
    clean_up="blip",
    prompt="a picture of ",
    min_tokens=1,
    max_tokens=16,
    length_counts="whole",
)
"""The settings for COCO: 5 to 20 ids there, [DEC] and the three words of the prompt counted."""
_SEED = 0
_HEAD_WIDTH = 64
"""Of every released size."""


def import_checkpoint(
    source: str | Path,
    path: Path,
    *,
    role: Role,
    vocabulary: str | Path = "bert-base-uncased",
    size_px: int | None = None,
    heads: tuple[int, int] | None = None,
) -> Packed:
    """Read a checkpoint as the bundle that `write()` puts at `path`; its card says where it comes from.

    `source` is a bundle, a transformers folder, a hub id (NAME/MODEL or NAME/MODEL@REVISION) or a .pth.
    `vocabulary`, a folder or a hub id, is read where the checkpoint has none. With `size_px` the position
    embeddings are interpolated for pictures of that side. `heads` (image encoder, text) are those of a .pth
    whose widths are no multiples of 64. With the role init a filter may lack heads; they are drawn anew and
    named in `card.origin.fresh`.

    Raises CapfiltError for what is not BLIP or cannot do what the role asks, by what it is; for a weight
    that is missing, that nobody knows or that has another shape, by its name; and for damaged files.
    """
    found = find_checkpoint(source)
    if heads is not None and found.path.is_dir():
        raise CapfiltError(
            f"{found.source} says itself how many attention heads it has", fix="leave out --heads"
        )
    if (found.path / CARD_FILE).exists():
        return _own(found, path, role, size_px)
    theirs = _transformers(found, vocabulary) if found.path.is_dir() else _released(found, vocabulary, heads)
    wanted = _wanted(role, theirs.halves, theirs.where)
    weights, known, fresh = theirs.weights(wanted, may_lack_heads=role == "init")
    settings, own_px = theirs.model, theirs.model.images.size_px
    is_resized = size_px is not None and size_px != own_px
    if size_px is not None and is_resized:
        settings = with_side(theirs.model, size_px)
        weights = with_positions(weights, theirs.model, settings)
    return pack(
        path,
        kind=wanted[0] if len(wanted) == 1 else "joint",
        model=built(settings, len(theirs.vocabulary), _objectives(wanted), weights),
        settings=settings,
        vocabulary=theirs.vocabulary,
        parent=None,
        data=None,
        training={},
        versions={},
        conventions=theirs.conventions,
        origin=Origin(
            kind=theirs.origin,
            source=found.source,
            revision=found.revision,
            sha256=theirs.files.sha256,
            left_out=known,
            fresh=fresh,
        ),
        resized_from_px=own_px if is_resized else None,
    )


def _own(found: Found, path: Path, role: Role, size_px: int | None) -> Packed:
    """Return a bundle of ours as it is, or for pictures of another side."""
    card = read_card(found.path)
    if card.kind == "joint" and role != "init":
        found = replace(found, path=found.path / role)  # a half is a whole bundle
    bundle = load_bundle(found.path)
    card = bundle.card
    _wanted(role, halves("joint", card.objectives), found.source)
    if size_px is not None and size_px != card.med.images.size_px:
        return resized(bundle, path, size_px)
    return pack(
        path,
        kind=card.kind,
        model=bundle.model,
        settings=card.med,
        vocabulary=bundle.vocabulary,
        parent=card.parent,
        data=card.data,
        training=card.training,
        versions=card.versions,
        conventions=card.conventions,
        origin=card.origin,
        resized_from_px=card.resized_from_px,
    )


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint of theirs, read and understood."""

    where: str
    origin: Literal["transformers", "pth"]
    files: WeightFiles
    halves: tuple[Half, ...]
    """What it can do."""
    model: Model
    vocabulary: Vocabulary
    conventions: Conventions

    def weights(
        self, wanted: tuple[Half, ...], *, may_lack_heads: bool
    ) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
        """Return our weights of the wanted halves, what was left out, and the names drawn anew.

        Every weight of theirs is looked at, those of a half that is not wanted too.
        """
        theirs = self.files.tensors
        expected = empty(self.model, len(self.vocabulary), _objectives(self.halves)).state_dict()
        names = {half: names_of(half, expected, _objectives([half])) for half in self.halves}
        needed = {
            name: tensor
            for half in self.halves
            for name, tensor in self._naming(half).write({one: expected[one] for one in names[half]}).items()
        }
        lacking = [name for name in needed if name not in theirs and name.startswith(FRESH_HEADS)]
        lacking = lacking if may_lack_heads else []
        known, unknown = left_out(theirs, [name for name in theirs if name not in needed], self.where)
        check_fit(
            {name: tensor for name, tensor in needed.items() if name not in lacking},
            {name: tensor for name, tensor in theirs.items() if name in needed or name in unknown},
            self.where,
            "give a checkpoint of BLIP as it was written; capfilt reads no other model",
        )
        read = {half: self._naming(half).read(theirs, names[half]) for half in self.halves}
        weights = joined(read, self.where)
        fresh = tuple(name for name in names.get("filter", ()) if name not in weights)
        weights |= _drawn({name: expected[name] for name in fresh})
        for half in set(self.halves) - set(wanted):
            known |= PART_OF[half]
        kept = empty(self.model, len(self.vocabulary), _objectives(wanted)).state_dict()
        if TEMPERATURE in kept:
            weights[TEMPERATURE] = theirs.get("temp", torch.tensor(self.model.temperature)).reshape(())
            known.pop("temp", None)
        return {name: weights[name] for name in kept}, known, fresh

    def _naming(self, half: Half) -> Naming:
        return Naming(half, "transformers" if self.origin == "transformers" else "released")


def _transformers(found: Found, vocabulary: str | Path) -> _Checkpoint:
    """Read a transformers folder."""
    folder, where = found.path, found.source
    if not (folder / CONFIG_FILE).is_file():
        raise CapfiltError(
            f"{where} is no checkpoint: it holds neither {CARD_FILE} nor {CONFIG_FILE}",
            fix="give a bundle, a transformers folder of BLIP, a hub id or a .pth",
        )
    config = read_json(folder / CONFIG_FILE)
    if config.get("model_type") != "blip":
        raise CapfiltError(
            f"{where} holds a model of the type {config.get('model_type')}, not BLIP", fix=_WHAT_IS_READ
        )
    files = read_folder(folder)
    has = _recognised(files.tensors, where)
    text, _ = with_defaults(config)
    own = any((folder / name).is_file() for name in (TOKENIZER_FILE, VOCABULARY_FILE))
    try:
        place = folder if own else find_vocabulary(vocabulary).path
    except CapfiltError as error:
        raise CapfiltError(
            f"{where} has no {TOKENIZER_FILE} and no {VOCABULARY_FILE}, and {error.what}",
            fix="say where its vocabulary is: --vocabulary FOLDER, in a run --set bundles.vocabulary=FOLDER",
        ) from error
    words = load_vocabulary(
        place,
        entries=text["vocab_size"],
        dec=text["bos_token_id"] if has == ("captioner",) else None,
    )
    if has == ("captioner",) and text["sep_token_id"] != words.sep:
        raise CapfiltError(
            f"{where}: captions end with id {text['sep_token_id']}; its tokenizer has [SEP] at {words.sep}",
            fix="give the checkpoint the tokenizer it was trained with",
        )
    return _Checkpoint(
        where,
        "transformers",
        files,
        has,
        model_of(config, preprocessor_of(folder), folder / CONFIG_FILE),
        words,
        AS_TRANSFORMERS,
    )


def _released(found: Found, vocabulary: str | Path, heads: tuple[int, int] | None) -> _Checkpoint:
    """Read a .pth of BLIP's released code or of LAVIS."""
    where = found.source
    files = read_pth(found.path)
    has = _recognised(files.tensors, where)
    shapes = {name: tuple(tensor.shape) for name, tensor in files.tensors.items()}
    text = "text_decoder.bert." if has == ("captioner",) else "text_encoder."
    try:
        model = model_of_shapes(shapes, text, heads or _usual_heads(shapes, text, where))
    except KeyError as error:
        raise CapfiltError(f"{where} lacks {error.args[0]}, which BLIP has", fix=_WHAT_IS_READ) from error
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        fix = f"give other --heads than {heads[0]},{heads[1]}" if heads is not None else _WHAT_IS_READ
        raise CapfiltError(f"{where} is built as no BLIP is: {what}", fix=fix) from error
    except (IndexError, ValueError) as error:
        raise CapfiltError(f"{where} is built as no BLIP is: {error}", fix=_WHAT_IS_READ) from error
    words = load_vocabulary(find_vocabulary(vocabulary).path, entries=model.text.vocabulary)
    return _Checkpoint(where, "pth", files, has, model, words, AS_RELEASED)


def _usual_heads(shapes: Mapping[str, tuple[int, ...]], text: str, where: str) -> tuple[int, int]:
    """Return the heads of the released sizes: 64 wide each."""
    widths = shapes["visual_encoder.cls_token"][-1], shapes[f"{text}embeddings.LayerNorm.weight"][-1]
    if any(width % _HEAD_WIDTH for width in widths):
        raise CapfiltError(
            f"{where} is {widths[0]} (image) and {widths[1]} (text) wide, and nothing in it says how many "
            "attention heads share that",
            fix="write it as a bundle first, with the numbers of heads of its image encoder and of its text: "
            "capfilt models convert FILE --heads V,T --out BUNDLE",
        )
    return widths[0] // _HEAD_WIDTH, widths[1] // _HEAD_WIDTH


_WHAT_IS_READ = (
    "give a captioner (BLIP_Decoder, BlipForConditionalGeneration), a filter (BLIP_Retrieval, BLIP_ITM, "
    "BlipForImageTextRetrieval) or a pre-trained model (BLIP_Pretrain)"
)


def _recognised(names: Iterable[str], where: str) -> tuple[Half, ...]:
    """Return what a checkpoint can do, by the names of its parts; another model is refused as what it is."""
    parts = {name.partition(".")[0] for name in names}
    writes, reads = "text_decoder" in parts, "text_encoder" in parts
    is_transformers = "vision_model" in parts
    other = None
    if {"Qformer", "qformer", "query_tokens"} & parts:
        other = "BLIP-2 or InstructBLIP"
    elif "cls_head" in parts:
        other = "a classifier of BLIP (such as BLIP_NLVR)"
    elif {"text_model", "visual_projection"} & parts:
        other = "a BlipModel, whose text part is another one"
    elif writes and reads and (is_transformers or not {"itm_head", "vision_proj"} & parts):
        other = "a model that answers questions (BLIP_VQA, BlipForQuestionAnswering)"
    elif not (writes or reads) or not {"vision_model", "visual_encoder"} & parts:
        other = f"no BLIP: its parts are {few(sorted(parts), 5)}"
    if other is not None:
        raise CapfiltError(f"{where} holds {other}", fix=_WHAT_IS_READ)
    captioner: tuple[Half, ...] = ("captioner",) if writes else ()
    return (*captioner, "filter") if reads else captioner


def _wanted(role: Role, has: tuple[Half, ...], where: str) -> tuple[Half, ...]:
    """Return the halves that a role asks for; one that is not there is refused."""
    if role == "init":
        return has
    if role not in has:
        raise CapfiltError(
            f"{where} is a {has[0]} and cannot "
            + ("write captions" if role == "captioner" else "score pairs"),
            fix=f"give a {role}, or a pre-trained model",
        )
    return (role,)


def _objectives(parts: Iterable[Half]) -> tuple[Objective, ...]:
    served: dict[Half, tuple[Objective, ...]] = {"filter": ("itc", "itm"), "captioner": ("lm",)}
    return tuple(one for half in served if half in set(parts) for one in served[half])


def _drawn(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return fresh heads, the same every time: N(0, 0.02^2), no biases (BERT)."""
    generator = torch.Generator().manual_seed(_SEED)
    return {
        name: torch.zeros(one.shape)
        if name.endswith("bias")
        else torch.randn(one.shape, generator=generator) * 0.02
        for name, one in sorted(expected.items())
    }
