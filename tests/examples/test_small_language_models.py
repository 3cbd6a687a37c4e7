"""Language models of the drawn world: their texts, and that capfilt and transformers read what is written."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest
import scenes
import small_language_models as language
import torch

from capfilt.models.language_vocabulary import load_language_vocabulary
from capfilt.settings import Language

if TYPE_CHECKING:
    from pathlib import Path


def test_all_lines_of_a_document_speak_of_one_scene() -> None:
    rng = random.Random(0)
    asked = 0
    for _ in range(50):
        lines = language.document(rng)
        assert language.LINES[0] <= len(lines) <= language.LINES[1]
        items = scenes.described(lines[0])
        assert items is not None
        for line in lines[1:]:
            question = next(
                (q for some in language.QUESTIONS.values() for q in some if line.startswith(q)), ""
            )
            asked += bool(question)
            said = line.removeprefix(question).split()
            if scenes.described(" ".join(said)) is not None:
                assert scenes.described(" ".join(said)) == items
            else:
                place = 0 if said[0] in scenes.COLOURS else 1
                assert sorted(said[::2]) == sorted(item[place] for item in items)
    assert asked > 20


def test_colours_and_shapes_are_named_from_left_to_right() -> None:
    scene = scenes.Scene((("red", "star"), ("blue", "circle")))
    assert language.answer(scene, "colour") == "red and blue"
    assert language.answer(scene, "shape") == "star and circle"


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_a_language_model_that_was_trained_is_read_by_transformers_and_its_tokenizer_by_capfilt(
    name: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    said: list[str] = []
    train = language.train_opt if name == "opt" else language.train_t5
    train(tmp_path / name, 0, 2, said.append)
    auto = AutoModelForCausalLM if name == "opt" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(tmp_path / name)
    assert all(weights.isfinite().all() for weights in model.parameters())
    config = json.loads((tmp_path / name / "config.json").read_text())
    ends_with = "\n" if name == "opt" else ""
    vocabulary = load_language_vocabulary(tmp_path / name, Language(config=config, ends_with=ends_with))
    ids, real = vocabulary.encode(["a picture of a red star"])
    assert real.all()
    assert vocabulary.decode(ids[0].tolist()) == "a picture of a red star"
    words = ids[0, 1:-1] if name == "opt" else ids[0, :-1]
    assert len(words) == 6
    assert ids[0, -1] == vocabulary.sep
    if name == "opt":
        assert ids[0, 0] == config["bos_token_id"]
    assert len(vocabulary) <= model.get_input_embeddings().weight.shape[0]


def test_the_same_seed_trains_the_same_language_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for name in ("one", "two"):
        language.train_opt(tmp_path / name, 3, 2, lambda _: None)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
