"""A model that a training starts from: whether it may, and what of the settings holds beside it.

Its structure is its own, since weights have it; how long texts may be and what is dropped during training
change no weight, and are chosen anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.settings import Blip2

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from capfilt.models.bundle_files import BundleOf
    from capfilt.models.cards import Card, Kind
    from capfilt.settings import Bootstrap, Bundles, Model

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


def check_parts(model: Model | Blip2, bundles: Bundles, kinds: Iterable[str]) -> None:
    """Refuse what trainings from nothing lack, before the first of them begins and not after it."""
    if not isinstance(model, Blip2):
        return
    if bundles.vision is None:
        raise no_image_encoder()
    if "captioner" in kinds and bundles.language is None:
        raise no_language_model()


def no_image_encoder() -> CapfiltError:
    """Return what is said where a Q-Former has nothing to look through."""
    return CapfiltError(
        "a Q-Former looks through an image encoder that stays as it is, and none is given",
        fix="name a trained one: --set bundles.vision=timm --set model.vision=vit_base_patch16_224, a "
        "bundle, or a folder of transformers; or start from a model with --init",
    )


def no_language_model() -> CapfiltError:
    """Return what is said where a captioner with a Q-Former has nothing to write with."""
    return CapfiltError(
        "a captioner with a Q-Former writes with a language model, and none is given",
        fix="name one, e.g. --set bundles.language=facebook/opt-125m, or a folder of transformers",
    )


def check_started_from(settings: Bootstrap, kinds: Iterable[Kind], card: Card, source: Path | str) -> None:
    """Refuse a model that models of these kinds cannot be trained from, before anything is written for them.

    A run that has begun holds to what it was begun with, so that the mend of a later refusal would not be
    taken there.
    """
    model = settings.model
    for kind in kinds:
        check_init(kind, model, card, source)
        if kind == "captioner" and isinstance(model, Blip2) and settings.bundles.language is None:
            has_language = card.blip2.language.config or model.language.config
            if not has_language:
                raise no_language_model()
    check_built_alike(model, card, source)


def check_init(kind: Kind, model: Model | Blip2, card: Card, source: Path | str) -> None:
    """Refuse what a model of another kind, or of another family, cannot start from."""
    if not isinstance(model, Blip2):
        if card.is_qformer:
            raise CapfiltError(
                f"{source} is of the kind {card.family}, and this pipeline trains BLIP's model (MED)",
                fix="name a pipeline that trains a Q-Former, e.g. --pipeline blip2_opt",
            )
        return
    if not card.is_qformer:
        raise CapfiltError(
            f"{source} is of the kind {card.family}, and this pipeline trains a Q-Former",
            fix="start from a stage 1, which `capfilt pretrain --pipeline blip2_stage1` makes, or take its "
            "image encoder alone: --set bundles.vision=MODEL",
        )
    if card.kind != "captioner":
        return
    if kind != "captioner":
        raise CapfiltError(
            f"{source} is a captioner, whose Q-Former has no part for texts",
            fix="start a filter from stage 1 (--init), from which the captioner was started too",
        )
    if model.family == "instructblip" and not card.is_instructed:
        first = f" (its weights are {card.parent[:12]})" if card.parent else ""
        raise CapfiltError(
            f"{source} is a captioner of BLIP-2, whose Q-Former has no part for texts, and InstructBLIP's "
            "reads the instruction",
            fix=f"give the stage 1 that it was trained from{first} as --init, with --set "
            "bundles.language=MODEL for the language model; or an InstructBLIP",
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
