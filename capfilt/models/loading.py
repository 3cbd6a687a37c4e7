"""Bundles as captioners and filters: the one place that knows every kind of model there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from capfilt.errors import CapfiltError
from capfilt.models.cards import Card, read_card
from capfilt.models.protocols import AS_MADE
from capfilt.settings import Blip2, Foreign

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.bundle import Bundle
    from capfilt.models.bundle_files import BundleOf
    from capfilt.models.protocols import Captioner, Filter
    from capfilt.models.qformer_bundle import PromptedBundle, QFormerBundle
    from capfilt.settings import Matching

    AnyBundle: TypeAlias = Bundle | QFormerBundle | PromptedBundle


def open_bundle(path: Path) -> BundleOf[Any, Any]:
    """Read a bundle of a model that is trained here, whichever it is.

    Raises CapfiltError for what is no bundle, is damaged, or is a model that other software runs.
    """
    from capfilt.models.bundle import load_bundle
    from capfilt.models.qformer_bundle import load_qformer_bundle

    card = read_card(path)
    if isinstance(card.model, Foreign):
        raise CapfiltError(
            f"{path} is a model that {card.model.backend} runs, and capfilt does not train it",
            fix="start from a bundle that capfilt trained, from BLIP, BLIP-2 or InstructBLIP",
        )
    return load_qformer_bundle(path) if isinstance(card.model, Blip2) else load_bundle(path)


def captioner_of(path: Path, device: str, precision: str, *, compiled: bool = False) -> Captioner:
    """Return the captioner of a bundle, ready on its device.

    Raises CapfiltError for a bundle that cannot write captions.
    """
    card = read_card(path)
    _check(card, path, "lm")
    if isinstance(card.model, Foreign):
        from capfilt.models.backends import backend

        made: Captioner = backend(card.model.backend).captioner(path, card, device, precision)
        return made
    return captioner_from(open_bundle(path), device, precision, compiled=compiled)


def filter_of(
    path: Path, device: str, precision: str, matching: Matching = AS_MADE, *, compiled: bool = False
) -> Filter:
    """Return the filter of a bundle, ready on its device.

    Raises CapfiltError for a bundle that cannot score pairs, and for a choice that it does not heed.
    """
    card = read_card(path)
    _check_matching(card, matching)
    if isinstance(card.model, Foreign):
        from capfilt.models.backends import backend

        if card.kind != "filter":
            _check(card, path, "itc")
        made: Filter = backend(card.model.backend).filter(path, card, device, precision)
        return made
    if not {"itc", "itm"} & set(card.objectives) and card.family != "instructblip":
        raise CapfiltError(
            f"{path} cannot score pairs: it is a {card.kind} trained for {', '.join(card.objectives)}",
            fix="give a bundle trained for itc or itm; `capfilt train filter CLEAN --out BUNDLE` makes one",
        )
    return filter_from(open_bundle(path), device, precision, matching, compiled=compiled)


def captioner_from(
    bundle: BundleOf[Any, Any], device: str, precision: str, *, compiled: bool = False
) -> Captioner:
    """Return the captioner of a bundle in memory, whose model is made ready in place."""
    import torch

    from capfilt.models.captioner import MedCaptioner

    if bundle.card.is_qformer:
        from capfilt.models.prompted_captioner import PromptedCaptioner

        return PromptedCaptioner(bundle, torch.device(device), precision)
    return MedCaptioner(bundle, torch.device(device), precision, compiled=compiled)


def filter_from(
    bundle: BundleOf[Any, Any],
    device: str,
    precision: str,
    matching: Matching = AS_MADE,
    *,
    compiled: bool = False,
) -> Filter:
    """Return the filter of a bundle in memory, whose model is made ready in place."""
    import torch

    from capfilt.models.filter import MedFilter

    if bundle.card.is_qformer:
        if bundle.card.kind == "captioner":
            from capfilt.models.answering import AnswerFilter

            return AnswerFilter(bundle, torch.device(device), precision, matching)
        from capfilt.models.qformer_filter import QFormerFilter

        return QFormerFilter(bundle, torch.device(device), precision, matching)
    return MedFilter(bundle, torch.device(device), precision, matching, compiled=compiled)


def _check_matching(card: Card, matching: Matching) -> None:
    """Refuse what was chosen and would be recorded without having changed a score."""
    for name, value in matching.model_dump().items():
        if value is not None and name not in card.reads:
            raise CapfiltError(
                f"filter.{name} is {value!r}, which a filter of the kind {card.family} does not read",
                fix=f"leave filter.{name} out"
                + (f"; this one reads filter.{', filter.'.join(card.reads)}" if card.reads else ""),
            )


def _check(card: Card, path: Path, needs: str) -> None:
    # Stage 1 of BLIP-2 learns to write so that its queries see, and no caption of it is used.
    if needs in card.objectives and not (needs == "lm" and card.kind != "captioner" and card.is_qformer):
        return
    role = "write captions" if needs == "lm" else "score pairs"
    raise CapfiltError(
        f"{path} cannot {role}: it is a {card.kind} trained for {', '.join(card.objectives)}",
        fix=f"give a bundle trained for {needs}",
    )
