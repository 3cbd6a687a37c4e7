from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.data.instructions.reading import Reading

    Reads = Callable[..., Reading]

VQA = ["vqa_questions.json", "vqa_annotations.json"]


@pytest.mark.parametrize(
    "picture",
    ["COCO_val2014_000000000007.jpg", "val2014/COCO_val2014_000000000007.jpg", "000000000007.jpg"],
)
def test_vqas_questions_meet_their_annotations_by_number(reads: Reads, tmp_path: Path, picture: str) -> None:
    found = reads("vqa", VQA, [picture])
    colour, windy = found.examples
    assert (colour.id, colour.image) == ("7000", tmp_path / "images" / picture)
    assert colour.parts == {"question": "What colour is the kite?"}
    assert colour.answers == ("orange", *["red"] * 8, "dark red")
    # Nobody learns to say nothing, but one of ten said so, and counts.
    assert (windy.outputs, windy.answers) == (("yes",) * 9, ("yes",) * 9 + ("",))
    assert found.refused == {"no_answer": 1, "picture_missing": 1, "no_question": 1}
    assert found.first["no_question"] == "annotation of question 9999"


def test_a_question_is_learnt_from_the_answer_that_most_people_gave(reads: Reads) -> None:
    found = reads("vqa", VQA, ["COCO_val2014_000000000007.jpg"], learns="question")
    colour = found.examples[0]
    assert colour.parts == {"answer": "red"}
    assert colour.outputs == colour.answers == ("What colour is the kite?",)


def test_vizwiz_is_a_list_of_questions_with_ten_answers(reads: Reads) -> None:
    found = reads("vizwiz", ["vizwiz.json"], ["val/VizWiz_val_00000001.jpg", "VizWiz_val_00000002.jpg"])
    (can,) = found.examples
    assert can.answers == ("beans",) * 6 + ("unanswerable",) * 4
    assert found.refused == {"no_answer": 1}


def test_gqas_questions_are_named_by_their_keys(reads: Reads) -> None:
    found = reads("gqa", ["gqa.json"], ["images/2405722.jpg"])
    (cup,) = found.examples
    assert (cup.id, cup.answers) == ("05515938", ("no",))
    assert cup.parts == {"question": "Is the cup to the left of the jug?"}
    assert found.first == {"no_answer": "question 05515940: answer"}


def test_textvqa_is_given_the_words_that_ocr_found_where_they_are(reads: Reads) -> None:
    pictures = ["ab12.jpg", "cd34.jpg"]
    found = reads("textvqa", ["textvqa.json", "rosetta_ocr.json"], pictures)
    shop, bottle = found.examples
    assert shop.parts == {"question": "When is the shop open?", "ocr": "OPEN LATE"}
    assert shop.answers == ("late",) * 7 + ("open late",) * 3
    assert bottle.parts == {"question": "What is in the bottle?"}
    assert found.refused == {"no_answer": 1}
    without = reads("textvqa", ["textvqa.json"], pictures, split="train")
    assert without.examples[0].parts == {"question": "When is the shop open?"}


def test_a_book_of_ocr_vqa_has_several_questions_and_belongs_to_a_split(reads: Reads) -> None:
    pictures = ["0123456789.gif", "0987654321.jpg"]
    found = reads("ocr_vqa", ["ocr_vqa.json"], pictures)
    assert [(example.id, example.answers) for example in found.examples] == [
        ("0123456789/1", ("Ada Reed",)),
        ("0123456789/2", ("The Quiet Harbour",)),
        ("0987654321/1", ("No",)),
    ]
    assert found.refused == {"field_wrong": 1}
    assert [one.id for one in reads("ocr_vqa", ["ocr_vqa.json"], pictures, split="test").examples] == [
        "0987654321/1"
    ]
