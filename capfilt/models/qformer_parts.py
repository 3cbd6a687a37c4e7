"""What stands frozen around a Q-Former: an image encoder and a language model that others trained.

Finding and loading are apart, as in `initial`: what was found is plain and crosses processes, and has the
digests that a training is known by.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.models.checkpoints.bert import bert_settings, bert_vocabulary, start_qformer
from capfilt.models.checkpoints.configs import CONFIG_FILE, read_json
from capfilt.models.checkpoints.hub import find_checkpoint
from capfilt.models.checkpoints.names import few
from capfilt.models.checkpoints.vit import timm_weights_of
from capfilt.models.checkpoints.weight_files import read_folder
from capfilt.models.image_parts import image_settings, load_image_encoder
from capfilt.models.part_files import folder_digest, read_by_transformers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capfilt.models.language_vocabulary import LanguageVocabulary
    from capfilt.models.prompted import SoftPrompted
    from capfilt.models.qformer import QFormer
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Blip2, Bundles

TIMM = "timm"
"""Stands for the weights that timm itself takes for a ViT's name."""
ROLES = ("vision", "language", "text")
"""What a part can be; `Bundles` has a setting of the name of each."""
_OF_BERT = {"width", "layers", "heads", "feed_forward", "places", "norm_epsilon"}
"""Settings of a Q-Former that are those of the BERT it starts from."""


@dataclass(frozen=True)
class Taken:
    """A model of others that is taken as it is."""

    path: Path
    """A folder or a file; absolute."""
    source: str
    """As it was given, or the hub id that it stands for."""
    digest: str
    """Of all its files that are read; what comes from the hub is known by its name and commit."""
    typed: str = ""
    """As it was given."""
    revision: str | None = None
    """Commit of the hub; None for what is no download."""
    says: dict[str, Any] = field(default_factory=dict)
    """Settings that it says of itself, so that how a model is built is known without its files."""


@dataclass(frozen=True)
class Parts:
    """What a Q-Former is put between; None for a part that comes with the model it starts from."""

    vision: Taken | None
    language: Taken | None
    text: Taken | None = None
    """A BERT that the Q-Former's text side starts from."""

    def facts(self) -> dict[str, str]:
        """Return the digests of all that the parts' weights depend on; equal files have equal facts."""
        parts = {"vision": self.vision, "language": self.language, "text": self.text}
        return {name: part.digest for name, part in parts.items() if part is not None}

    def for_a(self, kind: str, *, from_nothing: bool) -> Parts | None:
        """Return those that a model of this kind takes, where it starts from nothing or from a model."""
        vision, text = (self.vision, self.text) if from_nothing else (None, None)
        found = Parts(vision, self.language if kind == "captioner" else None, text)
        return found if found.facts() else None

    def located(self) -> Parts:
        """Return the same where it lies now: a commit of the hub that is gone is downloaded again."""
        found: dict[str, Taken | None] = {}
        for name in ROLES:
            part = getattr(self, name)
            if part is not None and part.revision is not None and not part.path.exists():
                there = find_checkpoint(f"{part.source}@{part.revision}", may_lack_owner=True)
                part = replace(part, path=there.path.absolute())
            found[name] = part
        return Parts(**found)

    def record(self) -> dict[str, Any]:
        """Return it as plain values; see `recorded_parts`."""
        parts = {name: getattr(self, name) for name in ROLES}
        return {
            name: {**asdict(one), "path": str(one.path)} for name, one in parts.items() if one is not None
        }


def recorded_parts(record: Mapping[str, Any]) -> Parts:
    """Return what `Parts.record` wrote."""
    found = {name: Taken(**{**one, "path": Path(one["path"])}) for name, one in record.items()}
    return Parts(*(found.get(name) for name in ROLES))


def find_parts(bundles: Bundles, model: Blip2, *, with_language: bool) -> Parts | None:
    """Find what `bundles.vision` and, for a captioner, `bundles.language` name; None where neither does.

    Each is a path or a hub id, which is downloaded unless it is in the cache.
    """
    names = [name for name in ROLES if typed(name, bundles, model) and (with_language or name != "language")]
    found = {name: find_part(name, bundles, model) for name in names}
    return Parts(*(found.get(name) for name in ROLES)) if found else None


def typed(name: str, bundles: Bundles, model: Blip2) -> str | None:
    """Return what was given for a part; of weights that timm knows, where on the hub they are."""
    given: str | None = getattr(bundles, name)
    return timm_weights_of(model.vision.timm) if name == "vision" and given == TIMM else given


def find_part(name: str, bundles: Bundles, model: Blip2) -> Taken:
    """Find one part that is given, and read what it says of itself."""
    source = typed(name, bundles, model)
    assert source is not None
    found = find_checkpoint(source, may_lack_owner=True)
    path = found.path.absolute()
    digest = folder_digest(path) if found.revision is None else f"{found.source}@{found.revision}"
    return Taken(path, found.source, digest, source, found.revision, _says(name, path, model))


def _says(name: str, path: Path, model: Blip2) -> dict[str, Any]:
    """Return the settings that a part says of itself."""
    if name == "vision":
        return image_settings(path, model)
    if name == "text":
        return bert_settings(path, model.qformer, "model.qformer").model_dump(include=_OF_BERT)
    if not (path / CONFIG_FILE).is_file():
        raise CapfiltError(
            f"{path} is no language model: it has no {CONFIG_FILE}",
            fix="give bundles.language a folder of transformers, or a hub id such as facebook/opt-125m",
        )
    return read_json(path / CONFIG_FILE)


def settle_parts(parts: Parts | None, model: Blip2) -> Blip2:
    """Return how the model is built: image encoder and language model as those that are given."""
    if parts is None:
        return model
    settled = changed(model, parts.vision.says) if parts.vision is not None else model
    if parts.text is not None:
        settled = changed(settled, {"qformer": parts.text.says})
    if parts.language is not None:
        # Replaced and not merged: what another language model's file says has no place in it.
        language = settled.language.model_copy(update={"config": parts.language.says})
        settled = settled.model_copy(update={"language": language})
    return settled


def check_language(part: Taken, model: Blip2, *, with_places: bool) -> None:
    """Refuse a language model that no captioner can be built around, without its weights.

    That is one that transformers does not build, whose tokenizer does not fit or has not one token for
    `model.language.ends_with`, or, where the queries are known, without places for the longest text.
    """
    import torch

    from capfilt.models.language_model import build_language_model, check_places
    from capfilt.models.language_vocabulary import load_language_vocabulary

    settings = settle_parts(Parts(None, part), model)
    with torch.device("meta"):
        built = build_language_model(settings.language.config)
    load_language_vocabulary(part.path, settings.language)
    if with_places:
        texts = 2 if model.family == "instructblip" else 1
        check_places(built, model.qformer.queries, settings.language.max_tokens, texts=texts)


def load_parts(parts: Parts, model: QFormer | SoftPrompted, settings: Blip2) -> None:
    """Give a model its frozen parts; `settings` are what `settle_parts` returns.

    Raises CapfiltError for files that changed since they were found, and for weights that do not fit.
    """
    from capfilt.models.prompted import SoftPrompted

    for part in (parts.vision, parts.language, parts.text):
        if part is not None and part.revision is None and folder_digest(part.path) != part.digest:
            raise CapfiltError(
                f"{part.path} changed while it was read",
                fix="give the same command again, with files that stay",
            )
    if parts.vision is not None:
        load_image_encoder(parts.vision, model, settings)
    if parts.text is not None and not isinstance(model, SoftPrompted):
        start_qformer(model, read_folder(parts.text.path).tensors, parts.text.source)
    if parts.language is not None and isinstance(model, SoftPrompted):
        _load_language(parts.language, model)


def text_vocabulary(parts: Parts | None) -> Vocabulary | None:
    """Return the vocabulary of the BERT that is started from; None where one is to be trained."""
    return bert_vocabulary(parts.text.path) if parts is not None and parts.text is not None else None


def part_vocabulary(parts: Parts | None, settings: Blip2) -> LanguageVocabulary:
    """Return the tokenizer of the language model that is given; CapfiltError where none is."""
    from capfilt.models.language_vocabulary import load_language_vocabulary

    if parts is None or parts.language is None:
        raise CapfiltError(
            "a captioner with a Q-Former writes with a language model, and none is given",
            fix="name one, e.g. --set bundles.language=facebook/opt-125m, or a folder of transformers",
        )
    return load_language_vocabulary(parts.language.path, settings.language)


def _load_language(part: Taken, model: SoftPrompted) -> None:
    own = model.language_model
    read, loading = read_by_transformers(type(own), part.path, None)
    if missing := sorted(loading["missing_keys"]):
        raise CapfiltError(
            f"{part.source} lacks {few(missing)} of the language model", fix="copy the folder again, whole"
        )
    own.load_state_dict(read.state_dict())
