"""What a training leaves: a bundle whose card holds everything the weights depend on.

So a bundle of the very same training is known and taken as it is, and one of another is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.models.cards import CARD_FILE, Card, Kind, Objective, read_card
from capfilt.stages.families import pack_trained
from capfilt.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.models.bundle_files import BundleOf
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Blip2, Model, Training
    from capfilt.training.loop import Trainer


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
    model: Model | Blip2
    """How the model is built."""
    facts: dict[str, Any]
    """Everything that the trained weights depend on."""
    data: str
    """Digest of the pairs."""
    pairs: int
    held_out: int
    init: BundleOf[Any, Any] | None
    fresh: tuple[str, ...]
    reader: Vocabulary | None = None
    """What InstructBLIP's Q-Former reads instructions with."""
    instructions: dict[str, Any] = field(default_factory=dict)
    """What was read and held out of data sets of instructions, where it was trained on them."""


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


def write_trained(
    out: Path,
    trainer: Trainer,
    recipe: Recipe,
    calibrated: Callable[[BundleOf[Any, Any]], dict[str, Any] | None],
) -> str:
    """Write the trained model, with what `calibrated` measures of it; returns the digest of its weights."""
    init = recipe.init
    before = init.card.training.get("instructions", []) if init is not None else []
    instructions = [*([recipe.instructions] if recipe.instructions else []), *before]
    training = {
        **recipe.facts,
        "fingerprint": digest_of(recipe.facts),
        "pairs": recipe.pairs,
        "held_out": recipe.held_out,
        "fresh": recipe.fresh,
        "init_training": init.card.training.get("fingerprint") if init is not None else None,
        # What the model learnt before is in it as well.
        **({"instructions": instructions} if instructions else {}),
    }
    packed = pack_trained(out, trainer, recipe, training, versions())
    packed.write(calibrated(packed.bundle), trainer.rows)
    return packed.bundle.card.weights
