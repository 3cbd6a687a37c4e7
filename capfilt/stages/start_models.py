"""A model that a training starts from: whether it may, and what of the settings holds beside it.

Its structure is its own, since weights have it; how long texts may be and what is dropped during training
change no weight, and are chosen anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.settings import Blip2

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.bundle_files import BundleOf
    from capfilt.models.cards import Card, Kind
    from capfilt.settings import Bootstrap, Model

_CHOSEN_ANEW = ("max_tokens", "dropout")
"""Settings of a Q-Former that change no weight."""


def check_start(settings: Bootstrap) -> None:
    """Refuse parts that nothing would be made of, since the model that is started from has them."""
    bundles = settings.bundles
    given = [f"bundles.{name}" for name in ("vision", "text") if getattr(bundles, name) is not None]
    if bundles.init is not None and given and settings.rounds == 1:
        raise CapfiltError(
            f"{' and '.join(given)} {'are' if len(given) > 1 else 'is'} for a model from nothing, and "
            f"{bundles.init} comes with its own",
            fix=f"leave out {' and '.join(given)}, or --init",
        )


def check_built_alike(model: Model | Blip2, card: Card, source: Path | str) -> None:
    """Refuse sizes of a Q-Former that were chosen and that the model which is started from does not have."""
    if not isinstance(model, Blip2) or not card.is_qformer:
        return
    free: dict[str, Any] = {"family": True, "language": True, "qformer": {*_CHOSEN_ANEW, "vocabulary"}}
    chosen = model.model_dump(mode="json", exclude_defaults=True, exclude=free)
    there = card.blip2.model_dump(mode="json")
    other = [line for name in chosen for line in _other(chosen[name], there[name], f"model.{name}")]
    if other:
        raise CapfiltError(
            f"{source} is built otherwise, and a training changes no model's structure: " + "; ".join(other),
            fix="leave these settings out, or train from nothing, without --init",
        )


def _other(chosen: Any, there: Any, name: str) -> list[str]:
    if isinstance(chosen, dict) and isinstance(there, dict):
        return [line for one in chosen for line in _other(chosen[one], there.get(one), f"{name}.{one}")]
    return [] if chosen == there else [f"{name} is {chosen} here and {there} there"]


def check_init(kind: Kind, init: BundleOf[Any, Any] | None) -> None:
    """Refuse what a model with a Q-Former cannot start from."""
    if init is None:
        return
    if not init.card.is_qformer:
        raise CapfiltError(
            f"{init.path} is of the kind {init.card.family}, and this pipeline trains a Q-Former",
            fix="start from a stage 1, which `capfilt pretrain --pipeline blip2_stage1` makes, or take its "
            "image encoder alone: --set bundles.vision=MODEL",
        )
    if kind != "captioner" and init.card.kind == "captioner":
        raise CapfiltError(
            f"{init.path} is a captioner, whose Q-Former has no part for texts",
            fix="start a filter from stage 1 (--init), from which the captioner was started too",
        )


def built_like(init: BundleOf[Any, Any], model: Blip2, *, is_new: bool) -> Blip2:
    """Return how a model is built that starts from another one: as that, but for what changes no weight.

    How long texts may be and the dropout are as the settings say, and so is what ends a caption where they
    name it. `is_new` says that another language model takes the place of its own.
    """
    built = init.card.blip2
    if model.qformer.max_tokens > built.qformer.places:
        raise CapfiltError(
            f"model.qformer.max_tokens is {model.qformer.max_tokens}, and {init.path} has "
            f"{built.qformer.places} places",
            fix=f"set model.qformer.max_tokens to {built.qformer.places} at most",
        )
    language = model.language
    if built.language.config and not is_new:
        ends_with = model.language.ends_with or built.language.ends_with
        language = built.language.model_copy(
            update={"max_tokens": model.language.max_tokens, "ends_with": ends_with}
        )
    qformer = built.qformer.model_copy(update={name: getattr(model.qformer, name) for name in _CHOSEN_ANEW})
    return built.model_copy(update={"family": model.family, "language": language, "qformer": qformer})
