"""What a training leaves: a bundle whose card holds everything the weights depend on.

So a bundle of the very same training is known and taken as it is, and one of another is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.models.cards import CARD_FILE, Card, Kind, Objective, read_card
from capfilt.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from capfilt.models.bundle import Bundle
    from capfilt.settings import Model, Training
    from capfilt.training.loop import Trainer

SERVES: dict[str, tuple[str, ...]] = {
    "captioner": ("lm",),
    "filter": ("itc", "itm"),
    "joint": ("itc", "itm", "lm"),
}
"""Which objectives' parts a model keeps."""
HEADS = ("image_projection.", "text_projection.", "temperature", "itm_head.", "word_head.")
"""Parts of a model that may start fresh where the model it starts from has another purpose."""


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    weights: str
    """Digest."""
    steps: int
    pairs: int
    held_out: int
    refused: dict[str, int]
    """Samples that could not be used, by reason."""
    is_new: bool
    """False when the bundle was there already."""
    fresh: tuple[str, ...] = ()
    """Parts that the model it started from lacks."""
    apart: int = 0
    """Pictures that are left out since they share a group or a caption with a held-out one."""
    met: dict[str, int] = field(default_factory=dict)
    """How often a streamed picture could not be used when its turn came, by reason; since the last start."""


@dataclass(frozen=True)
class Recipe:
    """What a bundle's card says of its training."""

    kind: Kind
    model: Model
    """How the model is built."""
    facts: dict[str, Any]
    """Everything that the trained weights depend on."""
    data: str
    """Digest of the pairs."""
    pairs: int
    held_out: int
    init: Bundle | None
    fresh: tuple[str, ...]


def objectives_in(training: Training) -> list[Objective]:
    """Return the objectives that some phase of a training has."""
    names: tuple[Objective, ...] = ("itc", "itm", "lm")
    return [name for name in names if any(getattr(phase, name) for phase in training.phases)]


def same_training(path: Path, fingerprint: str) -> Card | None:
    """Return the card of a bundle that came out of this very training, if it is there."""
    if not (path / CARD_FILE).exists():
        return None
    card = read_card(path)
    return card if card.training.get("fingerprint") == fingerprint else None


def fresh_parts(lacking: list[str], init: Bundle, own: Iterable[str]) -> tuple[str, ...]:
    """Return the heads that start fresh, here or since the start model was read; no other part may."""
    from capfilt.models.checkpoints.names import few

    odd = [name for name in lacking if not name.startswith(HEADS)]
    if odd:
        raise CapfiltError(
            f"{init.path} lacks {few(odd)}, which is no head that could start fresh",
            fix="start from a model that looks at pictures as this one does, such as a joint one",
        )
    drawn = init.card.origin.fresh if init.card.origin is not None else ()
    names = [*lacking, *(name for name in drawn if name in set(own))]
    return tuple(dict.fromkeys(name.removesuffix(".weight").removesuffix(".bias") for name in names))


def write_trained(
    out: Path, trainer: Trainer, recipe: Recipe, calibrated: Callable[[Bundle], dict[str, Any] | None]
) -> str:
    """Write the trained model, with what `calibrated` measures of it; returns the digest of its weights."""
    from capfilt.models.bundle import pack
    from capfilt.models.med import MED, adopt

    # What helped the training and does not serve the model's purpose stays behind.
    kept = [name for name in trainer.model.objectives if name in SERVES[recipe.kind]]
    model = MED(recipe.model, len(trainer.vocabulary), kept)
    adopt(model, trainer.model.state_dict())
    init = recipe.init
    packed = pack(
        out,
        kind=recipe.kind,
        model=model,
        settings=recipe.model,
        vocabulary=trainer.vocabulary,
        parent=init.card.weights if init is not None else None,
        data=recipe.data,
        training={
            **recipe.facts,
            "fingerprint": digest_of(recipe.facts),
            "pairs": recipe.pairs,
            "held_out": recipe.held_out,
            "fresh": recipe.fresh,
            "init_training": init.card.training.get("fingerprint") if init is not None else None,
        },
        versions=versions(),
    )
    packed.write(calibrated(packed.bundle), trainer.rows)
    return packed.bundle.card.weights
