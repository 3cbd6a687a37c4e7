"""A bundle in memory and on disk: a model, its vocabulary and its card; see `cards` for the files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json
from capfilt.errors import CapfiltError
from capfilt.files import whole_folder
from capfilt.models.cards import (
    CALIBRATION_FILE,
    CARD_FILE,
    METRICS_FILE,
    WEIGHTS_FILE,
    Card,
    Kind,
    Objective,
    read_calibration,
    read_card,
)
from capfilt.models.med import MED
from capfilt.models.vocabulary import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from capfilt.settings import Model


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory."""

    path: Path
    card: Card
    model: MED
    vocabulary: Vocabulary
    calibration: dict[str, Any] | None = None
    """What calibration.json holds; None for a filter that nobody calibrated."""


@dataclass(frozen=True)
class Packed:
    """A bundle that is not written yet: its card needs the weights, its calibration needs the card."""

    bundle: Bundle
    weights: bytes

    def write(
        self, calibration: dict[str, Any] | None = None, metrics: list[dict[str, Any]] | None = None
    ) -> None:
        """Write the bundle, all or nothing, with a filter's calibration and the training's rows."""
        card = self.bundle.card
        with whole_folder(self.bundle.path) as folder:
            (folder / WEIGHTS_FILE).write_bytes(self.weights)
            self.bundle.vocabulary.save(folder)
            _write_json(folder / CARD_FILE, card.model_dump(mode="json"))
            if calibration is not None:
                _write_json(folder / CALIBRATION_FILE, calibration)
            if metrics is not None:
                _write_json(folder / METRICS_FILE, metrics)


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
) -> Packed:
    """Make a bundle of a model; its card holds the digest of the weights."""
    from safetensors.torch import save

    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    card = Card(
        kind=kind,
        objectives=model.objectives,
        weights=hashlib.sha256(weights).hexdigest(),
        model=settings,
        vocabulary=len(vocabulary),
        parent=parent,
        data=data,
        training=training,
        versions=versions,
    )
    return Packed(Bundle(path, card, model, vocabulary), weights)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(canonical_json(value) + "\n", encoding="utf-8")


def load_bundle(path: Path, *, needs: Objective | None = None) -> Bundle:
    """Read a bundle; one without the objective that is needed of it is refused."""
    card = read_card(path)
    if needs is not None and needs not in card.objectives:
        role = "write captions" if needs == "lm" else "score pairs"
        raise CapfiltError(
            f"{path} cannot {role}: it is a {card.kind} trained for {', '.join(card.objectives)}",
            fix=f"give a bundle trained for {needs}",
        )
    vocabulary = load_vocabulary(path)
    if len(vocabulary) != card.vocabulary:
        raise CapfiltError(
            f"{path}: its vocabulary has {len(vocabulary)} entries where {CARD_FILE} says {card.vocabulary}",
            fix="give a bundle as capfilt wrote it, with its own tokenizer",
        )
    model = MED(card.model, len(vocabulary), card.objectives)
    weights = read_weights(path, card)
    own = model.state_dict()
    missing = sorted(set(own) - set(weights))
    surplus = sorted(set(weights) - set(own))
    misshapen = sorted(name for name in set(own) & set(weights) if own[name].shape != weights[name].shape)
    if missing or surplus or misshapen:
        raise CapfiltError(
            f"{path / WEIGHTS_FILE} does not fit its card: missing {missing[:3]}, surplus {surplus[:3]}, "
            f"of another shape {misshapen[:3]}",
            fix="give a bundle as capfilt wrote it",
        )
    model.load_state_dict(weights)
    return Bundle(path, card, model, vocabulary, read_calibration(path))


def read_weights(path: Path, card: Card) -> dict[str, Tensor]:
    """Read a bundle's weights; other bytes than the card's digest names are refused."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    file = path / WEIGHTS_FILE
    try:
        data_bytes = file.read_bytes()
        weights: dict[str, Tensor] = load(data_bytes)
    except (OSError, SafetensorError) as error:
        raise CapfiltError(f"{file} cannot be read: {error}", fix="copy the bundle again, whole") from error
    if hashlib.sha256(data_bytes).hexdigest() != card.weights:
        raise CapfiltError(
            f"{file} is not the file that {CARD_FILE} describes: its digest differs",
            fix="copy the bundle again, whole; a bundle's weights are never changed in place",
        )
    return weights
