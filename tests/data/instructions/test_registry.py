from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from capfilt.data.instructions.registry import read_registry
from capfilt.errors import CapfiltError

HELD_OUT = {
    "nocaps",
    "flickr30k",
    "vizwiz",
    "scienceqa",
    "textvqa",
    "gqa",
    "vsr",
    "iconqa",
    "msvd_qa",
    "msrvtt_qa",
    "ivqa",
    "visdial",
    "hateful_memes",
}
"""Those that InstructBLIP reports zero-shot results on (Dai et al., 2023, table 1)."""


def test_the_table_is_that_of_instructblip() -> None:
    registry = read_registry()
    assert len(registry.datasets) == 26
    assert len({dataset.category for dataset in registry.datasets.values()}) == 11
    assert {dataset.name for dataset in registry.held("out")} == HELD_OUT
    assert len(registry.held("in")) == 13
    assert [category.name for category in registry.wholly_held_out()] == [
        "visual_reasoning",
        "video_question_answering",
        "visual_dialogue",
        "image_classification",
    ]


def test_every_data_set_says_how_it_is_measured_where_it_is_from_and_how_large_it_is() -> None:
    datasets = read_registry().datasets.values()
    assert all(dataset.source.startswith("https://") and dataset.size for dataset in datasets)
    unmeasured = {dataset.category for dataset in datasets if dataset.metric is None}
    assert unmeasured == {"llava_instruct"}
    assert {dataset.name for dataset in datasets if dataset.reader is None} == {
        "msvd_qa",
        "msrvtt_qa",
        "ivqa",
    }


def test_a_task_has_ten_to_fifteen_templates_and_short_answers_are_asked_for_in_words() -> None:
    for category in read_registry().categories.values():
        if category.name == "llava_instruct":  # instructions already
            assert (category.answers, category.templates) == ("free", ("[{history} ]{instruction}",))
            continue
        assert 10 <= len(set(category.templates)) == len(category.templates) <= 15
        asking = [one for one in category.templates if "short" in one.lower() or "brief" in one.lower()]
        assert category.answers == "short"
        assert 3 <= len(asking) < len(category.templates), category.name


def test_no_two_tasks_share_a_sentence() -> None:
    categories = read_registry().categories.values()
    shared = Counter(one for category in categories for one in category.templates)
    # Asking the question alone, and Q and A, need no wording.
    assert {one for one, count in shared.items() if count > 1} <= {
        "{question}",
        "{question} Answer briefly.",
        "Q: {question} A:",
    }


def test_a_data_set_is_added_in_one_place(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[[dataset]]\nname = "birds"\ncategory = "naming"\nreader = "instructions"\nsize = 900\n'
        'annotations = ["birds.json"]\nimages = "pictures"\n'
        '[[dataset]]\nname = "vqav2"\nimages = "/coco"\n'
        '[category.naming]\ntemplates = ["Which bird is it?"]\n'
    )
    registry = read_registry(file)
    birds = registry.dataset("birds")
    assert (birds.held, birds.annotations, birds.images) == (
        "in",
        (tmp_path / "birds.json",),
        tmp_path / "pictures",
    )
    # A known name keeps what is not given.
    assert registry.dataset("vqav2").images == Path("/coco")
    assert registry.dataset("vqav2").reader == "vqa"
    assert registry.categories["naming"].title == "naming"
    assert len(registry.datasets) == 27


ROW = '[[dataset]]\nname = "birds"\ncategory = "image_captioning"\n'


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "cannot be read"),
        ("[[dataset]\n", "cannot be read"),
        ("size = 3\n", "size is neither"),
        ("dataset = 3\n", "does not hold"),
        ("category = 3\n", "does not hold"),
        ("[[dataset]]\nsize = 3\n", "has no name"),
        (ROW + ROW, "birds has two rows"),
        (ROW.replace("birds", "Birds 1"), "name: String should match"),
        (ROW.replace("image_captioning", "naming"), "there is no category naming"),
        (ROW + 'reader = "birds"\n', "there is no reader birds"),
        (ROW + 'metric = "luck"\n', "metric: "),
        (ROW + "size = 0\n", "size: "),
        (ROW + "weight = 1\n", "weight: Extra"),
        (ROW + "images = 3\n", "images: "),
        (ROW + '[category.naming]\ntemplates = ["{bird}"]\n', "names bird"),
        (ROW + "[category.naming]\ntemplates = []\n", "templates: "),
    ],
)
def test_a_file_that_is_no_registry_is_refused_with_the_row_and_the_mend(
    tmp_path: Path, text: str | None, what: str
) -> None:
    file = tmp_path / "mine.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(CapfiltError, match=what) as caught:
        read_registry(file)
    assert caught.value.fix


def test_an_unknown_name_says_where_names_are() -> None:
    with pytest.raises(CapfiltError, match="capfilt datasets"):
        read_registry().dataset("birds")
