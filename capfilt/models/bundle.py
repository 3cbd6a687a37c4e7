"""A bundle of BLIP's model (MED): packed, and read again; see `cards` for the files.

One of a joint model holds those of its captioner and its filter.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from capfilt.canonical import canonical_json, digest_of
from capfilt.errors import CapfiltError
from capfilt.models.bundle_files import (
    COPY_AGAIN,
    BundleOf,
    PackedOf,
    check_files,
    json_bytes,
    pretty_json,
    read_tensors,
    sha256,
)
from capfilt.models.cards import (
    CARD_FILE,
    OWN_WEIGHTS_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    Card,
    Conventions,
    Kind,
    Objective,
    Origin,
    read_calibration,
    read_card,
)
from capfilt.models.checkpoints.configs import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    blip_config,
    is_blip,
    preprocessor_config,
)
from capfilt.models.checkpoints.names import (
    TEMPERATURE,
    Half,
    Naming,
    halves,
    joined,
    names_of,
    objectives_of,
)
from capfilt.models.med import MED
from capfilt.models.vocabulary import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from capfilt.settings import Model


Bundle: TypeAlias = BundleOf[MED, Vocabulary]
"""A bundle of BLIP's model."""


Packed: TypeAlias = PackedOf[MED, Vocabulary]


def pack(
    path: Path,
    *,
    kind: Kind,
    model: MED,
    settings: Model,
    vocabulary: Vocabulary,
    parent: str | None,
    data: str | None,
    training: dict[str, Any],
    versions: dict[str, str],
    conventions: Conventions | None = None,
    origin: Origin | None = None,
    resized_from_px: int | None = None,
) -> Packed:
    """Make a bundle of a model; its card holds the digests of the weights and of the other files.

    A joint model becomes two bundles in one, its captioner and its filter.
    """
    if kind != "joint" and objectives_of(kind, model.objectives) != model.objectives:
        raise ValueError(f"a {kind} does not serve {', '.join(model.objectives)}")
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    card = Card(
        kind=kind,
        objectives=model.objectives,
        weights="",
        model=settings,
        vocabulary=len(vocabulary),
        vocabulary_digest=vocabulary.digest,
        first_id=vocabulary.dec,
        conventions=conventions or Conventions(),
        origin=origin,
        image_encoder=_image_encoder_digest(weights, settings),
        resized_from_px=resized_from_px,
        parent=parent,
        data=data,
        training=training,
        versions=versions,
    )
    pack_half = _Halves(weights, vocabulary)
    if kind != "joint":
        card, files = pack_half(kind, card)
        return Packed(Bundle(path, card, model, vocabulary), files)
    files = _training_files(weights)
    named = {name: sha256(data) for name, data in files.items()}
    digests = dict(named)
    for half in halves(kind, model.objectives):
        served = objectives_of(half, model.objectives)
        part, own = pack_half(half, card.model_copy(update={"kind": half, "objectives": served}))
        own[CARD_FILE] = json_bytes(part.model_dump(mode="json"))
        digests[half] = part.weights
        named[f"{half}/{CARD_FILE}"] = sha256(own[CARD_FILE])
        files |= {f"{half}/{name}": data for name, data in own.items()}
    card = card.model_copy(update={"weights": digest_of(digests), "files": named})
    return Packed(Bundle(path, card, model, vocabulary), files)


@dataclass(frozen=True)
class _Halves:
    """Makes the files of a captioner or of a filter out of a model that has both or one."""

    weights: Mapping[str, Tensor]
    vocabulary: Vocabulary

    def __call__(self, half: Half, card: Card) -> tuple[Card, dict[str, bytes]]:
        """Return the card with its digests, and the files that it names."""
        from safetensors.torch import save

        own = {name: self.weights[name] for name in names_of(half, self.weights, card.objectives)}
        # transformers writes this remark too, and older versions of it refuse a file without.
        weights = save(_naming(half, card.med).write(own), {"format": "pt"})
        files = self.vocabulary.files()
        if half == "filter":
            files |= _training_files(self.weights)
        if is_transformers(card):
            dtype = str(self.weights["text.words.weight"].dtype).removeprefix("torch.")
            files[CONFIG_FILE] = pretty_json(blip_config(card.med, self.vocabulary, half, dtype))
            files[PREPROCESSOR_FILE] = pretty_json(preprocessor_config(card.med.images))
        named = {name: sha256(data) for name, data in sorted(files.items())}
        card = card.model_copy(update={"weights": sha256(weights), "files": named})
        return card, {_weights_file(card): weights, **files}


def is_transformers(card: Card) -> bool:
    """Return whether transformers can load this captioner or filter: BLIP's image encoder, all heads."""
    return is_blip(card.med) and card.objectives in (("lm",), ("itc", "itm"))


def _weights_file(card: Card) -> str:
    return WEIGHTS_FILE if is_transformers(card) else OWN_WEIGHTS_FILE


def _naming(half: Half, settings: Model) -> Naming:
    return Naming(half, "transformers" if is_blip(settings) else "timm")


def _training_files(weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return what serves training alone, where there is any: the temperature of ITC."""
    from safetensors.torch import save

    return {TRAINING_FILE: save({TEMPERATURE: weights[TEMPERATURE]})} if TEMPERATURE in weights else {}


def _image_encoder_digest(weights: Mapping[str, Tensor], settings: Model) -> str:
    """Return the digest of all that the states of a picture depend on."""
    digest = hashlib.sha256(
        canonical_json(
            [settings.vision.model_dump(mode="json"), settings.images.model_dump(mode="json")]
        ).encode()
    )
    for name in sorted(name for name in weights if name.startswith("image.")):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_bundle(path: Path, *, needs: Objective | None = None) -> Bundle:
    """Read a bundle; one without the objective that is needed of it is refused.

    So is one with a file that is not the one its card describes, by that file's name. A joint model is
    read whole, whatever is needed of it.
    """
    card = read_card(path)
    if needs is not None and needs not in card.objectives:
        role = "write captions" if needs == "lm" else "score pairs"
        raise CapfiltError(
            f"{path} cannot {role}: it is a {card.kind} trained for {', '.join(card.objectives)}",
            fix=f"give a bundle trained for {needs}",
        )
    expected = empty(card.med, card.vocabulary, card.objectives).state_dict()
    if card.kind == "joint":
        weights, vocabulary = _read_joint(path, card, expected)
    else:
        weights, vocabulary = _read_half(card.kind, path, card, expected)
    model = built(card.med, len(vocabulary), card.objectives, weights)
    return Bundle(path, card, model, vocabulary, read_calibration(path))


def _read_joint(
    path: Path, card: Card, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Vocabulary]:
    """Read both halves of a joint model, which must agree on what they share, and its temperature."""
    check_files(path, card.files)
    parts, vocabularies = {}, {}
    for half in halves(card.kind, card.objectives):
        part = read_card(path / half)
        shared = ("model", "vocabulary", "vocabulary_digest", "first_id")
        if part.kind != half or any(getattr(part, name) != getattr(card, name) for name in shared):
            raise CapfiltError(f"{path / half} is no half of {path}: their cards differ", fix=COPY_AGAIN)
        parts[half], vocabularies[half] = _read_half(half, path / half, part, expected)
    weights = joined(parts, str(path))
    if TEMPERATURE in expected:
        weights |= read_tensors(path / TRAINING_FILE, {TEMPERATURE: expected[TEMPERATURE]})
    return weights, vocabularies.popitem()[1]


def _read_half(
    half: Half, path: Path, card: Card, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Vocabulary]:
    """Read the weights and the vocabulary of a captioner or a filter.

    `expected` are the weights of the model, of which it has a half, without their values.
    """
    check_files(path, {_weights_file(card): card.weights, **card.files})
    vocabulary = load_vocabulary(path, entries=card.vocabulary, dec=card.first_id)
    if vocabulary.digest != card.vocabulary_digest:
        raise CapfiltError(
            f"{path}: its vocabulary is not the one that {CARD_FILE} describes", fix=COPY_AGAIN
        )
    naming, names = _naming(half, card.med), names_of(half, expected, card.objectives)
    theirs = read_tensors(path / _weights_file(card), naming.write({name: expected[name] for name in names}))
    weights = naming.read(theirs, names)
    if TEMPERATURE in expected and half == "filter":
        weights |= read_tensors(path / TRAINING_FILE, {TEMPERATURE: expected[TEMPERATURE]})
    return weights, vocabulary


def empty(settings: Model, size: int, objectives: Iterable[Objective]) -> MED:
    """Return a model without values, which costs neither time nor memory."""
    with torch.device("meta"):
        return MED(settings, size, objectives)


def built(settings: Model, size: int, objectives: Iterable[Objective], weights: Mapping[str, Tensor]) -> MED:
    """Return a model of these weights, every one it has and no other, in fp32.

    A structure of ours is made without values first: to draw a large model's would take seconds.
    """
    objectives = tuple(objectives)
    # Copies: what is read lies in the file, at any address, and is gone if that is cut off meanwhile.
    full = {
        name: one.to(torch.float32 if one.is_floating_point() else one.dtype, copy=True)
        for name, one in weights.items()
    }
    if settings.vision.timm is None:
        model = empty(settings, size, objectives)
        model.load_state_dict(full, assign=True)
        if not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            return model
    model = MED(settings, size, objectives)
    model.load_state_dict(full)
    return model
