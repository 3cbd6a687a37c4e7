"""What a checkpoint is, and a checkpoint as a bundle: the work behind `capfilt models`, done by a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.models.bundle_files import copy_bundle
from capfilt.models.cards import CARD_FILE, Card, read_card

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.checkpoints.foreign import Role
    from capfilt.models.checkpoints.hub import Found
    from capfilt.settings import Model
    from capfilt.stages.context import Tell

_SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, layers and heads of the released image encoders."""
_TEXT = (768, 12, 12, 3072)
"""Width, layers, heads and feed-forward of the released text transformers."""
_PATCH_PX = 16


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to be read, as plain values that can cross processes."""

    source: str
    vocabulary: str
    role: Role = "init"
    size_px: int | None = None
    heads: tuple[int, int] | None = None


def check_checkpoint(job: Checkpoint, _device: str, _tell: Tell) -> dict[str, Any]:
    """Say what a checkpoint is and, where transformers can load it, how far apart both are on a picture."""
    from capfilt.models.checkpoints.foreign import import_checkpoint
    from capfilt.models.checkpoints.hub import find_checkpoint

    found = find_checkpoint(job.source)
    bundle = import_checkpoint(
        _where(found), found.path, role="init", vocabulary=job.vocabulary, heads=job.heads
    ).bundle
    card = bundle.card
    is_own = (found.path / CARD_FILE).exists()
    return {
        "format": "bundle" if is_own else "transformers" if found.path.is_dir() else "pth",
        "kind": card.kind,
        "objectives": list(card.objectives),
        "weights": card.weights,
        "image_encoder": card.image_encoder,
        "revision": found.revision,
        "origin": card.origin.model_dump(mode="json") if card.origin is not None else None,
        "structure": structure(card.med),
        "vocabulary": {"entries": card.vocabulary, "digest": card.vocabulary_digest},
        "conventions": card.conventions.model_dump(mode="json"),
        "resized_from_px": card.resized_from_px,
        **_in_transformers(found, card, is_own=is_own),
    }


def convert_checkpoint(job: tuple[Checkpoint, Path], _device: str, _tell: Tell) -> Card:
    """Write a checkpoint as a bundle and return its card."""
    from capfilt.models.checkpoints.foreign import import_checkpoint
    from capfilt.models.checkpoints.hub import find_checkpoint

    asked, out = job
    found = find_checkpoint(asked.source)
    packed = import_checkpoint(
        _where(found),
        out,
        role=asked.role,
        vocabulary=asked.vocabulary,
        size_px=asked.size_px,
        heads=asked.heads,
    )
    card = packed.bundle.card
    if (found.path / CARD_FILE).exists() and card == read_card(found.path):
        copy_bundle(found.path, out)  # its calibration is its own as long as its weights are
    else:
        packed.write()
    return card


def check_new(out: Path) -> None:
    """Refuse a place that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CapfiltError(f"{out} is there already", fix="give --out a new or an empty folder")


def structure(model: Model) -> dict[str, Any]:
    """Return the sizes of a model, and the name of the released structure that has them."""
    vision, text = model.vision, model.text
    sizes = (vision.width, vision.layers, vision.heads)
    is_released = (
        vision.timm is None
        and (vision.stem, vision.patch_px, vision.mlp_ratio) == ("patch", _PATCH_PX, 4.0)
        and (text.width, text.layers, text.heads, text.feed_forward) == _TEXT
    )
    name = next((name for name, known in _SIZES.items() if known == sizes), None) if is_released else None
    return {
        "name": name or "other",
        "size_px": model.images.size_px,
        "image_encoder": vision.timm or {"patch_px": vision.patch_px, "stem": vision.stem},
        "image_width": None if vision.timm else vision.width,
        "image_layers": None if vision.timm else vision.layers,
        "image_heads": None if vision.timm else vision.heads,
        "text_width": text.width,
        "text_layers": text.layers,
        "text_heads": text.heads,
        "embed": model.embed,
    }


def _in_transformers(found: Found, card: Card, *, is_own: bool) -> dict[str, Any]:
    """Return by which class transformers loads what, or why it cannot, and the parity where it does."""
    from capfilt.models.bundle import is_transformers, load_bundle
    from capfilt.models.checkpoints.configs import ARCHITECTURES
    from capfilt.models.checkpoints.foreign import import_checkpoint
    from capfilt.models.checkpoints.names import halves, objectives_of

    none: dict[str, Any] = {"transformers": {}, "not_in_transformers": "", "parity": {}}
    if not found.path.is_dir():
        return {**none, "not_in_transformers": "it is a .pth; `capfilt models convert` writes a folder"}
    if not is_own and card.origin is not None and card.origin.fresh:
        return {**none, "not_in_transformers": f"it lacks {', '.join(card.origin.fresh)}"}
    folders = {card.kind: found.path}
    if is_own and card.kind == "joint":
        folders = {half: found.path / half for half in halves("joint", card.objectives)}
    for kind in folders:
        half = card
        if kind != card.kind and kind != "joint":
            half = card.model_copy(update={"kind": kind, "objectives": objectives_of(kind, card.objectives)})
        if not is_transformers(half):
            return {**none, "not_in_transformers": _why_not(half)}
    classes = {kind: ARCHITECTURES[kind] for kind in folders}
    try:
        from capfilt.evaluation.parity import parity
    except ImportError:
        return {**none, "transformers": classes}
    measured = {}
    for kind, folder in folders.items():
        bundle = load_bundle(folder) if is_own else import_checkpoint(folder, folder, role="init").bundle
        measured[kind] = parity(bundle, folder).record()
    return {**none, "transformers": classes, "parity": measured}


def _why_not(card: Card) -> str:
    if card.med.vision.timm is not None:
        return f"its image encoder is {card.med.vision.timm}, and transformers' BLIP has one of its own"
    if card.med.vision.stem != "patch":
        return f"its image encoder has a {card.med.vision.stem} stem, and transformers' BLIP has none"
    return f"it serves {', '.join(card.objectives)} alone, and transformers' BLIP has heads for ITC and ITM"


def _where(found: Found) -> str:
    return str(found.path) if found.revision is None else f"{found.source}@{found.revision}"
