"""What a checkpoint is, and a checkpoint as a bundle: the work behind `capfilt models`, done by a worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.models.backends.server import is_address
from capfilt.models.bundle_files import check_files, copy_bundle
from capfilt.models.cards import CARD_FILE, Card, Kind, read_card
from capfilt.models.structures import structure
from capfilt.settings import Foreign, Server

if TYPE_CHECKING:
    from capfilt.models.bundle_files import BundleOf
    from capfilt.models.checkpoints.foreign import Role
    from capfilt.models.checkpoints.hub import Found
    from capfilt.models.checkpoints.importing import Ready
    from capfilt.stages.context import Tell


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to be read, as plain values that can cross processes."""

    source: str
    vocabulary: str
    role: Role = "init"
    size_px: int | None = None
    heads: tuple[int, int] | None = None
    vision: str | None = None
    language: str | None = None


def check_checkpoint(job: Checkpoint, _device: str, _tell: Tell) -> dict[str, Any]:
    """Say what a checkpoint is and, where transformers can load it, how far apart both are on a picture."""
    from capfilt.models.checkpoints.importing import find_model

    found = find_model(job.source)
    is_own = (found.path / CARD_FILE).exists()
    if is_own and isinstance(read_card(found.path).model, Foreign):
        card = read_card(found.path)
        check_files(found.path, card.files)
        return _told(found, card) | _run_elsewhere(card, (card.kind,))
    if roles := _foreign_roles(found, job.source):
        card = _read(job, Path(), roles[0]).card
        return _told(found, card) | _run_elsewhere(card, roles)
    ready = _read(job, found.path, "init")
    return _told(found, ready.card) | _trained_here(found, ready)


def convert_checkpoint(job: tuple[Checkpoint, Path], _device: str, _tell: Tell) -> Card:
    """Write a checkpoint as a bundle and return its card.

    A model that other software runs is what it can do, unless its role is said. Raises CapfiltError where it
    can do both and none is said, and as `read_model` does.
    """
    from capfilt.models.checkpoints.importing import find_model

    asked, out = job
    found, role = find_model(asked.source), asked.role
    is_own = (found.path / CARD_FILE).exists()
    if role == "init":
        own = read_card(found.path) if is_own else None
        is_foreign = own is not None and isinstance(own.model, Foreign)
        roles = (own.kind,) if own is not None and is_foreign else _foreign_roles(found, asked.source)
        if len(roles) > 1:
            raise CapfiltError(
                f"{asked.source} can be a {' and a '.join(roles)}, and a bundle is one of them",
                fix=f"say which: --role {' or --role '.join(roles)}",
            )
        role = "captioner" if roles == ("captioner",) else "filter" if roles else role
    ready = _read(asked, out, role)
    if is_own and ready.card == read_card(found.path):
        copy_bundle(found.path, out)  # its calibration is its own as long as its weights are
    else:
        ready.write()
    return ready.card


def check_new(out: Path) -> None:
    """Refuse a place that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CapfiltError(f"{out} is there already", fix="give --out a new or an empty folder")


def _read(job: Checkpoint, to: Path, role: Role | Kind) -> Ready:
    from capfilt.models.checkpoints.importing import read_model

    wanted: Role = "init" if role == "joint" else role
    return read_model(
        job.source,
        to,
        role=wanted,
        vocabulary=job.vocabulary,
        size_px=job.size_px,
        server=Server(),
        heads=job.heads,
        vision=job.vision,
        language=job.language,
    )


def _foreign_roles(found: Found, source: str) -> tuple[Kind, ...]:
    """Return what a model that other software runs can be; nothing for one that capfilt builds itself."""
    from capfilt.models import foreign_bundle
    from capfilt.models.checkpoints.qformer import is_qformer_folder

    if is_address(source):
        return ("captioner",)
    if (found.path / CARD_FILE).exists() or (found.path.is_dir() and is_qformer_folder(found.path)):
        return ()
    return foreign_bundle.roles(found.path)


def _told(found: Found, card: Card) -> dict[str, Any]:
    """Return what a card says of any model."""
    form = "transformers" if found.path.is_dir() else "python" if found.path.suffix == ".py" else "pth"
    if (found.path / CARD_FILE).exists():
        form = "bundle"
    elif is_address(found.source):
        form = "server"
    return {
        "format": form,
        "family": card.family,
        "kind": card.kind,
        "roles": [card.kind],
        "objectives": list(card.objectives),
        "weights": card.weights,
        "image_encoder": card.image_encoder,
        "revision": found.revision,
        "origin": card.origin.model_dump(mode="json") if card.origin is not None else None,
        "structure": None,
        "options": {},
        "vocabulary": {"entries": card.vocabulary, "digest": card.vocabulary_digest},
        "conventions": card.conventions.model_dump(mode="json"),
        "resized_from_px": card.resized_from_px,
        "transformers": {},
        "not_in_transformers": "",
        "parity": {},
    }


def _run_elsewhere(card: Card, roles: tuple[Kind, ...]) -> dict[str, Any]:
    """Return what is told of a model that other software runs: there is nothing to compare it with."""
    return {"roles": list(roles), "options": card.foreign.options | card.foreign.asked}


def _trained_here(found: Found, ready: Ready) -> dict[str, Any]:
    """Return how a model is built, by which class transformers loads what of it, and the parity there."""
    from capfilt.models.loading import open_bundle

    card = ready.card
    bundle = ready.bundle or open_bundle(found.path)
    model = card.blip2 if card.is_qformer else card.med
    told: dict[str, Any] = {"structure": structure(model)}
    why_not = _not_in_transformers(found, card)
    if why_not:
        return {**told, "not_in_transformers": why_not}
    if card.is_qformer:
        from capfilt.evaluation.qformer_parity import architecture_of, qformer_parity

        parities = {card.kind: qformer_parity(bundle, found.path).record()}
        return {**told, "transformers": {card.kind: architecture_of(card)}, "parity": parities}
    return {**told, **_med_parities(found, bundle)}


def _med_parities(found: Found, bundle: BundleOf[Any, Any]) -> dict[str, Any]:
    """Return the same of BLIP, whose joint bundle is two folders to transformers."""
    from capfilt.evaluation.parity import parity
    from capfilt.models.bundle import load_bundle
    from capfilt.models.checkpoints.configs import ARCHITECTURES
    from capfilt.models.checkpoints.names import halves

    card = bundle.card
    parts = {card.kind: (bundle, found.path)}
    if card.kind == "joint":
        folders = {half: found.path / half for half in halves("joint", card.objectives)}
        parts = {half: (load_bundle(folder), folder) for half, folder in folders.items()}
    return {
        "transformers": {kind: ARCHITECTURES[kind] for kind in parts},
        "parity": {kind: parity(one, folder).record() for kind, (one, folder) in parts.items()},
    }


def _not_in_transformers(found: Found, card: Card) -> str:
    """Return why transformers cannot load a model of BLIP, BLIP-2 or InstructBLIP; empty where it can."""
    from capfilt.models import bundle, qformer_bundle
    from capfilt.models.checkpoints.names import halves, objectives_of

    if not found.path.is_dir():
        return "it is a .pth; `capfilt models convert` writes a folder"
    if not (found.path / CARD_FILE).exists() and card.origin is not None and card.origin.fresh:
        return f"it lacks {', '.join(card.origin.fresh)}"
    parts = [card]
    if card.kind == "joint" and not card.is_qformer:
        parts = [
            card.model_copy(update={"kind": half, "objectives": objectives_of(half, card.objectives)})
            for half in halves("joint", card.objectives)
        ]
    is_there = qformer_bundle.is_transformers if card.is_qformer else bundle.is_transformers
    lacking = [part for part in parts if not is_there(part)]
    return _why_not(lacking[0]) if lacking else ""


def _why_not(card: Card) -> str:
    model = card.blip2 if card.is_qformer else card.med
    family = {"blip": "BLIP", "blip2": "BLIP-2", "instructblip": "InstructBLIP"}[card.family]
    other = getattr(model, "vision_config", None)
    if other:
        kind = other.get("vision_config", other).get("model_type")
        return f"its image encoder is a {kind}, and transformers' {family} has one of its own"
    if model.vision.timm is not None:
        return f"its image encoder is {model.vision.timm}, and transformers' {family} has one of its own"
    if model.vision.stem != "patch":
        return f"its image encoder has a {model.vision.stem} stem, and transformers' {family} has none"
    return (
        f"it serves {', '.join(card.objectives)} alone, and transformers' {family} has heads for ITC and ITM"
    )
