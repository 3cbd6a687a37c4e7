"""Bundles on the disk of small random models with a Q-Former: filters, and captioners of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from small_language import Family, LanguageKind, language_folder, small_prompted_bundle
from small_models import WORDS
from small_qformer import SMALL_BLIP2, small_qformer

from capfilt.models.qformer_bundle import pack_qformer
from capfilt.models.vocabulary import train_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from capfilt.models.cards import Kind, Objective
    from capfilt.settings import Blip2


def prompted_folder(kind: LanguageKind, path: Path, family: Family = "blip2") -> Path:
    """Write a captioner whose language model is of this kind; its tokenizer is left beside it."""
    reader = train_vocabulary(WORDS, 160) if family == "instructblip" else None
    made = small_prompted_bundle(
        kind, language_folder(kind, path.with_name(f"{path.name}-{kind}")), family, reader
    )
    pack_qformer(
        path,
        kind="captioner",
        model=made.model,
        settings=made.card.blip2,
        vocabulary=made.vocabulary,
        reader=reader,
        parent=None,
        data=None,
        training={},
        versions={},
    ).write()
    return path


def qformer_folder(
    path: Path,
    kind: Kind,
    objectives: Iterable[Objective],
    texts: Iterable[str] = WORDS,
    settings: Blip2 = SMALL_BLIP2,
) -> Path:
    """Write stage 1 with a vocabulary of these texts."""
    vocabulary = train_vocabulary(texts, 160)
    pack_qformer(
        path,
        kind=kind,
        model=small_qformer(objectives, len(vocabulary), settings),
        settings=settings,
        vocabulary=vocabulary,
        parent=None,
        data=None,
        training={},
        versions={},
    ).write()
    return path
