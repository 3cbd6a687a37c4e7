from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from capfilt.data.instructions.reading import Reading

    Reads = Callable[..., Reading]


def test_a_turn_of_visdial_knows_the_caption_and_the_turns_before(reads: Reads) -> None:
    found = reads(
        "visdial", ["visdial_val.json"], ["VisualDialog_val2018/VisualDialog_val2018_000000000007.jpg"]
    )
    first, second = found.examples
    assert first.parts == {"question": "is there a kite?", "history": "a kite over a hill."}
    assert second.parts == {
        "question": "what colour is it?",
        "history": "a kite over a hill. is there a kite? yes.",
    }
    assert (first.candidates, first.right, first.outputs) == (("no one", "yes", "red"), 1, ("yes",))
    assert (second.candidates, second.right) == (("red", "blue", "yes"), 0)
    # The third turn asks a question that is not there; what came after it would lack a part of its history.
    assert found.refused == {"field_wrong": 1}


def test_visdials_training_file_has_pictures_of_coco_and_no_candidates(reads: Reads) -> None:
    (turn,) = reads("visdial", ["visdial_train.json"], ["COCO_val2014_000000000007.jpg"]).examples
    assert (turn.candidates, turn.right, turn.outputs) == ((), None, ("yes",))


def test_a_conversation_of_llava_is_an_example_for_each_answer(reads: Reads) -> None:
    found = reads("llava", ["llava.json"], ["000000000009.jpg"])
    first, second = found.examples
    assert first.parts == {"instruction": "What stands on the shelf?"}
    assert first.outputs == ("Two cups:\n1. a blue one\n2. a white one",)
    assert second.parts["instruction"] == "Which is larger?"
    assert second.parts["history"].startswith("What stands on the shelf? Two cups:")
    assert [one.id for one in found.examples] == ["000000000009/1", "000000000009/2"]
    assert found.refused == {"no_picture": 1, "field_wrong": 1}
