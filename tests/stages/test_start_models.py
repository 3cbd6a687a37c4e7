"""What of the settings holds where a training starts from a model, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.settings import Blip2, Bootstrap, Language, QFormer
from capfilt.stages.start_models import built_like, check_built_alike, check_start

START = Blip2(
    qformer=QFormer(queries=3, places=40, max_tokens=20),
    language=Language(config={"model_type": "opt"}, max_tokens=30, ends_with="\n"),
)


def start(model: Blip2) -> Any:
    return SimpleNamespace(path=Path("START"), card=SimpleNamespace(blip2=model, is_qformer=True))


def test_lengths_of_texts_and_dropout_are_the_settings_and_the_rest_is_the_start_models() -> None:
    qformer = QFormer(max_tokens=36, dropout=0.3)
    asked = Blip2(family="instructblip", qformer=qformer, language=Language(max_tokens=128))
    own = built_like(start(START), asked, is_new=False)
    expected = {
        "family": "instructblip",
        "qformer": {"max_tokens": 36, "dropout": 0.3},
        "language": {"max_tokens": 128},
    }
    assert own == changed(START, expected)


def test_an_end_that_is_named_is_taken_and_another_language_model_brings_its_own() -> None:
    asked = Blip2(qformer=QFormer(max_tokens=36), language=Language(ends_with="."))
    assert built_like(start(START), asked, is_new=False).language.ends_with == "."
    assert built_like(start(START), asked, is_new=True).language == asked.language


def test_texts_for_which_the_start_model_has_no_places_are_refused() -> None:
    with pytest.raises(CapfiltError, match="is 41, and START has 40 places") as refused:
        built_like(start(START), Blip2(qformer=QFormer(max_tokens=41)), is_new=False)
    assert "to 40 at most" in refused.value.fix


def test_sizes_that_were_chosen_must_be_those_of_the_start_model() -> None:
    card: Any = start(START).card
    check_built_alike(Blip2(), card, "START")
    check_built_alike(
        Blip2(qformer=QFormer(queries=3, vocabulary=100, max_tokens=9, dropout=0.3)), card, "START"
    )
    other = changed(Blip2(), {"images": {"size_px": 448}, "qformer": {"queries": 7}})
    with pytest.raises(CapfiltError, match="START is built otherwise") as refused:
        check_built_alike(other, card, "START")
    assert "model.images.size_px is 448 here and 224 there" in refused.value.what
    assert "model.qformer.queries is 7 here and 3 there" in refused.value.what


def test_parts_for_a_model_from_nothing_are_refused_unless_a_further_round_takes_them() -> None:
    settings = changed(Bootstrap(), {"bundles": {"init": "START", "vision": "a", "text": "b"}})
    with pytest.raises(CapfiltError, match=r"bundles\.vision and bundles\.text are for a model from nothing"):
        check_start(settings)
    check_start(changed(settings, {"rounds": 2}))
    check_start(changed(settings, {"bundles": {"init": None}}))
