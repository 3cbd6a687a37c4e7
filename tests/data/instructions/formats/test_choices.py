from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.data.instructions.reading import Reading

    Reads = Callable[..., Reading]


def test_aokvqas_choices_are_candidates_of_which_one_is_right(reads: Reads) -> None:
    found = reads("aokvqa", ["aokvqa.json"], ["train2017/000000000009.jpg"])
    (cups,) = found.examples
    assert (cups.candidates, cups.right) == (("tea", "sand", "bread", "wool"), 0)
    assert cups.parts["choices"] == "(a) tea, (b) sand, (c) bread, (d) wool"
    assert cups.outputs == cups.answers == ("tea",)
    assert found.refused == {"no_answer": 1}


def test_aokvqas_open_answers_are_those_of_ten_people(reads: Reads) -> None:
    (cups,) = reads("aokvqa_open", ["aokvqa.json"], ["000000000009.jpg"], split="train").examples
    assert (cups.candidates, cups.parts) == ((), {"question": "What could be drunk from these?"})
    assert (len(cups.answers), cups.answers.count("coffee")) == (10, 2)


def test_scienceqa_keeps_what_has_a_picture_and_its_hint(reads: Reads) -> None:
    pictures = ["test/1/image.png", "test/3/image.png", "train/4/image.png"]
    found = reads("scienceqa", ["scienceqa.json"], pictures, split="test")
    (hen,) = found.examples
    assert hen.parts == {
        "question": "Which animal lays eggs?",
        "context": "Birds lay eggs.",
        "choices": "(a) the hen, (b) the cow",
    }
    assert found.refused == {"no_picture": 1, "field_wrong": 1}
    (fern,) = reads("scienceqa", ["scienceqa.json"], pictures, split="train").examples
    assert (fern.answers, "context" in fern.parts) == (("the right one",), False)


def test_iconqas_problems_are_folders_among_the_pictures(reads: Reads, tmp_path: Path) -> None:
    problem = {
        "question": "Which row has five stars?",
        "choices": ["first", "second"],
        "answer": 1,
        "ques_type": "choose_txt",
        "grade": "kindergarten",
        "label": "S1",
    }
    for name, row in (("12", problem), ("13", {**problem, "ques_type": "choose_img"})):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        (folder / "data.json").write_text(json.dumps(row))
    (tmp_path / "images" / "14").mkdir()
    (tmp_path / "images" / "14" / "data.json").write_text("{")
    found = reads("iconqa", [], ["12/image.png", "13/image.png", "14/image.png"])
    (stars,) = found.examples
    assert (stars.id, stars.candidates, stars.right) == ("12", ("first", "second"), 1)
    assert found.refused == {"field_wrong": 1, "not_json": 1}


def test_vsr_asks_whether_a_statement_is_true_and_a_damaged_line_costs_itself(reads: Reads) -> None:
    found = reads("vsr", ["vsr.jsonl"], ["000000000009.jpg"])
    left, inside = found.examples
    assert '"The cup is left of the jug."' in left.parts["question"]
    assert (left.outputs, left.answers, left.right) == (("yes",), ("yes", "true"), 0)
    assert (inside.outputs, inside.answers, inside.right) == (("no",), ("no", "false"), 1)
    assert found.first == {"not_json": "row 2"}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_a_line_break_ends_a_line_of_json(reads: Reads, tmp_path: Path, end: str) -> None:
    texts = [f"one{odd}two" for odd in ("\u2028", "\u2029", "\x85", "\x7f", "")]
    rows = [{"id": n, "img": "img/1.png", "label": n % 2, "text": text} for n, text in enumerate(texts)]
    written = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "memes.jsonl").write_bytes(written.encode())
    found = reads("hateful_memes", [tmp_path / "memes.jsonl"], ["img/1.png"])
    assert found.refused == {}
    assert [one.id for one in found.examples] == ["0", "1", "2", "3", "4"]
    for example, text in zip(found.examples, texts, strict=True):
        assert example.parts["text"] == " ".join(text.split()), "white space of any kind is one space"


def test_the_first_candidate_of_a_meme_is_that_it_is_hateful(reads: Reads) -> None:
    found = reads("hateful_memes", ["hateful_memes.jsonl"], ["img/01234.png", "img/01235.png"])
    assert [(one.candidates, one.right, one.outputs) for one in found.examples] == [
        (("yes", "no"), 1, ("no",)),
        (("yes", "no"), 0, ("yes",)),
    ]
    assert found.examples[0].parts["text"] == "my cat on a monday"
    assert found.refused == {"no_answer": 1}
