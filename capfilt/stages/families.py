"""What a training needs to know of each family of models: what it begins from, how it is built and kept.

MED is one model with all its functions. With a Q-Former, stage 1 is the joint model or the filter, and the
captioner is another model around the same Q-Former: so what is built follows from structure and kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.models.cards import INSTRUCTION, Conventions, Kind, Objective, identity
from capfilt.settings import Blip2, Model
from capfilt.stages.start_models import built_like, check_init, no_image_encoder, no_language_model

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from capfilt.models.bundle_files import BundleOf, PackedOf
    from capfilt.models.initial import Start
    from capfilt.models.learner import Learner
    from capfilt.models.qformer_parts import Parts
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Bundles
    from capfilt.stages.trained import Recipe
    from capfilt.training.loop import Trainer
    from capfilt.training.objectives import Objective as Trained

SERVES: dict[str, tuple[str, ...]] = {
    "captioner": ("lm",),
    "filter": ("itc", "itm"),
    "joint": ("itc", "itm", "lm"),
}
"""Which objectives' parts a model keeps."""
HEADS = (
    "image_projection.",
    "text_projection.",
    "vision_projection.",
    "temperature",
    "itm_head.",
    "word_head.",
    "language_projection.",
)
"""Parts of a model that may start fresh where the model it starts from has another purpose."""


@dataclass(frozen=True)
class Beginning:
    """What a model starts from: another one, parts of others, or nothing."""

    kind: Kind
    settings: Model | Blip2
    """How the model is built: as the one it starts from, where there is one."""
    init: BundleOf[Any, Any] | None
    start: Start | None
    """Weights that parts of a MED from scratch start from."""
    parts: Parts | None
    """What a Q-Former is put between."""

    def facts(self, *, begun_from: str | None = None) -> dict[str, Any]:
        """Return the digests of all of it, which the trained weights depend on.

        `begun_from` is the identity of a model that it started from and that is gone.
        """
        init = begun_from or (identity(self.init.card) if self.init is not None else None)
        start = self.start if init is None else None
        parts = self.parts
        if parts is not None and init is not None:
            # The image encoder came with the model.
            parts = replace(parts, vision=None, text=None) if parts.language is not None else None
        found = start or parts
        return {"init": init, "start": found.facts() if found is not None else None}


@dataclass(frozen=True)
class Begun:
    """A model about to be trained, and what it is trained with."""

    model: Learner
    vocabulary: Any
    """What its texts are read with."""
    reader: Vocabulary | None
    """What InstructBLIP's Q-Former reads instructions with."""
    objective: Trained
    max_tokens: int
    """Longest text, in its tokens."""
    fresh: tuple[str, ...]
    """Parts that the model it started from lacks."""
    reader_tokens: int = 0
    """Longest instruction that `reader` reads."""


def find_beginning(
    kind: Kind,
    init: Path | None,
    bundles: Bundles | None,
    model: Model | Blip2,
    known: Parts | None = None,
) -> Beginning:
    """Find and read what a model starts from, and settle how it is built; nothing is drawn yet.

    `known` are the parts of a Q-Former where they were found before.

    Raises CapfiltError for what is not there or does not fit, and for a Q-Former without an image encoder.
    """
    from capfilt.models.initial import find_start, settle
    from capfilt.models.loading import open_bundle

    bundle = open_bundle(init) if init is not None else None
    if bundle is not None:
        check_init(kind, model, bundle.card, bundle.path)
    if isinstance(model, Model):
        start = find_start(bundles, model) if bundle is None and bundles is not None else None
        settings = bundle.card.med if bundle is not None else settle(start, model)
        # Which model it is built like says nothing of what is trained of it.
        settings = changed(settings, {"shared_vision": model.shared_vision})
        return Beginning(kind, settings, bundle, start, None)
    return _with_qformer(kind, bundle, bundles, model, known)


def _with_qformer(
    kind: Kind, init: BundleOf[Any, Any] | None, bundles: Bundles | None, model: Blip2, known: Parts | None
) -> Beginning:
    from capfilt.models.qformer_parts import find_parts, settle_parts

    settings = model
    if init is not None:
        is_new = bundles is not None and bundles.language is not None
        settings = built_like(init, model, is_new=is_new)
    writes = kind == "captioner"
    needs_language = writes and not settings.language.config
    if known is None and bundles is not None:
        taken = bundles if init is None else bundles.model_copy(update={"vision": None, "text": None})
        known = find_parts(taken, settings, with_language=writes)
    parts = known.for_a(kind, from_nothing=init is None) if known is not None else None
    if init is None and (parts is None or parts.vision is None):
        raise no_image_encoder()
    if needs_language and (parts is None or parts.language is None):
        raise no_language_model()
    return Beginning(kind, settle_parts(parts, settings), init, None, parts)


def begin(beginning: Beginning, texts: Iterable[str], objectives: Iterable[Objective]) -> Begun:
    """Build the model, drawing from torch's generator; `texts` are read for a vocabulary to train."""
    if isinstance(beginning.settings, Model):
        return _begin_med(beginning, beginning.settings, texts, objectives)
    settings = beginning.settings
    if beginning.parts is not None:
        beginning = replace(beginning, parts=beginning.parts.located())
    if beginning.kind == "captioner":
        named = set(objectives)
        if named != {"lm"}:
            raise CapfiltError(
                "a captioner with a Q-Former is trained for lm alone, and its training has "
                + (", ".join(sorted(named - {"lm"})) or "no lm"),
                fix="give lm alone a weight in every phase; the filter is trained for itc and itm",
            )
        return _begin_prompted(beginning, settings, texts)
    return _begin_qformer(beginning, settings, texts, objectives)


def _begin_med(
    beginning: Beginning, settings: Model, texts: Iterable[str], objectives: Iterable[Objective]
) -> Begun:
    from capfilt.models.initial import load_start, start_vocabulary
    from capfilt.models.med import MED, adopt
    from capfilt.models.vocabulary import train_vocabulary
    from capfilt.training.objectives import PAIRS

    init, start = beginning.init, beginning.start
    vocabulary = init.vocabulary if init is not None else start_vocabulary(start)
    if vocabulary is None:
        vocabulary = train_vocabulary(texts, settings.text.vocabulary)
    model = MED(settings, len(vocabulary), objectives)
    fresh: tuple[str, ...] = ()
    if init is not None:
        lacking, _ = adopt(model, init.model.state_dict())
        fresh = fresh_parts(lacking, init, model.state_dict())
    elif start is not None:
        load_start(start, model, settings)
    return Begun(model, vocabulary, None, PAIRS, settings.text.max_tokens, fresh)


def _begin_qformer(
    beginning: Beginning, settings: Blip2, texts: Iterable[str], objectives: Iterable[Objective]
) -> Begun:
    from capfilt.models.qformer import QFormer
    from capfilt.models.qformer_bundle import adopt
    from capfilt.models.qformer_parts import load_parts, text_vocabulary
    from capfilt.models.vocabulary import train_vocabulary
    from capfilt.training.objectives import PAIRS

    init = beginning.init
    vocabulary = init.vocabulary if init is not None else text_vocabulary(beginning.parts)
    if vocabulary is None:
        vocabulary = train_vocabulary(texts, settings.qformer.vocabulary)
    model = QFormer(settings, len(vocabulary), objectives)
    fresh: tuple[str, ...] = ()
    if init is not None:
        fresh = fresh_parts(adopt(model, init.model.state_dict()), init, model.state_dict())
    if beginning.parts is not None:
        load_parts(beginning.parts, model, settings)
    return Begun(model, vocabulary, None, PAIRS, settings.qformer.max_tokens, fresh)


def _begin_prompted(beginning: Beginning, settings: Blip2, texts: Iterable[str]) -> Begun:
    from capfilt.models.language_vocabulary import LanguageVocabulary
    from capfilt.models.prompted import SoftPrompted
    from capfilt.models.qformer_bundle import adopt
    from capfilt.models.qformer_parts import load_parts, part_vocabulary
    from capfilt.models.vocabulary import train_vocabulary
    from capfilt.training.language import LANGUAGE, asked_for

    init, parts = beginning.init, beginning.parts
    if parts is not None and parts.text is not None:
        raise CapfiltError(
            "bundles.text is a BERT that stage 1 starts from, and a captioner starts from stage 1",
            fix="leave bundles.text out, or pre-train stage 1 first (--pipeline blip2_stage1) and give it as "
            "--init; bundles.language names the language model of a captioner",
        )
    reader = None
    if settings.family == "instructblip":
        # Stage 1 reads with it, and a captioner of InstructBLIP has it beside its language model's.
        reader = (init.reader or init.vocabulary) if init is not None else None
        reader = reader or train_vocabulary(texts, settings.qformer.vocabulary)
    model = SoftPrompted(settings, len(reader) if reader is not None else None)
    own = model.state_dict()
    is_new = parts is not None and parts.language is not None
    if init is not None and init.card.kind == "captioner" and not is_new:
        vocabulary = init.vocabulary
        if settings.language.ends_with != init.card.blip2.language.ends_with:
            vocabulary = LanguageVocabulary(vocabulary.files(), settings.language)
    else:
        vocabulary = part_vocabulary(parts, settings)
    fresh: tuple[str, ...] = ()
    if init is not None:
        given = init.model.state_dict()
        if is_new:
            # Another language model takes the place of theirs; of another width, it is led to anew.
            given = {
                name: tensor
                for name, tensor in given.items()
                if not name.startswith("language_")
                or (name.startswith("language_projection.") and tensor.shape == own[name].shape)
            }
        lacking = [name for name in adopt(model, given) if not name.startswith("language_model.")]
        fresh = fresh_parts(lacking, init, own)
    if parts is not None:
        load_parts(parts, model, settings)
    longest = settings.language.max_tokens
    heard = settings.qformer.max_tokens
    objective = LANGUAGE if reader is None else asked_for(INSTRUCTION, reader, vocabulary, heard)
    return Begun(model, vocabulary, reader, objective, longest, fresh, heard)


def fresh_parts(lacking: list[str], init: BundleOf[Any, Any], own: Iterable[str]) -> tuple[str, ...]:
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


def pack_trained(
    out: Path, trainer: Trainer, recipe: Recipe, training: dict[str, Any], versions: dict[str, str]
) -> PackedOf[Any, Any]:
    """Make the bundle of a trained model; what does not serve its kind stays behind."""
    kept = [name for name in trainer.model.objectives if name in SERVES[recipe.kind]]
    init = recipe.init
    parent = init.card.weights if init is not None else None
    common: dict[str, Any] = {
        "kind": recipe.kind,
        "parent": parent,
        "data": recipe.data,
        "training": training,
        "versions": versions,
    }
    if isinstance(recipe.model, Model):
        from capfilt.models import med
        from capfilt.models.bundle import pack

        model = med.MED(recipe.model, len(trainer.vocabulary), kept)
        med.adopt(model, trainer.model.state_dict())
        return pack(out, model=model, settings=recipe.model, vocabulary=trainer.vocabulary, **common)
    from capfilt.models.prompted import SoftPrompted
    from capfilt.models.qformer import QFormer
    from capfilt.models.qformer_bundle import adopt, pack_qformer

    own: QFormer | SoftPrompted
    if isinstance(trainer.model, SoftPrompted):
        own = trainer.model
    else:
        own = QFormer(recipe.model, len(trainer.vocabulary), kept)
        adopt(own, trainer.model.state_dict())
    return pack_qformer(
        out,
        model=own,
        settings=recipe.model,
        vocabulary=trainer.vocabulary,
        reader=recipe.reader,
        conventions=Conventions(prompt=INSTRUCTION) if recipe.reader is not None else None,
        **common,
    )
