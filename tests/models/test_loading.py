"""A filter is told nothing that it does not read: what is recorded of its reading changed its scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from small_language import language_folder, small_prompted, small_structure
from small_models import pictures, small_med, small_packed
from small_qformer import SMALL_BLIP2, small_qformer

from capfilt.errors import CapfiltError
from capfilt.models import foreign_bundle
from capfilt.models.language_vocabulary import load_language_vocabulary
from capfilt.models.loading import filter_of
from capfilt.models.qformer_bundle import pack_qformer
from capfilt.settings import Matching

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.vocabulary import Vocabulary

OWN = """
from capfilt.records import Scores

class Mine:
    def score(self, batch, texts):
        return [[Scores(itc=0.5) for _ in mine] for mine in texts]

def filter(device, precision):
    return Mine()
"""


def a_filter(kind: str, folder: Path, vocabulary: Vocabulary) -> Path:
    """Write a filter of a kind and return its bundle."""
    common: dict[str, Any] = {"parent": None, "data": None, "training": {}, "versions": {}}
    path = folder / "filter"
    words = len(vocabulary)
    if kind == "blip":
        small_packed(path, "filter", small_med(["itc", "itm"], words), vocabulary).write()
    elif kind == "blip2":
        model = small_qformer(["itc", "itm"], words)
        pack_qformer(
            path, kind="filter", model=model, settings=SMALL_BLIP2, vocabulary=vocabulary, **common
        ).write()
    elif kind == "instructblip":
        language = language_folder("llama", folder / "language")
        structure = small_structure("llama", language, "instructblip")
        pack_qformer(
            path,
            kind="captioner",
            model=small_prompted(structure, words),
            settings=structure,
            vocabulary=load_language_vocabulary(language, structure.language),
            reader=vocabulary,
            **common,
        ).write()
    else:
        file = folder / "mine.py"
        file.write_text(OWN)
        foreign_bundle.take(file, foreign_bundle.describe(file, "filter"), path)
    return path


CHOICES = {
    "match_token": Matching(match_token="cls"),
    "clean_up": Matching(clean_up="blip"),
    "question": Matching(question="is it {text} ?"),
}


@pytest.mark.parametrize(
    ("kind", "reads"),
    [
        ("blip", {"match_token", "clean_up"}),
        ("blip2", {"match_token", "clean_up"}),
        ("instructblip", {"question"}),
        ("python", set[str]()),
    ],
)
def test_a_choice_that_a_filter_does_not_read_is_refused(
    kind: str, reads: set[str], tmp_path: Path, vocabulary: Vocabulary
) -> None:
    bundle = a_filter(kind, tmp_path, vocabulary)
    for name, chosen in CHOICES.items():
        if name in reads:
            [[scores]] = filter_of(bundle, "cpu", "fp32", chosen).score(pictures(1), [["a red"]])
            assert scores.measured()
        else:
            with pytest.raises(CapfiltError, match=f"filter.{name} is .* {kind} does not read") as refused:
                filter_of(bundle, "cpu", "fp32", chosen)
            assert refused.value.fix.startswith(f"leave filter.{name} out")
            assert all(f"filter.{one}" in refused.value.fix for one in reads)
