"""Any model that is given, as a bundle: the one place that tells the kinds of checkpoints apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.files import whole_folder
from capfilt.models.backends.server import describe as describe_server
from capfilt.models.backends.server import is_address
from capfilt.models.bundle_files import json_bytes
from capfilt.models.cards import CARD_FILE, read_card
from capfilt.models.checkpoints.hub import Found, find_checkpoint
from capfilt.settings import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from capfilt.models.bundle_files import BundleOf
    from capfilt.models.cards import Card
    from capfilt.models.checkpoints.foreign import Role
    from capfilt.settings import Server


@dataclass(frozen=True)
class Ready:
    """A bundle that is not written yet."""

    card: Card
    """What it says of itself."""
    found: Found
    write: Callable[[], None]
    """Writes it, all or nothing."""
    bundle: BundleOf[Any, Any] | None = None
    """The same in memory, where its weights were read."""


def find_model(source: str) -> Found:
    """Return where a model is: a path, a hub id that is downloaded unless it is in the cache, an address."""
    return Found(Path(source), source) if is_address(source) else find_checkpoint(source)


def read_model(
    source: str,
    to: Path,
    *,
    role: Role,
    vocabulary: str,
    size_px: int | None,
    server: Server,
    options: Mapping[str, Any] | None = None,
    heads: tuple[int, int] | None = None,
    vision: str | None = None,
    language: str | None = None,
) -> Ready:
    """Read a model as the bundle that `write()` puts at `to`.

    It may be a bundle, a folder of transformers (BLIP, BLIP-2, InstructBLIP, a dual encoder, a chat model), a
    hub id of one, a .pth, a Python file, or the address of a server. `options` are for one that other
    software runs, `heads` the attention heads of a .pth (see `foreign`), `vision` and `language` what a .pth
    of LAVIS lacks (see `lavis`). Raises CapfiltError for anything else, for a model that has not the role,
    and for options, parts or a side of pictures that it cannot be given.
    """
    found = find_model(source)
    is_lavis = not is_address(source) and _is_lavis(found.path)
    if options and not _takes_options(found, role):
        raise CapfiltError(
            f"{source} has no options: bundles.{role}_options is for models that other software runs",
            fix="leave it out; a server is told by server.extra",
        )
    if (vision is not None or language is not None) and not is_lavis:
        raise CapfiltError(
            f"{source} has all its parts: --vision and --language are for a .pth of LAVIS, which lacks some",
            fix="leave them out",
        )
    if is_address(source):
        card = describe_server(source, server)
        check_role(card, role, source)
        return Ready(card, found, lambda: _write_card(card, to))
    if (is_lavis or not _is_blip(found.path)) and size_px is not None:
        raise CapfiltError(
            f"{source} sees pictures at its own size, and --size-px is for BLIP alone", fix="leave it out"
        )
    if not _is_blip(found.path) and heads is not None:
        raise CapfiltError(f"{source} says itself how many attention heads it has", fix="leave out --heads")
    if is_lavis:
        from capfilt.models.checkpoints.lavis import import_lavis

        lavis = import_lavis(
            found, to, role=role, vocabulary=vocabulary, vision=vision, language=language, heads=heads
        )
        return Ready(lavis.bundle.card, found, lavis.write, lavis.bundle)
    if (found.path / CARD_FILE).exists() and not isinstance(read_card(found.path).model, Model):
        return _own(found, to, role)
    if found.path.is_dir():
        from capfilt.models.checkpoints.qformer import import_qformer, is_qformer_folder

        if is_qformer_folder(found.path):
            packed = import_qformer(found, to, role=role)
            return Ready(packed.bundle.card, found, packed.write, packed.bundle)
    if role != "init":
        from capfilt.models import foreign_bundle

        if foreign_bundle.recognised(found.path) is not None or not _is_blip(found.path):
            card = foreign_bundle.describe(found.path, role, options)
            return Ready(card, found, lambda: foreign_bundle.take(found.path, card, to))
    elif not _is_blip(found.path):
        raise CapfiltError(
            f"{source} is no model that capfilt trains",
            fix="start from a bundle of a trained model, or from BLIP, BLIP-2 or InstructBLIP",
        )
    from capfilt.models.checkpoints.foreign import import_checkpoint

    where = str(found.path) if found.revision is None else f"{found.source}@{found.revision}"
    blip = import_checkpoint(where, to, role=role, vocabulary=vocabulary, size_px=size_px, heads=heads)
    return Ready(blip.bundle.card, found, blip.write, blip.bundle)


def _takes_options(found: Found, role: Role) -> bool:
    """Return whether this becomes a bundle of a model that other software runs here."""
    from capfilt.models import foreign_bundle

    if is_address(found.source) or (found.path / CARD_FILE).exists():
        return False
    return role != "init" and foreign_bundle.recognised(found.path) is not None


def _is_blip(path: Path) -> bool:
    """Whether this is, or may be, BLIP's model, whose position embeddings can be interpolated."""
    if (path / CARD_FILE).exists():
        return isinstance(read_card(path).model, Model)
    if not path.is_dir():
        return path.suffix != ".py"
    from capfilt.models.checkpoints.configs import CONFIG_FILE, read_json

    file = path / CONFIG_FILE
    return not file.is_file() or read_json(file).get("model_type") in (None, "blip")


def _is_lavis(path: Path) -> bool:
    """Whether this is a .pth of LAVIS that holds a Q-Former."""
    if not path.is_file() or path.suffix == ".py":
        return False
    from capfilt.models.checkpoints.lavis import is_lavis_file

    return is_lavis_file(path)


def _own(found: Found, to: Path, role: Role) -> Ready:
    """Return a bundle of ours of another family, as it is."""
    from capfilt.models.bundle_files import copy_bundle

    card = read_card(found.path)
    check_role(card, role, found.source)
    return Ready(card, found, lambda: copy_bundle(found.path, to))


def check_role(card: Card, role: Role, source: str) -> None:
    """Refuse a model that is no MED for a role that it cannot play; a MED's is said by its objectives."""
    if isinstance(card.model, Model):
        return
    serves = {"captioner": card.kind == "captioner", "filter": card.kind != "captioner" or card.is_instructed}
    if not serves.get(role, card.is_qformer):
        verbs = {"captioner": "write captions", "filter": "score pairs", "init": "be trained"}
        raise CapfiltError(
            f"{source} cannot {verbs[role]}: it is a {card.kind} of the kind {card.family}",
            fix=f"give another model as --{role}",
        )


def _write_card(card: Card, to: Path) -> None:
    with whole_folder(to) as folder:
        (folder / CARD_FILE).write_bytes(json_bytes(card.model_dump(mode="json")))
