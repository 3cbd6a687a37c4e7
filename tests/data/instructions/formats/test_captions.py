from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.data.instructions.reading import Reading

    Reads = Callable[..., Reading]


def test_captions_of_coco_are_gathered_by_picture_and_damaged_ones_cost_no_other(
    reads: Reads, tmp_path: Path
) -> None:
    found = reads(
        "coco_captions",
        ["coco_captions.json"],
        ["val2014/COCO_val2014_000000000007.jpg", "000000000009.jpg", "000000000010.jpg"],
    )
    kite, cups = found.examples
    assert kite.image == tmp_path / "images/val2014/COCO_val2014_000000000007.jpg"
    assert kite.outputs == kite.answers == ("A red kite over a hill.", "Someone flies a kite.")
    assert (cups.id, cups.outputs, cups.parts) == ("9", ("Two cups on a shelf.",), {})
    assert found.refused == {
        "text_empty": 1,
        "field_missing": 1,
        "no_answer": 1,
        "picture_name": 1,
        "no_picture": 1,
    }
    assert found.first["field_missing"] == "annotation 5: caption"
    assert found.first["no_answer"] == "image 3: captions"
    assert found.first["picture_name"] == "image 4: '../000000000011.jpg'"


def test_captions_of_nocaps_are_of_the_same_format(reads: Reads) -> None:
    (heron,) = reads("coco_captions", ["nocaps.json"], ["0a1b2c.jpg"]).examples
    assert heron.answers == ("A heron beside a pond.", "A grey bird stands in water.")


def test_karpathys_file_holds_all_splits_and_one_is_read(reads: Reads) -> None:
    pictures = ["1001.jpg", "1002.jpg", "val2014/COCO_val2014_000000000003.jpg"]
    test = reads("karpathy", ["karpathy.json"], pictures, split="test")
    assert [example.outputs for example in test.examples] == [("A child on a swing.",)]
    assert test.refused == {"no_answer": 1}
    train = reads("karpathy", ["karpathy.json"], pictures, split="train")
    # What he calls restval is trained on.
    assert [example.id for example in train.examples] == ["0", "2"]
    assert train.examples[0].outputs == ("A man mends a net.", "Nets hang to dry.")
    assert train.examples[1].image.name == "COCO_val2014_000000000003.jpg"
    assert len(reads("karpathy", ["karpathy.json"], pictures).examples) == 3


def test_textcaps_are_gathered_by_picture_with_the_words_that_ocr_found(reads: Reads) -> None:
    pictures = ["train_images/ab12.jpg", "train/cd34.jpg"]
    found = reads("textcaps", ["textcaps.json", "rosetta_ocr.json"], pictures)
    poster, bottle = found.examples
    assert poster.outputs == ("A poster that says OPEN LATE.", "A sign of a shop open late.")
    assert poster.parts == {"ocr": "OPEN LATE"}
    assert (bottle.outputs, bottle.parts) == (("A bottle labelled MILK.",), {})
    assert found.refused == {"no_answer": 1}
    assert [example.parts for example in reads("textcaps", ["textcaps.json"], pictures).examples] == [{}, {}]


def test_blips_pairs_have_one_caption_or_several_and_stay_in_their_folder(reads: Reads) -> None:
    found = reads("blip_pairs", ["blip_pairs.json"], ["web/1.jpg", "web/2.jpg"])
    assert [example.outputs for example in found.examples] == [
        ("a lighthouse in fog",),
        ("a tin of paint", "green paint"),
    ]
    assert found.refused == {"picture_name": 1, "field_wrong": 1}


def test_anything_can_be_written_as_instructions_and_answers_keep_their_lines(reads: Reads) -> None:
    found = reads("instructions", ["instructions.json"], ["1.jpg"])
    (example,) = found.examples
    assert example.parts["instruction"] == example.parts["question"] == "List what is on the table."
    assert example.outputs == ("- a cup\n- a spoon",)
    assert found.refused == {"no_answer": 1}
