"""A language model's tokenizer reads as transformers reads it; texts begin and end as in LAVIS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from small_language import KINDS, LanguageKind, language_folder
from transformers import AutoTokenizer

from capfilt.errors import CapfiltError
from capfilt.models.language_vocabulary import LanguageVocabulary, load_language_vocabulary
from capfilt.settings import Language

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = ["a red cat", "the small green dogs run on the beach", "red", "a cat , x's </s> café\n"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("languages")
    return {kind: language_folder(kind, root / kind) for kind in KINDS}


@pytest.fixture
def load(folders: dict[str, Path]) -> Callable[..., LanguageVocabulary]:
    def read(kind: LanguageKind, ends_with: str = "") -> LanguageVocabulary:
        config = json.loads((folders[kind] / "config.json").read_text())
        return load_language_vocabulary(folders[kind], Language(config=config, ends_with=ends_with))

    return read


@pytest.mark.parametrize("kind", KINDS)
def test_words_have_the_ids_that_transformers_gives_them(
    kind: LanguageKind, folders: dict[str, Path], load: Callable[..., LanguageVocabulary]
) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(folders[kind])
    ours = load(kind)
    assert len(ours) == len(theirs)
    for text in TEXTS[:3]:
        ids, real = ours.encode([text], max_tokens=64)
        whole = theirs(text).input_ids
        assert ids[0].tolist() == (whole if kind == "t5" else [*whole, theirs.eos_token_id])
        assert real.all()
        assert ours.decode(ids[0].tolist()) == text


def test_a_text_that_spells_a_special_token_does_not_end_there(
    load: Callable[..., LanguageVocabulary],
) -> None:
    ours = load("llama")
    ids = ours.encode([TEXTS[3]], max_tokens=64)[0][0].tolist()
    assert ids.count(ours.sep) == 1
    assert ids[-1] == ours.sep
    assert ours.decode(ids) == TEXTS[3].strip()


def test_opt_begins_with_its_end_token_and_ends_with_a_line_break(
    load: Callable[..., LanguageVocabulary],
) -> None:
    ours = load("opt", "\n")
    ids, real = ours.encode(["a red cat", "x"], max_tokens=64)
    assert ids[:, 0].tolist() == [2, 2]  # </s>
    assert ours.decode([ours.sep]) == ""
    assert ours.sep not in (2, ours.pad)
    assert ids[0, -1] == ours.sep
    # Padding follows the shorter text and is not real.
    assert ids[1].tolist()[2:] == [ours.sep, *[ours.pad] * (ids.shape[1] - 3)]
    assert real[1].tolist() == [True] * 3 + [False] * (ids.shape[1] - 3)
    assert ours.prompt("") == [2]
    assert ours.prompt("a red") == ids[0, : len(ours.prompt("a red"))].tolist()


@pytest.mark.parametrize(("kind", "keeps_its_end"), [("opt", False), ("llama", False), ("t5", True)])
def test_a_long_text_is_cut_on_the_right_and_keeps_its_end_where_the_tokenizer_writes_it(
    kind: LanguageKind, keeps_its_end: bool, load: Callable[..., LanguageVocabulary]
) -> None:
    ours = load(kind)
    whole = ours.encode([TEXTS[1]], max_tokens=64)[0][0].tolist()
    cut = ours.encode([TEXTS[1]], max_tokens=5)[0][0].tolist()
    assert len(cut) == 5
    assert cut == ([*whole[:4], ours.sep] if keeps_its_end else whole[:5])


def test_what_an_encoder_reads_ends_and_what_a_decoder_goes_on_from_does_not(
    load: Callable[..., LanguageVocabulary],
) -> None:
    t5, llama = load("t5"), load("llama")
    assert t5.prompt("")[-1:] == [t5.sep] == t5.prompt("a red")[-1:]
    assert llama.prompt("") == [1]  # <s>
    assert llama.sep not in llama.prompt("a red")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_after_a_text_has_no_beginning_of_its_own(
    kind: LanguageKind, load: Callable[..., LanguageVocabulary]
) -> None:
    ours = load(kind)
    whole = ours.encode(["a red cat"], max_tokens=64)[0][0].tolist()
    output = ours.encode_output(["a red cat"], max_tokens=64)[0][0].tolist()
    assert output == whole[len(ours.begin) :]
    assert output[-1] == ours.sep


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_written_as_they_were_read_and_read_alike(
    kind: LanguageKind, tmp_path: Path, folders: dict[str, Path], load: Callable[..., LanguageVocabulary]
) -> None:
    ours = load(kind)
    ours.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folders[kind] / path.name).read_bytes() == ours.files()[path.name]
    config = json.loads((folders[kind] / "config.json").read_text())
    again = load_language_vocabulary(tmp_path, Language(config=config))
    assert again.digest == ours.digest
    assert again.encode(TEXTS)[0].equal(ours.encode(TEXTS)[0])


def test_the_digest_tells_another_end_from_the_same_files(load: Callable[..., LanguageVocabulary]) -> None:
    assert load("opt").digest != load("opt", "\n").digest


def test_an_end_of_several_tokens_is_refused(load: Callable[..., LanguageVocabulary]) -> None:
    with pytest.raises(CapfiltError, match="2 tokens of this language model") as refused:
        load("opt", "\n!")
    assert "model.language.ends_with" in refused.value.fix


def test_a_tokenizer_that_is_larger_than_its_model_is_refused(folders: dict[str, Path]) -> None:
    config = json.loads((folders["opt"] / "config.json").read_text()) | {"vocab_size": 9}
    with pytest.raises(CapfiltError, match="embeddings for 9 tokens"):
        load_language_vocabulary(folders["opt"], Language(config=config))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="holds no tokenizer"):
        load_language_vocabulary(tmp_path, Language())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model":')
    with pytest.raises(CapfiltError, match="cannot read the tokenizer"):
        load_language_vocabulary(tmp_path, Language(config={"model_type": "llama"}))


def test_the_released_opt_files_are_read_as_tokenizer_json_is(
    tmp_path: Path, folders: dict[str, Path], load: Callable[..., LanguageVocabulary]
) -> None:
    """facebook/opt-* have vocab.json and merges.txt, and say in their config that </s> comes first."""
    model = json.loads((folders["opt"] / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "".join(f"{first} {then}\n" for first, then in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "GPT2Tokenizer",
                "add_bos_token": True,
                "bos_token": "</s>",
                "eos_token": "</s>",
                "unk_token": "</s>",
                "pad_token": "<pad>",
            }
        )
    )
    config = json.loads((folders["opt"] / "config.json").read_text())
    ours = load_language_vocabulary(tmp_path, Language(config=config, ends_with="\n"))
    assert ours.encode(TEXTS)[0].equal(load("opt", "\n").encode(TEXTS)[0])
    assert sorted(ours.files()) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
