from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from transformers import BertTokenizer

from capfilt.errors import CapfiltError
from capfilt.models.vocabulary import EXTRA, SPECIAL, Vocabulary, load_vocabulary, train_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXTS = [
    "A red circle above a blue square, slowly turning.",
    "the cat's 3 kittens sleep under the table",
    "dogs run quickly; dogs bark loudly!",
    "слон идёт по дороге",
    "日本語の猫",
    "café façade naïve",
]


@pytest.fixture(scope="module")
def learnt() -> Vocabulary:
    return train_vocabulary(TEXTS, 400)


def words(vocabulary: Vocabulary, folder: Path) -> list[str]:
    vocabulary.save(folder)
    return (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()


FILES = {"tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"}


def files(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.is_file()
    }


# -- training

TRAIN = """
import json, pathlib, sys
from capfilt.models.vocabulary import train_vocabulary
train_vocabulary(json.loads(sys.stdin.read()), 120).save(pathlib.Path(sys.argv[1]))
"""


def test_the_same_texts_give_the_same_bytes_in_any_order_and_every_process(tmp_path: Path) -> None:
    few = ["cat", "dog", "tree", "bigger", "biggest", "runs", "running", "red"]
    texts = [" ".join(random.Random(n).choices(few, k=6)) for n in range(60)]
    found = []
    for seed in ("0", "77"):
        folder = tmp_path / seed
        folder.mkdir()
        random.Random(seed).shuffle(texts)
        subprocess.run(
            [sys.executable, "-c", TRAIN, str(folder)],
            input=json.dumps(texts),
            env={**os.environ, "PYTHONHASHSEED": seed},
            text=True,
            check=True,
        )
        found.append(files(folder))
    assert set(found[0]) == FILES
    assert found[0] == found[1]


def test_special_tokens_stand_where_blip_has_them(learnt: Vocabulary, tmp_path: Path) -> None:
    entries = words(learnt, tmp_path)
    assert tuple(entries[:5]) == SPECIAL
    assert tuple(entries[-2:]) == EXTRA
    assert (learnt.pad, learnt.cls, learnt.sep) == (0, 2, 3)
    assert (learnt.dec, learnt.enc) == (len(learnt) - 2, len(learnt) - 1)
    assert len(entries) == len(set(entries)) == len(learnt)


@pytest.mark.parametrize("size", [16, 60, 400])
def test_a_vocabulary_keeps_to_its_size(size: int) -> None:
    assert len(train_vocabulary(TEXTS, size)) <= size


def test_frequent_words_become_one_piece_and_rare_ones_are_read_in_pieces(tmp_path: Path) -> None:
    vocabulary = train_vocabulary(["elephant elephant elephant ant hat"] * 5, 60)
    entries = words(vocabulary, tmp_path)
    assert "elephant" in entries
    ids, _ = vocabulary.encode(["elephant"], "cls", 20)
    assert ids.shape == (1, 3)
    pieces = [
        entries[number] for number in vocabulary.encode(["hatelephant"], "cls", 20)[0][0, 1:-1].tolist()
    ]
    assert "[UNK]" not in pieces
    assert pieces[0] + "".join(piece.removeprefix("##") for piece in pieces[1:]) == "hatelephant"
    assert all(piece.startswith("##") for piece in pieces[1:])


def test_there_is_a_vocabulary_without_any_text() -> None:
    vocabulary = train_vocabulary([], 100)
    assert len(vocabulary) == len(SPECIAL) + len(EXTRA)
    assert vocabulary.encode(["a cat"], "cls", 9)[0].tolist() == [[2, 1, 1, 3]]


any_text = st.text(st.characters(), max_size=30)
"""Of any characters there are, lone surrogates and private ones too."""


@settings(max_examples=60)
@given(st.lists(any_text, max_size=6), st.lists(any_text, min_size=1, max_size=3))
def test_whatever_is_learnt_and_read_every_id_has_its_place(learnt_from: list[str], texts: list[str]) -> None:
    vocabulary = train_vocabulary(learnt_from, 60)
    assert sorted(vocabulary._tokenizer.get_vocab().values()) == list(range(len(vocabulary)))
    for first in ("cls", "enc", "dec"):
        ids, real = vocabulary.encode(texts, first, 12)
        assert ids.shape == real.shape
        assert 0 <= int(ids.min()) <= int(ids.max()) < len(vocabulary)
        special = {0, 2, 3, 4, vocabulary.dec, vocabulary.enc}
        for row, counts in zip(ids.tolist(), real.tolist(), strict=True):
            length = sum(counts)
            assert counts == [True] * length + [False] * (len(row) - length)
            assert row[length - 1] == vocabulary.sep
            assert not special & set(row[1 : length - 1])
            assert set(row[length:]) <= {vocabulary.pad}


# -- reading


@pytest.mark.parametrize(
    "text", ["a red circle above a blue square", "dogs bark loudly!", "слон идет", "cafe facade"]
)
def test_a_text_of_known_words_comes_back(learnt: Vocabulary, text: str) -> None:
    ids, _ = learnt.encode([text], "cls", 40)
    assert learnt.decode(ids[0].tolist()) == text


def test_case_and_accents_are_not_read(learnt: Vocabulary) -> None:
    plain, _ = learnt.encode(["cafe dogs"], "cls", 20)
    assert learnt.encode(["CAFÉ Dogs"], "cls", 20)[0].tolist() == plain.tolist()


@pytest.mark.parametrize(("first", "token"), [("cls", "[CLS]"), ("enc", "[ENC]"), ("dec", "[DEC]")])
def test_a_text_begins_with_the_token_of_who_reads_it(
    learnt: Vocabulary, tmp_path: Path, first: str, token: str
) -> None:
    entries = words(learnt, tmp_path)
    ids, real = learnt.encode(["dogs", "dogs bark"], first, 20)
    assert [[entries[number] for number in row] for row in ids.tolist()] == [
        [token, "dogs", "[SEP]", "[PAD]"],
        [token, "dogs", "bark", "[SEP]"],
    ]
    assert real.tolist() == [[True, True, True, False], [True] * 4]


@pytest.mark.parametrize("most", [4, 5, 9])
def test_a_text_that_is_cut_keeps_its_end(learnt: Vocabulary, most: int) -> None:
    whole, _ = learnt.encode(["dogs run " * 30], "enc", 100)
    cut, real = learnt.encode(["dogs run " * 30], "enc", most)
    assert cut.tolist() == [[*whole[0, : most - 1].tolist(), learnt.sep]]
    assert bool(real.all())


@pytest.mark.parametrize("text", ["", " \t\n", "\x00\x07\x1b", "\u200b\ufeff"])
def test_a_text_of_nothing_visible_is_its_two_ends(learnt: Vocabulary, text: str) -> None:
    ids, real = learnt.encode([text], "cls", 20)
    assert ids.tolist() == [[learnt.cls, learnt.sep]]
    assert bool(real.all())
    assert learnt.decode(ids[0].tolist()) == ""


def test_no_texts_are_no_rows(learnt: Vocabulary) -> None:
    ids, real = learnt.encode([], "cls", 20)
    assert len(ids) == len(real) == 0


@pytest.mark.parametrize("token", [*SPECIAL, *EXTRA])
def test_the_name_of_a_special_token_in_a_text_is_read_as_written(learnt: Vocabulary, token: str) -> None:
    ids, _ = learnt.encode([f"dogs {token} bark"], "cls", 30)
    inner = ids[0, 1:-1].tolist()
    assert not {0, 2, 3, 4, learnt.dec, learnt.enc} & set(inner)
    assert len(inner) > 4  # brackets and letters
    assert set(learnt.prompt(f"a {token}")[1:]).isdisjoint({0, 2, 3, 4, learnt.dec, learnt.enc})


def test_control_characters_are_not_read(learnt: Vocabulary) -> None:
    assert (
        learnt.encode(["do\x00gs\x1b bark"], "cls", 20)[0].tolist()
        == learnt.encode(["dogs bark"], "cls", 20)[0].tolist()
    )


def test_other_scripts_and_lone_surrogates_are_read_or_unknown_but_never_refused(learnt: Vocabulary) -> None:
    ids, real = learnt.encode(["日本語", "ελληνικά", "\ud800 dogs", "🐱🐶", "ﷺ" * 50], "cls", 20)
    assert bool(real[:, :3].all())
    assert learnt.decode(ids[0].tolist()) == "日 本 語"  # each sign is a word, as in BERT
    assert learnt.decode(ids[2].tolist()) == "dogs"


# -- writing


def test_special_tokens_are_no_part_of_a_text(learnt: Vocabulary) -> None:
    (dogs, bark) = learnt.prompt("dogs bark")[1:]
    assert learnt.decode([learnt.dec, dogs, learnt.pad, bark, learnt.sep, learnt.enc]) == "dogs bark"


def test_a_piece_that_continues_no_word_is_written_without_its_mark(tmp_path: Path) -> None:
    vocabulary = train_vocabulary(["ab ac abc"], 60)
    entries = words(vocabulary, tmp_path)
    piece = entries.index("##c")
    assert vocabulary.decode([piece]) == "c"
    assert vocabulary.decode([vocabulary.dec, piece, entries.index("a"), piece]) == "c ac"


def test_a_prompt_begins_and_does_not_end(learnt: Vocabulary) -> None:
    assert learnt.prompt("") == [learnt.dec]
    assert learnt.prompt("dogs bark") == [
        learnt.dec,
        *learnt.encode(["dogs bark"], "cls", 9)[0][0, 1:-1].tolist(),
    ]


# -- on disk


@pytest.fixture
def saved(learnt: Vocabulary, tmp_path: Path) -> Iterator[Path]:
    learnt.save(tmp_path)
    return tmp_path


def test_a_saved_vocabulary_reads_and_saves_as_before(
    learnt: Vocabulary, saved: Path, tmp_path: Path
) -> None:
    again = load_vocabulary(saved)
    texts = [*TEXTS, "dogs [SEP] bark", "\x00", "unbekannte Wörter"]
    assert again.encode(texts, "enc", 30)[0].tolist() == learnt.encode(texts, "enc", 30)[0].tolist()
    (tmp_path / "again").mkdir()
    again.save(tmp_path / "again")
    assert files(tmp_path / "again") == {name: files(saved)[name] for name in FILES}
    assert again.digest == learnt.digest


def test_what_a_file_asks_for_around_a_text_is_not_taken_over(learnt: Vocabulary, saved: Path) -> None:
    values = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    values["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    values["padding"] = {
        "strategy": {"Fixed": 40},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    (saved / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    assert values["post_processor"]["single"][0] == {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    ids, _ = load_vocabulary(saved).encode(["dogs run quickly and bark"], "cls", 30)
    assert ids.tolist() == learnt.encode(["dogs run quickly and bark"], "cls", 30)[0].tolist()


def test_a_vocabulary_without_blips_tokens_is_refused(saved: Path) -> None:
    text = (saved / "tokenizer.json").read_text(encoding="utf-8").replace("[ENC]", "[END]")
    (saved / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(CapfiltError, match=r"lacks \[ENC\]") as refused:
        load_vocabulary(saved)
    assert "bundle" in refused.value.fix


def test_berts_vocabulary_gets_dec_alone_where_the_model_has_room_for_one_word(
    learnt: Vocabulary, tmp_path: Path
) -> None:
    bert = words(learnt, tmp_path)[: -len(EXTRA)]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/vocab.txt").write_text("\n".join(bert), encoding="utf-8")
    for room, expected in ((1, (len(bert), None)), (2, (len(bert), len(bert) + 1))):
        found = load_vocabulary(tmp_path / "bert", entries=len(bert) + room)
        assert (found.dec, found.enc) == expected


def test_blip2s_vocabulary_has_dec_alone_and_an_image_that_no_model_reads(
    learnt: Vocabulary, tmp_path: Path
) -> None:
    bert = words(learnt, tmp_path)[: -len(EXTRA)]
    # As transformers writes the tokenizer of a BLIP-2: [DEC] after BERT's words, and an <image> after that.
    theirs = BertTokenizer(vocab={word: number for number, word in enumerate(bert)})
    theirs.add_special_tokens({"bos_token": "[DEC]"})
    theirs.add_tokens(["<image>"], special_tokens=True)
    theirs.save_pretrained(tmp_path)
    found = load_vocabulary(tmp_path, entries=len(bert) + 1)
    assert (len(found), found.dec, found.enc) == (len(bert) + 1, len(bert), None)
    assert found.encode(TEXTS[:1], "cls", 60)[0].tolist() == theirs(TEXTS[:1]).input_ids
    assert "<image>" not in found.files()["tokenizer.json"].decode()
    found.save(tmp_path)
    assert load_vocabulary(tmp_path, entries=len(found), dec=found.dec).digest == found.digest
    with pytest.raises(CapfiltError, match=r"no \[ENC\]"):
        found.encode(TEXTS, "enc", 20)
    with pytest.raises(CapfiltError, match=r"lacks \[ENC\]"):
        load_vocabulary(tmp_path, entries=len(bert) + 2)
