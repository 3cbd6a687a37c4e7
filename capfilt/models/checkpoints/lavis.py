"""BLIP-2 and InstructBLIP as LAVIS wrote them, .pth files, as bundles.

LAVIS leaves out what it did not train. So an image encoder or a language model that a file lacks is named by
whoever gives it, and taken as a training takes it; what can be told apart of it, its widths and its kind, is
checked before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from capfilt.errors import CapfiltError
from capfilt.layers import validated
from capfilt.models.cards import Kind, Objective, Origin
from capfilt.models.checkpoints import lavis_names, lavis_sizes
from capfilt.models.checkpoints.hub import find_vocabulary
from capfilt.models.checkpoints.lavis_names import LANGUAGE_HEAD, VISION, LavisNaming, Stack
from capfilt.models.checkpoints.names import check_fit
from capfilt.models.checkpoints.qformer import conventions_of
from capfilt.models.checkpoints.qformer_configs import ending
from capfilt.models.checkpoints.weight_files import WeightFiles, read_pth, read_shapes
from capfilt.models.frozen import FrozenImageEncoder
from capfilt.models.language_model import build_language_model, embedding_width
from capfilt.models.language_vocabulary import begun_by_end, load_language_vocabulary
from capfilt.models.prompted import SoftPrompted
from capfilt.models.qformer import QFormer
from capfilt.models.qformer_bundle import load_weights, pack_qformer
from capfilt.models.qformer_parts import Parts, find_parts, load_parts, settle_parts
from capfilt.models.vocabulary import load_vocabulary
from capfilt.settings import Blip2, Bundles
from capfilt.shell import shell_line

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.bundle_files import PackedOf
    from capfilt.models.checkpoints.foreign import Role
    from capfilt.models.checkpoints.hub import Found
    from capfilt.models.checkpoints.lavis_sizes import Shapes
    from capfilt.models.vocabulary import Vocabulary

_AS_WRITTEN = "give a checkpoint of BLIP-2 or InstructBLIP as LAVIS wrote it, whole"
_ENCODERS = {1408: "Salesforce/blip2-itm-vit-g", 1024: "openai/clip-vit-large-patch14"}
"""Hub ids that hold the two image encoders of LAVIS's files, by their width."""
_EMBEDDINGS = {
    "opt": "opt_model.model.decoder.embed_tokens.weight",
    "t5": "t5_model.shared.weight",
    "llm": "llm_model.model.embed_tokens.weight",
}


def is_lavis_file(path: Path) -> bool:
    """Return whether a file holds a Q-Former as LAVIS writes it; CapfiltError for one that cannot be read."""
    if not path.is_file() or path.suffix == ".py":
        return False
    names = read_shapes(path)
    return "query_tokens" in names and any(name.startswith("Qformer.") for name in names)


def import_lavis(
    found: Found,
    path: Path,
    *,
    role: Role,
    vocabulary: str,
    vision: str | None = None,
    language: str | None = None,
    heads: tuple[int, int] | None = None,
) -> PackedOf[Any, Any]:
    """Read a .pth of LAVIS as the bundle that `write()` puts at `path`.

    `vision` and `language` are paths or hub ids of what the file lacks: anything that `bundles.vision` takes,
    LAVIS's eva_vit_g.pth too, and a folder of transformers. Of a language model whose weights are in the file
    the folder needs config.json and tokenizer alone. `vocabulary` is what the Q-Former reads with, `heads`
    the attention heads of image encoder and Q-Former where their widths do not say them.

    Raises CapfiltError for a role that the model has not, for parts that are lacking or do not fit, with the
    command to type; for a weight that is missing, that nobody knows or that has another shape, by its name.
    """
    file = _File.read(found, heads)
    kind = file.kind(role)
    file.check_given(vision, language)
    parts = find_parts(
        Bundles(vision=vision, language=language), file.settings, with_language=bool(file.stack)
    )
    parts = None if parts is None else _as_lavis_cuts(parts)
    settings = file.settled(parts)
    objectives: tuple[Objective, ...] = ("itc", "itm", "lm") if kind == "joint" else ("itc", "itm")
    reads = kind != "captioner" or settings.family == "instructblip"
    reader = _reader(vocabulary, settings) if reads else None
    words: Any = reader
    model: QFormer | SoftPrompted
    if kind == "captioner":
        assert parts is not None
        assert parts.language is not None
        words = load_language_vocabulary(parts.language.path, settings.language)
        # Vicuna's texts begin with </s> in LAVIS.
        words = begun_by_end(words, settings.language) if file.stack == "llm" else words
        model = SoftPrompted(settings, settings.qformer.vocabulary if reads else None)
    else:
        model = QFormer(settings, settings.qformer.vocabulary, objectives)
    if parts is not None:
        given = Parts(parts.vision, None if file.has_language else parts.language)
        load_parts(given, model, settings)
    known = file.load(model, parts)
    return pack_qformer(
        path,
        kind=kind,
        model=model,
        settings=settings,
        vocabulary=words,
        reader=reader if kind == "captioner" else None,
        parent=None,
        data=None,
        training={},
        versions={},
        conventions=conventions_of(settings.family),
        origin=Origin(
            kind="pth",
            source=found.source,
            revision=found.revision,
            sha256=file.files.sha256,
            left_out=known,
            parts={} if parts is None else parts.facts(),
        ),
    )


def _reader(vocabulary: str, settings: Blip2) -> Vocabulary:
    return load_vocabulary(find_vocabulary(vocabulary).path, entries=settings.qformer.vocabulary)


@dataclass(frozen=True)
class _File:
    """A file of LAVIS, read and understood."""

    where: str
    path: Path
    files: WeightFiles
    shapes: Shapes
    stack: Stack
    settings: Blip2
    """How it is built, as far as the file says."""

    @classmethod
    def read(cls, found: Found, heads: tuple[int, int] | None) -> _File:
        """Read a file; CapfiltError for one whose shapes are no Q-Former's."""
        where, files = found.source, read_pth(found.path)
        shapes = lavis_sizes.shapes_of(files.tensors)
        stack = lavis_names.stack_of(shapes)
        own = heads or (None, None)
        try:
            values = lavis_sizes.settings_of(stack, shapes, own[1], where)
            if inside := lavis_names.as_lavis_vision(shapes):
                sees = lavis_sizes.vision_settings_of(inside, own[0], where)
                values |= {"vision": sees["vision"], "images": values["images"] | sees["images"]}
            elif own[0] is not None:
                # What is named may be bare weights, which do not say their heads; they say their width.
                values["vision"] = {"heads": own[0], "width": own[0] * lavis_sizes.EVA_HEAD}
            lavis_sizes.image_width(shapes)
            settings = validated(Blip2, values)
        except KeyError as error:
            raise CapfiltError(f"{where} lacks {error.args[0]}", fix=_AS_WRITTEN) from error
        except (IndexError, ValueError) as error:
            raise CapfiltError(f"{where} is built as no BLIP-2 is: {error}", fix=_AS_WRITTEN) from error
        return cls(where, found.path, files, shapes, stack, settings)

    @property
    def has_vision(self) -> bool:
        """Whether the image encoder's weights are in the file."""
        return any(name.startswith(VISION) for name in self.shapes)

    @property
    def has_language(self) -> bool:
        """Whether the language model's weights are in the file."""
        return bool(self.stack) and any(name.startswith(f"{self.stack}_model.") for name in self.shapes)

    @property
    def writes(self) -> bool:
        """Whether the Q-Former has its own language head."""
        return any(name.startswith(LANGUAGE_HEAD) for name in self.shapes)

    def kind(self, role: Role) -> Kind:
        """Return what the bundle is for a role; one that the model has not is refused."""
        kind: Kind = "captioner" if self.stack else "filter"
        answers = role == "filter" and self.settings.family == "instructblip"
        if role not in ("init", kind) and not answers:
            other = "the first stage of BLIP-2" if role == "filter" else "its second stage, or InstructBLIP"
            raise CapfiltError(
                f"{self.where} is a {kind}", fix=f"give it as the {kind}; a {role} of this family is {other}"
            )
        return "joint" if role == "init" and not self.stack and self.writes else kind

    def check_given(self, vision: str | None, language: str | None) -> None:
        """Refuse to go on without what the file lacks, or with what it has."""
        if vision is not None and self.has_vision:
            raise CapfiltError(
                f"{self.where} holds the image encoder that it was trained with", fix="leave out --vision"
            )
        if language is not None and not self.stack:
            raise CapfiltError(
                f"{self.where} is a first stage, which has no language model", fix="leave out --language"
            )
        lacking = [] if self.has_vision or vision is not None else ["image encoder"]
        if self.stack and language is None:
            lacking.append("tokenizer of its language model" if self.has_language else "language model")
        if lacking:
            raise CapfiltError(
                f"{self.where} holds no {' and no '.join(lacking)}: LAVIS's files have only what was trained",
                fix=self._how_to_name(vision, language),
            )

    def settled(self, parts: Parts | None) -> Blip2:
        """Return how the model is built with the parts that were named; those that do not fit are refused."""
        settings = settle_parts(parts, self.settings)
        with torch.device("meta"):
            width = FrozenImageEncoder(settings).width
        if parts is not None and width != lavis_sizes.image_width(self.shapes):
            raise CapfiltError(
                f"{self.where} was trained on image states {lavis_sizes.image_width(self.shapes)} wide, and "
                f"those of its image encoder are {width} wide",
                fix=self._how_to_name(None, None),
            )
        if parts is None or parts.language is None:
            return settings
        config = dict(parts.language.says)
        if self.stack == "t5":
            config["dense_act_fn"] = "gelu"  # LAVIS forces the exact one on FlanT5, whose file says another
        if (entries := self.shapes.get(_EMBEDDINGS[self.stack])) is not None:
            config["vocab_size"] = entries[0]
        self._check_language(config, parts.language.source)
        language = {"config": config, "ends_with": ending(settings.family, config)}
        return settings.model_copy(update={"language": settings.language.model_copy(update=language)})

    def _check_language(self, config: dict[str, Any], source: str) -> None:
        """Refuse a language model that cannot be the one that the Q-Former was trained before."""
        with torch.device("meta"):
            built = build_language_model(config)
        kind = "answers a text" if built.config.is_encoder_decoder else "continues a text"
        wanted, width = self.shapes[f"{self.stack}_proj.weight"][0], embedding_width(built)
        if (self.stack == "t5") != bool(built.config.is_encoder_decoder) or wanted != width:
            raise CapfiltError(
                f"{self.where} gives its queries, {wanted} wide, to "
                f"{'T5' if self.stack == 't5' else 'a model that continues a text'}, and {source} {kind} and "
                f"takes {width}",
                fix=self._how_to_name(None, None),
            )

    def _how_to_name(self, vision: str | None, language: str | None) -> str:
        """Return the command that names what the file lacks; what is given is put in as it is."""
        usual = _ENCODERS.get(self.shapes["ln_vision.weight"][0], "FOLDER")
        words = ["capfilt", "models", "convert", str(self.path)]
        words += [] if self.has_vision else ["--vision", vision or usual]
        if self.stack:
            words += ["--language", language or lavis_sizes.lavis_language(self.stack, self.shapes)]
        besides = "" if self.has_vision else " (--vision takes LAVIS's eva_vit_g.pth too)"
        return f"name it: {shell_line([*words, '--out', 'BUNDLE'])}{besides}"

    def load(self, model: QFormer | SoftPrompted, parts: Parts | None) -> dict[str, str]:
        """Give a model the file's weights; those of parts that were named are there already.

        Returns what was left out, a pattern of names -> what it is.
        """
        naming, tensors = LavisNaming(self.stack), self.files.tensors
        first, repeats = _with_repeats(model, self._elsewhere(parts))
        needed = naming.write(first)
        known = {}
        for name, of in repeats.items():
            copy, read = naming.theirs(name)[0], naming.theirs(of)[0]
            if copy in tensors and read in tensors:
                lavis_names.check_same(tensors, copy, read, self.where)
                known[copy] = f"the same as {read}"
        is_first = not self.stack
        patterns = lavis_names.no_use(
            is_first_stage=is_first,
            reads=is_first or self.settings.family == "instructblip",
            writes=isinstance(model, QFormer) and "lm" in model.objectives,
        )
        rest = [name for name in tensors if name not in needed and name not in known]
        others, unknown = lavis_names.left_out(tensors, rest, patterns, self.where)
        met = {name: one for name, one in tensors.items() if name in needed or name in unknown}
        check_fit(needed, met, self.where, _AS_WRITTEN)
        load_weights(model, naming.read(tensors, first))
        return known | others

    def _elsewhere(self, parts: Parts | None) -> tuple[str, ...]:
        """Return how the names of weights begin that come from parts and not from this file."""
        from_parts = parts is not None and not self.has_vision
        vision = ("vision_model.embeddings.", "vision_model.encoder.") if from_parts else ()
        return vision if self.has_language else (*vision, "language_model.")


def _with_repeats(
    model: QFormer | SoftPrompted, elsewhere: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a model's weights, each tensor once, and its further names -> the name it stands under."""
    seen: dict[int, str] = {}
    first: dict[str, Tensor] = {}
    repeats: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.startswith(elsewhere):
            continue
        if id(tensor) in seen:
            repeats[name] = seen[id(tensor)]
        else:
            seen[id(tensor)] = name
            first[name] = tensor.detach()
    return first, repeats


def _as_lavis_cuts(parts: Parts) -> Parts:
    """Return the parts with the layers of CLIP's ViT-L that LAVIS takes: all but the last."""
    if parts.vision is None:
        return parts
    config = parts.vision.says.get("vision_config", {})
    is_whole_clip = (
        str(config.get("model_type")).startswith("clip")
        and config.get("num_hidden_layers") == lavis_sizes.CLIP_LAYERS + 1
    )
    if not is_whole_clip:
        return parts
    cut = {"vision_config": {**config, "num_hidden_layers": lavis_sizes.CLIP_LAYERS}}
    return replace(parts, vision=replace(parts.vision, says=parts.vision.says | cut))
