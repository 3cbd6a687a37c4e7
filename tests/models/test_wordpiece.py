"""Vocabularies that others made: read as transformers reads them, written so that it reads ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from capfilt.errors import CapfiltError
from capfilt.models.vocabulary import EXTRA, SPECIAL, Vocabulary, load_vocabulary
from capfilt.models.wordpiece import Reading, read_words

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED = Path(__file__).parents[3] / "shared" / "golden"

# As in bert-base-uncased, [PAD] is the first word and the other special ones stand a hundred words on.
SIGNS = "abcdefghijklmnopqrstuvwxyzABCÄÉäéñßçœ0123456789日本語猫あア한щняж😀🐱.,!?'\"-()[]#@&%/—…"
WHOLE = ["the", "dog", "The", "Dog", "cafe", "café", "CAFE", "running", "##ing", "##s"]
WORDS = [
    "[PAD]",
    *(f"[unused{n}]" for n in range(99)),
    *SPECIAL[1:],
    *dict.fromkeys([*SIGNS, *(f"##{sign}" for sign in SIGNS if sign.isalnum()), *WHOLE]),
]
READINGS: dict[str, dict[str, Any]] = {
    "uncased": {},
    "cased": {"do_lower_case": False},
    "uncased with accents": {"do_lower_case": True, "strip_accents": False},
    "cased without accents": {"do_lower_case": False, "strip_accents": True},
    "CJK signs in words": {"tokenize_chinese_chars": False},
}


def words_in(folder: Path, words: list[str] | None = None, **config: Any) -> Path:
    """Write what BERT is given as: vocab.txt, and how it is read where that is not BERT's default."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words or WORDS) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def by_transformers(folder: Path) -> Any:
    from transformers import AutoTokenizer, BertTokenizer

    # Without a class, AutoTokenizer would ask a config.json that a vocabulary alone does not have.
    named = (folder / "tokenizer.json").is_file()
    return (AutoTokenizer if named else BertTokenizer).from_pretrained(folder)


# -- the same ids

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    SIGNS + " \t\n\u0301\u0308\u00a0\u200b\x00ÀÑÇŒ漢字🐶¿«»ﬁ", max_size=60
)
# The name of a special token is characters for us and the token for transformers.
plain = any_text.filter(lambda text: not any(token in text for token in (*SPECIAL, *EXTRA)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Vocabulary, Any]]]:
    """Our vocabulary and transformers' tokenizers: of the files as given, and of those that we wrote."""
    found = {}
    for name, config in READINGS.items():
        given = words_in(tmp_path_factory.mktemp("given"), **config)
        ours, written = load_vocabulary(given, entries=len(WORDS) + 2), tmp_path_factory.mktemp("written")
        ours.save(written)
        again = load_vocabulary(written, entries=len(WORDS) + 2, dec=len(WORDS))
        found[name] = [(ours, by_transformers(given)), (again, by_transformers(written))]
    return found


@pytest.mark.parametrize("name", READINGS)
@settings(max_examples=150)
@given(texts=st.lists(plain, min_size=1, max_size=4))
@example(
    texts=["The Café's DOG, running… 日本語の猫 😀!", "e\u0301 E\u0308", "", "a" * 101, "a\u00a0b\x00c\td"]
)
def test_plain_texts_have_the_ids_of_transformers(
    pairs: dict[str, list[tuple[Vocabulary, Any]]], name: str, texts: list[str]
) -> None:
    for ours, theirs in pairs[name]:
        ids, real = ours.encode(texts, "cls", 512)
        expected = theirs(texts, padding=True, return_tensors="pt")
        assert ids.tolist() == expected["input_ids"].tolist()
        assert real.tolist() == expected["attention_mask"].bool().tolist()


def test_the_ways_of_reading_differ(pairs: dict[str, list[tuple[Vocabulary, Any]]]) -> None:
    text = ["CAFÉ café 日本"]
    assert len({tuple(pairs[name][0][0].encode(text, "cls", 99)[0][0].tolist()) for name in READINGS}) == 5
    assert len({pairs[name][0][0].digest for name in READINGS}) == 5


@pytest.mark.parametrize("name", READINGS)
def test_a_cut_text_is_that_of_transformers(
    pairs: dict[str, list[tuple[Vocabulary, Any]]], name: str
) -> None:
    for ours, theirs in pairs[name]:
        ids, _ = ours.encode(["the running dog " * 9], "cls", 11)
        assert ids.tolist() == [theirs("the running dog " * 9, truncation=True, max_length=11)["input_ids"]]


def test_special_tokens_have_the_ids_of_transformers_and_lie_where_the_file_has_them(
    pairs: dict[str, list[tuple[Vocabulary, Any]]],
) -> None:
    (given, _), (ours, theirs) = pairs["uncased"]
    assert (ours.pad, ours.cls, ours.sep) == (given.pad, given.cls, given.sep) == (0, 101, 102)
    assert (theirs.pad_token_id, theirs.cls_token_id, theirs.sep_token_id) == (0, 101, 102)
    assert (ours.dec, ours.enc) == (given.dec, given.enc) == (len(WORDS), len(WORDS) + 1)
    assert theirs.convert_tokens_to_ids(list(EXTRA)) == [ours.dec, ours.enc]
    assert theirs.bos_token_id == ours.dec
    assert set(theirs.all_special_tokens) == {*SPECIAL, *EXTRA}
    assert len(theirs) == len(ours) == len(WORDS) + 2


LOADS = """
import sys
from transformers import AutoTokenizer, BertTokenizer
for folder in sys.argv[1:]:
    for kind in (AutoTokenizer, BertTokenizer):
        tokenizer = kind.from_pretrained(folder)
        print(type(tokenizer).__name__, len(tokenizer), *tokenizer("the dog").input_ids)
"""


def test_transformers_loads_what_we_write_without_a_word(tmp_path: Path) -> None:
    whole, by_words = tmp_path / "whole", tmp_path / "by words"
    for folder in (whole, by_words):
        load_vocabulary(words_in(folder), entries=len(WORDS) + 2).save(folder)
    (by_words / "tokenizer.json").unlink()
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(whole), str(by_words)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default:::transformers"},
        capture_output=True,
        text=True,
        check=True,
    )
    line = f"BertTokenizer {len(WORDS) + 2} 101 {WORDS.index('the')} {WORDS.index('dog')} 102\n"
    assert done.stdout == 4 * line
    assert done.stderr == ""


@pytest.mark.parametrize("name", READINGS)
def test_a_folder_that_transformers_wrote_is_read_as_it_reads_it(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer, BertTokenizer

    ids = {word: number for number, word in enumerate(WORDS)}
    theirs = BertTokenizer(vocab=ids, **READINGS[name])
    assert len(theirs) == len(WORDS)
    theirs("the dog", truncation=True, max_length=3, padding="max_length")
    theirs.save_pretrained(tmp_path)
    ours = load_vocabulary(tmp_path, entries=len(WORDS) + 2, dec=len(WORDS))
    texts = ["The Café's DOG, running… 日本語の猫 😀!", "Äé"]
    expected = AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"]
    found, real = ours.encode(texts, "cls", 99)
    assert [row[kept].tolist() for row, kept in zip(found, real, strict=True)] == expected
    assert ours.digest == load_vocabulary(words_in(tmp_path / "plain", **READINGS[name])).digest


def test_tokenizer_config_has_the_last_word_as_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    load_vocabulary(words_in(tmp_path / "given")).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"do_lower_case": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    found = load_vocabulary(tmp_path)
    assert found.reading == Reading(lowercase=False)
    expected = AutoTokenizer.from_pretrained(tmp_path)("The Dog")["input_ids"]
    assert found.encode(["The Dog"], "cls", 9)[0].tolist() == [expected]
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_vocabulary(tmp_path).reading == Reading()


def test_words_that_a_file_looks_for_in_the_text_itself_are_kept(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertTokenizer

    theirs = BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})
    theirs.add_tokens(["<place>"])
    theirs.add_special_tokens({"bos_token": "[DEC]", "extra_special_tokens": ["[ENC]"]})
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_vocabulary(tmp_path / "theirs", entries=len(WORDS) + 3, dec=len(WORDS) + 1)
    ours.save(tmp_path)
    for folder in (tmp_path / "theirs", tmp_path):
        expected = AutoTokenizer.from_pretrained(folder)("the <place>dog")["input_ids"]
        assert expected[1:3] == [WORDS.index("the"), len(WORDS)]
        assert ours.encode(["the <place>dog"], "cls", 20)[0].tolist() == [expected]


@settings(max_examples=150)
@given(numbers=st.lists(st.integers(100, len(WORDS) + 1), max_size=30))
@example(numbers=[WORDS.index(word) for word in ("the", "dog", "'", "##s", ",", "'", "'", "##ing", "!", "'")])
def test_ids_are_written_as_by_transformers(
    pairs: dict[str, list[tuple[Vocabulary, Any]]], numbers: list[int]
) -> None:
    ours, theirs = pairs["uncased"][1]
    assert theirs.clean_up_tokenization_spaces
    # A caption begins with a word; transformers keeps the mark of a piece without one, and outer blanks.
    expected = theirs.decode(numbers, skip_special_tokens=True).strip().removeprefix("##")
    assert ours.decode(numbers) == expected


def test_a_genitive_comes_back_as_it_was_written(pairs: dict[str, list[tuple[Vocabulary, Any]]]) -> None:
    ours, _ = pairs["uncased"][0]
    assert ours.decode(ours.prompt("the dog's, the dog!")) == "the dog's, the dog!"


# -- the released code


@pytest.fixture
def golden() -> Vocabulary:
    if not SHARED.is_dir():
        pytest.skip("the golden numbers are not beside the repository")
    return load_vocabulary(SHARED / "tokenizer", entries=202, dec=200)


def test_the_golden_vocabulary_has_its_ids(golden: Vocabulary) -> None:
    assert (golden.pad, golden.cls, golden.sep, golden.dec, golden.enc) == (0, 2, 3, 200, 201)
    assert len(golden) == 202


@pytest.mark.parametrize(
    ("name", "step", "longest"),
    [
        ("blip_pretrain", "step1", 30),
        ("blip_pretrain", "step2", 30),
        ("blip_retrieval", None, 35),
        ("blip_itm", None, 35),
    ],
)
def test_texts_have_the_ids_of_the_released_code_and_are_cut_as_there(
    golden: Vocabulary, name: str, step: str | None, longest: int
) -> None:
    from safetensors.torch import load_file

    captions = json.loads((SHARED / name / "inputs.json").read_text(encoding="utf-8"))["captions"]
    inputs, before = load_file(SHARED / name / "inputs.safetensors"), f"{step}." if step else ""
    expected, mask = inputs[f"{before}input_ids"], inputs[f"{before}attention_mask"].bool()
    ids, real = golden.encode(captions[step] if step else captions, "cls", longest)
    width = ids.shape[1]
    assert ids.tolist() == expected[:, :width].tolist()
    assert real.tolist() == mask[:, :width].tolist()
    assert not mask[:, width:].any()


@pytest.mark.parametrize("kind", ["prompted", "unprompted"])
def test_captions_have_the_ids_of_the_released_captioner(golden: Vocabulary, kind: str) -> None:
    from safetensors.torch import load_file

    folder = SHARED / "blip_decoder"
    captions = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))["captions"][kind]
    expected = load_file(folder / "expected.safetensors")
    ids, real = golden.encode(captions, "dec", 40)
    assert ids.tolist() == expected[f"lm_{kind}.input_ids"].tolist()
    assert real.tolist() == expected[f"lm_{kind}.attention_mask"].bool().tolist()


def test_generated_ids_are_written_as_by_the_released_captioner(golden: Vocabulary) -> None:
    from safetensors.torch import load_file

    folder = SHARED / "blip_decoder"
    sequences = load_file(folder / "expected.safetensors")
    runs = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))["generate"]
    prompt = "a picture of "
    seen = 0
    for name, run in runs.items():
        assert golden.prompt(prompt) == run.get("prompt_ids", [200, 5, 20, 8])
        if f"{name}.sequences" not in sequences:
            continue
        for row, caption in zip(sequences[f"{name}.sequences"].tolist(), run["captions"], strict=True):
            assert golden.decode(row)[len(prompt) :] == caption
            seen += 1
    assert seen >= 40


# -- what a model asks for


def test_a_vocabulary_without_room_for_blips_tokens_names_what_begins_a_caption(tmp_path: Path) -> None:
    found = load_vocabulary(words_in(tmp_path), entries=len(WORDS), dec=101)
    assert len(found) == len(WORDS)
    assert (found.dec, found.enc) == (101, None)
    assert found.encode(["the dog"], "dec", 9)[0].tolist() == found.encode(["the dog"], "cls", 9)[0].tolist()
    assert found.prompt("the") == [101, WORDS.index("the")]
    with pytest.raises(CapfiltError, match=r"no \[ENC\]") as refused:
        found.encode(["the dog"], "enc", 9)
    assert "--set filter.match_token=cls" in refused.value.fix
    (tmp_path / "again").mkdir()
    found.save(tmp_path / "again")
    again = load_vocabulary(tmp_path / "again", entries=len(WORDS), dec=101)
    assert (len(again), again.dec, again.enc) == (len(WORDS), 101, None)
    assert len(by_transformers(tmp_path / "again")) == len(WORDS)


def test_a_filter_needs_no_token_that_begins_a_caption(tmp_path: Path) -> None:
    found = load_vocabulary(words_in(tmp_path), entries=len(WORDS))
    assert found.encode(["the dog"], "cls", 9)[0].shape == (1, 4)
    with pytest.raises(CapfiltError, match="no token that begins a caption") as refused:
        found.prompt("the")
    assert "bos_token_id" in refused.value.fix


@pytest.mark.parametrize(
    ("more", "entries", "dec", "says"),
    [
        (0, -1, None, r"and \[DEC\] and \[ENC\]; the model has embeddings for -1$"),
        (0, 3, None, r"and \[DEC\] and \[ENC\]; the model has embeddings for 3$"),
        (2, 0, None, r"entries; the model has embeddings for 0$"),
        (0, 0, 30522, "id 30522, which is none of them"),
        (0, 0, -1, "id -1, which is none of them"),
        (0, 2, 101, "begins captions with id 101"),
        (2, 2, 101, "begins captions with id 101"),
    ],
)
def test_a_vocabulary_that_does_not_fit_its_model_is_refused_by_file_and_number(
    tmp_path: Path, more: int, entries: int, dec: int | None, says: str
) -> None:
    # Numbers of entries are those besides BERT's.
    words_in(tmp_path, [*WORDS, *EXTRA[:more]])
    with pytest.raises(CapfiltError) as refused:
        load_vocabulary(tmp_path, entries=len(WORDS) + entries, dec=dec)
    numbers = refused.value.what.replace(f"for {len(WORDS) + entries}", f"for {entries}")
    assert str(tmp_path / "vocab.txt") in refused.value.what
    assert re.search(says, numbers)
    assert "the tokenizer it was trained with" in refused.value.fix


@pytest.mark.parametrize("token", [*SPECIAL, *EXTRA])
def test_a_vocabulary_that_lacks_a_special_token_is_refused_by_its_name(tmp_path: Path, token: str) -> None:
    words_in(tmp_path, [word for word in [*WORDS, *EXTRA] if word != token])
    with pytest.raises(CapfiltError, match=rf"vocab\.txt lacks \{token[:-1]}\]") as refused:
        load_vocabulary(tmp_path)
    assert "BERT" in refused.value.fix


# -- files that cannot be used


def saved(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    load_vocabulary(words_in(folder)).save(folder)
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(values)
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_refused_with_its_mend(tmp_path: Path, name: str, content: bytes) -> None:
    load_vocabulary(words_in(tmp_path)).save(tmp_path)
    (tmp_path / name).write_bytes(content)
    if name == "tokenizer_config.json" and content == b"{}":
        assert read_words(tmp_path).reading == Reading()
        return
    with pytest.raises(CapfiltError, match=rf"{name} cannot be read") as refused:
        load_vocabulary(tmp_path)
    assert "with its tokenizer" in refused.value.fix


def test_a_vocabulary_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(CapfiltError, match=r"vocab\.txt cannot be read"):
        load_vocabulary(tmp_path)


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CapfiltError, match=r"neither tokenizer\.json nor vocab\.txt") as refused:
            load_vocabulary(folder)
        assert "with its tokenizer" in refused.value.fix


def test_a_word_that_stands_twice_is_refused_by_its_lines(tmp_path: Path) -> None:
    words_in(tmp_path, [*SPECIAL, "dog", "cat", "dog"])
    with pytest.raises(CapfiltError, match="'dog' in line 6 and in line 8"):
        load_vocabulary(tmp_path)


@pytest.mark.parametrize("lines", ["\n", "\r\n"])
def test_lines_may_end_as_they_do_anywhere(tmp_path: Path, lines: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(lines.join(WORDS).encode())
    assert read_words(tmp_path).words == WORDS


def test_an_id_without_a_word_is_refused(tmp_path: Path) -> None:
    def skip(values: dict[str, Any]) -> None:
        del values["model"]["vocab"]["dog"]

    with pytest.raises(CapfiltError, match=rf"no word of its own for id {WORDS.index('dog')}"):
        load_vocabulary(saved(tmp_path, skip))


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(normalizer={"type": "Lowercase"}),
        lambda values: values.update(normalizer=None),
        lambda values: values.update(pre_tokenizer={"type": "Whitespace"}),
        lambda values: values["model"].update(continuing_subword_prefix="@@"),
        lambda values: values["model"].update(unk_token="[PAD]"),
        lambda values: values["model"].update(max_input_chars_per_word=5),
        lambda values: values.update(
            model={"type": "WordLevel", "vocab": values["model"]["vocab"], "unk_token": "[UNK]"}
        ),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(CapfiltError, match=r"tokenizer\.json is a tokenizer of another kind") as refused:
        load_vocabulary(saved(tmp_path, change))
    assert "the tokenizer it was trained with" in refused.value.fix


@pytest.mark.parametrize(
    "config", [{"do_lower_case": None}, {"strip_accents": "no"}, {"tokenize_chinese_chars": 1}]
)
def test_a_setting_that_is_neither_true_nor_false_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(CapfiltError, match=rf"tokenizer_config\.json: {next(iter(config))} is") as refused:
        load_vocabulary(words_in(tmp_path, **config))
    assert "true or false" in refused.value.fix


# -- digest


def test_the_digest_is_of_words_and_reading_whatever_the_file(tmp_path: Path) -> None:
    plain = load_vocabulary(words_in(tmp_path / "plain"))
    plain.save(tmp_path)
    assert load_vocabulary(tmp_path).digest == plain.digest
    spelt_out = words_in(tmp_path / "spelt out", do_lower_case=True, strip_accents=True)
    assert load_vocabulary(spelt_out).digest == plain.digest
    swapped = [*WORDS[:-2], WORDS[-1], WORDS[-2]]
    assert load_vocabulary(words_in(tmp_path / "swapped", swapped)).digest != plain.digest
    fewer = load_vocabulary(words_in(tmp_path / "fewer"), entries=len(WORDS), dec=101)
    assert fewer.digest != plain.digest
