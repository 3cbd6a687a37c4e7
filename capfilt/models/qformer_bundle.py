"""A bundle of a model with a Q-Former: stage 1 as a filter or joint model, stage 2 as a captioner.

Every weight has the name that transformers gives it, so that the file of weights is read there as it stands;
what transformers lacks (the temperature, the language head of stage 1) is in the file for training.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from capfilt.canonical import canonical_json
from capfilt.errors import CapfiltError
from capfilt.models.bundle_files import (
    COPY_AGAIN,
    BundleOf,
    PackedOf,
    check_files,
    digest_of_file,
    pretty_json,
    read_tensors,
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
    PROCESSOR_FILE,
    preprocessor_config,
)
from capfilt.models.checkpoints.qformer_configs import (
    is_of_the_family,
    processor_config,
    prompted_config,
    retrieval_config,
)
from capfilt.models.language_vocabulary import LanguageVocabulary, load_language_vocabulary
from capfilt.models.prompted import SoftPrompted
from capfilt.models.qformer import QFormer
from capfilt.models.tensor_files import TensorFile, in_halves
from capfilt.models.vocabulary import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from capfilt.settings import Blip2

QFormerBundle: TypeAlias = BundleOf[QFormer, Vocabulary]
"""Stage 1 of BLIP-2: a filter, or the model that captioner and filter start from."""
PromptedBundle: TypeAlias = BundleOf[SoftPrompted, LanguageVocabulary]
"""Stage 2 of BLIP-2, or InstructBLIP: a captioner."""
READER_FOLDER = "qformer_tokenizer"
"""Where InstructBLIP has what its Q-Former reads instructions with (transformers' name)."""
CONVENTIONS = Conventions(match_token="cls")
"""Texts that are matched begin with [CLS]: BLIP-2 has no [ENC]."""
_FOR_TRAINING = ("word_head.", "temperature")
"""Parts that serve training alone, and that transformers' class lacks."""
_FROZEN = ("vision_model.embeddings.", "vision_model.encoder.", "language_model.")
"""Parts that nothing here trains; those that were published in halves are kept so."""


def pack_qformer(
    path: Path,
    *,
    kind: Kind,
    model: QFormer | SoftPrompted,
    settings: Blip2,
    vocabulary: Vocabulary | LanguageVocabulary,
    reader: Vocabulary | None = None,
    parent: str | None,
    data: str | None,
    training: dict[str, Any],
    versions: dict[str, str],
    conventions: Conventions | None = None,
    origin: Origin | None = None,
) -> PackedOf[Any, Any]:
    """Make a bundle of a model; its card holds the digests of the weights and of the other files.

    `vocabulary` is the Q-Former's in stage 1 and the language model's for a captioner, for which `reader` is
    what InstructBLIP's Q-Former reads.
    """
    weights = _without_repeats(model)
    own = {name: tensor for name, tensor in weights.items() if name.startswith(_FOR_TRAINING)}
    main = {
        name: in_halves(tensor) if name.startswith(_FROZEN) else tensor
        for name, tensor in weights.items()
        if name not in own
    }
    # transformers writes this remark too, and older versions of it refuse a file without.
    file_of_weights = TensorFile(main, {"format": "pt"})
    files: dict[str, bytes | TensorFile] = dict(vocabulary.files())
    if own:
        files[TRAINING_FILE] = TensorFile(own)
    if reader is not None:
        files |= {f"{READER_FOLDER}/{name}": content for name, content in reader.files().items()}
    objectives: tuple[Objective, ...] = model.objectives
    card = Card(
        kind=kind,
        objectives=objectives,
        weights=file_of_weights.sha256(),
        model=settings,
        vocabulary=len(reader or vocabulary),
        vocabulary_digest=(reader or vocabulary).digest,
        first_id=vocabulary.dec if isinstance(vocabulary, Vocabulary) else None,
        conventions=conventions or CONVENTIONS,
        origin=origin,
        image_encoder=_image_encoder_digest(model, settings),
        parent=parent,
        data=data,
        training=training,
        versions=versions,
    )
    if is_transformers(card):
        files |= _for_transformers(model, settings, vocabulary, reader)
    card = card.model_copy(
        update={"files": {name: digest_of_file(one) for name, one in sorted(files.items())}}
    )
    bundle = BundleOf[Any, Any](path, card, model, vocabulary, reader=reader)
    return PackedOf(bundle, {_weights_file(card): file_of_weights, **files})


def _for_transformers(
    model: QFormer | SoftPrompted,
    settings: Blip2,
    vocabulary: Vocabulary | LanguageVocabulary,
    reader: Vocabulary | None,
) -> dict[str, bytes]:
    """Return what transformers needs to know of a model, and of how pictures and texts are given to it."""
    width = model.vision_model.width
    values = {PREPROCESSOR_FILE: preprocessor_config(settings.images)}
    if isinstance(vocabulary, LanguageVocabulary):
        # A Q-Former that reads nothing has a size of vocabulary there and no embeddings.
        words = len(reader) if reader is not None else settings.qformer.vocabulary
        places = {"image_token": vocabulary.image_token, "end": vocabulary.sep}
        values[CONFIG_FILE] = prompted_config(settings, words, width, **places)
        values[PROCESSOR_FILE] = processor_config(settings)
    else:
        values[CONFIG_FILE] = retrieval_config(settings, len(vocabulary), width)
    return {name: pretty_json(value) for name, value in values.items()}


def is_transformers(card: Card) -> bool:
    """Return whether transformers can load this bundle: the family's own image encoder, all heads."""
    if not is_of_the_family(card.blip2):
        return False
    return card.kind == "captioner" or {"itc", "itm"} <= set(card.objectives)


def load_qformer_bundle(path: Path, *, needs: Objective | None = None) -> QFormerBundle | PromptedBundle:
    """Read a bundle of a model with a Q-Former; one without the objective that is needed is refused.

    So is one with a file that is not the one its card describes, by that file's name.
    """
    card = read_card(path)
    settings = card.blip2
    if needs is not None and needs not in card.objectives:
        role = "write captions" if needs == "lm" else "score pairs"
        raise CapfiltError(
            f"{path} cannot {role}: it is a {card.kind} trained for {', '.join(card.objectives)}",
            fix=f"give a bundle trained for {needs}",
        )
    check_files(path, {_weights_file(card): card.weights, **card.files})
    calibration = read_calibration(path)
    if card.kind == "captioner":
        words = load_language_vocabulary(path, settings.language)
        reader = None
        if (path / READER_FOLDER).is_dir():
            reader = _vocabulary(path / READER_FOLDER, card)
        captioner = SoftPrompted(settings, card.vocabulary if reader is not None else None)
        _fill(captioner, path, card)
        return BundleOf(path, card, captioner, words, calibration, reader)
    vocabulary = _vocabulary(path, card)
    model = QFormer(settings, card.vocabulary, card.objectives)
    _fill(model, path, card)
    return BundleOf(path, card, model, vocabulary, calibration)


def adopt(model: QFormer | SoftPrompted, weights: Mapping[str, Tensor]) -> list[str]:
    """Take over every weight that is known by its name; returns the names that are left fresh.

    Names of the two families are read as one another's: InstructBLIP has its words inside the Q-Former. A
    weight of another shape is refused: to leave it fresh would look like a start from what was learnt.
    """
    theirs = {**weights, **{_renamed(name): tensor for name, tensor in weights.items()}}
    lacking = []
    for name, tensor in model.state_dict().items():
        source = theirs.get(name)
        if source is None:
            lacking.append(name)
        elif source.shape != tensor.shape:
            raise CapfiltError(
                f"the model that is started from has other sizes: {name} is {tuple(source.shape)} there and "
                f"{tuple(tensor.shape)} here",
                fix="start from a model that is built alike, or build this one like it",
            )
        else:
            with torch.no_grad():
                tensor.copy_(source)
    return lacking


def _renamed(name: str) -> str:
    """Return the name of the same weight in the other family."""
    ours, theirs = (
        ("embeddings.", "qformer.layernorm."),
        ("qformer.embeddings.", "qformer.embeddings.layernorm."),
    )
    if name.startswith(theirs[1]):
        return name.replace(theirs[1], ours[1], 1)
    if name.startswith(theirs[0]):
        return name.replace(theirs[0], ours[0], 1)
    if name.startswith(ours[1]):
        return name.replace(ours[1], theirs[1], 1)
    return name.replace(ours[0], theirs[0], 1) if name.startswith(ours[0]) else name


def _weights_file(card: Card) -> str:
    return WEIGHTS_FILE if is_transformers(card) else OWN_WEIGHTS_FILE


def _vocabulary(folder: Path, card: Card) -> Vocabulary:
    vocabulary = load_vocabulary(folder, entries=card.vocabulary, dec=card.first_id)
    if vocabulary.digest != card.vocabulary_digest:
        raise CapfiltError(
            f"{folder}: its vocabulary is not the one that {CARD_FILE} describes", fix=COPY_AGAIN
        )
    return vocabulary


def _without_repeats(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights, each tensor once, under the first of its names: a file cannot hold it twice."""
    seen: set[int] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            kept[name] = tensor.detach().cpu().contiguous()
    return kept


def _fill(model: nn.Module, path: Path, card: Card) -> None:
    """Give a model the weights of its files: every one it has and no other."""
    expected = _without_repeats(model)
    own = {name: tensor for name, tensor in expected.items() if name.startswith(_FOR_TRAINING)}
    main = {name: tensor for name, tensor in expected.items() if name not in own}
    weights = read_tensors(path / _weights_file(card), main)
    if own:
        weights |= read_tensors(path / TRAINING_FILE, own)
    load_weights(model, weights)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights by name into a model; a tensor that it has under several names is given once."""
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in weights:
                tensor.copy_(weights[name])


def _image_encoder_digest(model: QFormer | SoftPrompted, settings: Blip2) -> str:
    """Return the digest of all that the states of the frozen image encoder, before its norm, depend on."""
    frozen = {"vision", "vision_config", "images"}
    facts = settings.model_dump(mode="json", include=frozen)
    digest = hashlib.sha256(canonical_json(facts).encode())
    for name, tensor in sorted(model.vision_model.state_dict().items()):
        if not name.startswith("post_layernorm."):
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
