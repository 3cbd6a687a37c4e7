"""BLIP-2 and InstructBLIP as transformers has them, as bundles.

transformers reads its own folders: sharded, in halves of precision, with names of older versions. Every
weight then has the name that it has here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.models.cards import INSTRUCTION, Conventions, Origin
from capfilt.models.checkpoints.configs import CONFIG_FILE, preprocessor_of, read_json
from capfilt.models.checkpoints.names import few
from capfilt.models.checkpoints.qformer_configs import GENERATION, INSTRUCTED, RETRIEVAL, blip2_of

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.bundle_files import PackedOf
    from capfilt.models.cards import Kind
    from capfilt.models.checkpoints.foreign import Role
    from capfilt.models.checkpoints.hub import Found

FAMILIES = ("blip-2", "instructblip")
"""model_type of config.json."""
AS_RELEASED = Conventions(match_token="cls", min_tokens=1, max_tokens=30)
"""LAVIS: 1 to 30 tokens, no prompt for OPT, and no [ENC]."""
_TRAINS_ALONE = ("temperature", "word_head.")
"""What stage 1 has and transformers' class has not."""


def conventions_of(family: str) -> Conventions:
    """Return how a model of a family is used: InstructBLIP is asked for a caption."""
    return AS_RELEASED.model_copy(update={"prompt": INSTRUCTION}) if family == "instructblip" else AS_RELEASED


def is_qformer_folder(folder: Path) -> bool:
    """Return whether a folder of transformers holds BLIP-2 or InstructBLIP."""
    file = folder / CONFIG_FILE
    return file.is_file() and read_json(file).get("model_type") in FAMILIES


def import_qformer(found: Found, path: Path, *, role: Role) -> PackedOf[Any, Any]:
    """Read a folder of transformers as the bundle that `write()` puts at `path`.

    Blip2ForImageTextRetrieval is a filter, the two others are captioners, and InstructBLIP filters too, by
    answering. Raises CapfiltError for a role that the model has not, and for weights that are missing, by
    their names.
    """
    import torch
    import transformers
    from transformers.utils import logging

    from capfilt.models.part_files import folder_digest
    from capfilt.models.prompted import SoftPrompted
    from capfilt.models.qformer import QFormer
    from capfilt.models.qformer_bundle import READER_FOLDER, load_weights, pack_qformer

    config = read_json(found.path / CONFIG_FILE)
    settings = blip2_of(config, preprocessor_of(found.path), found.path / CONFIG_FILE)
    named = (config.get("architectures") or [None])[0]
    is_filter = named == RETRIEVAL
    kind: Kind = "filter" if is_filter else "captioner"
    answers = role == "filter" and settings.family == "instructblip"
    if role not in ("init", kind) and not answers:
        raise CapfiltError(
            f"{found.source} is a {kind} ({named})",
            fix=f"give it as --{kind}; a {role} of this family is "
            + (GENERATION if role == "captioner" else RETRIEVAL),
        )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    written_by = INSTRUCTED if settings.family == "instructblip" else GENERATION
    theirs_class = getattr(transformers, RETRIEVAL if is_filter else written_by)
    try:
        theirs, loading = theirs_class.from_pretrained(
            found.path, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise CapfiltError(
            f"{found.source} cannot be loaded: {first}", fix="copy the folder again, whole"
        ) from error
    weights = theirs.state_dict()
    missing = sorted(loading["missing_keys"])
    model: QFormer | SoftPrompted
    words = settings.qformer.vocabulary
    if is_filter:
        model = QFormer(settings, words, ("itc", "itm"))
        vocabulary: Any = _bert(found.path, words)
        reader = None
    else:
        from capfilt.models.language_vocabulary import load_language_vocabulary

        is_instructed = settings.family == "instructblip"
        model = SoftPrompted(settings, words if is_instructed else None)
        vocabulary = load_language_vocabulary(found.path, settings.language)
        reader = _bert(found.path / READER_FOLDER, words) if is_instructed else None
    missing += [n for n in model.state_dict() if n not in weights and not n.startswith(_TRAINS_ALONE)]
    if missing:
        raise CapfiltError(
            f"{found.source} lacks {few(missing)}", fix="give a checkpoint as it was written, whole"
        )
    load_weights(model, weights)
    del theirs, weights  # a language model may be most of the memory there is
    return pack_qformer(
        path,
        kind=kind,
        model=model,
        settings=settings,
        vocabulary=vocabulary,
        reader=reader,
        parent=None,
        data=None,
        training={},
        versions={},
        conventions=conventions_of(settings.family),
        origin=Origin(
            kind="transformers",
            source=found.source,
            revision=found.revision,
            sha256=folder_digest(found.path),
            left_out={},
        ),
    )


def _bert(folder: Path, words: int) -> Any:
    from capfilt.models.vocabulary import load_vocabulary

    return load_vocabulary(folder, entries=words)
