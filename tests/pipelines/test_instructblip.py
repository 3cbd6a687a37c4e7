"""InstructBLIP trained on a data set of one's own and measured: what it learnt does not measure it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from blip2_world import SMALL, here, sets
from PIL import Image

from capfilt.models.cards import read_card

if TYPE_CHECKING:
    from pathlib import Path

PICTURES = 10
SETTINGS: dict[str, Any] = {
    **{name: value for name, value in SMALL.items() if not name.startswith("decoding.")},
    "model.language.max_tokens": 20,
    "pretrain.phases.0.steps": 2,
    "pretrain.phases.0.batch_size": 4,
    "pretrain.phases.0.warmup_steps": 0,
    "pretrain.validate_every": 2,
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets about the same ten pictures, and rows of a third that is never trained on."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "pictures").mkdir()
    for number in range(PICTURES):
        Image.new("RGB", (24, 24), (25 * number, 90, 200 - 20 * number)).save(
            folder / "pictures" / f"{number}.png"
        )
    held = {"shades": "in", "sizes": "in", "others": "out"}
    for name in held:
        rows = [
            {"image": f"{number}.png", "text_input": f"what of {name}?", "text_output": f"red {number % 3}"}
            for number in range(PICTURES)
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "sets.toml").write_text(
        "\n".join(
            f'[[dataset]]\nname = "{name}"\ncategory = "question_answering"\nreader = "instructions"\n'
            f'metric = "exact"\nheld = "{side}"\nannotations = ["{name}.json"]\nimages = "pictures"'
            for name, side in held.items()
        )
    )
    return folder / "sets.toml"


def test_a_set_that_it_was_trained_on_is_measured_by_what_its_training_held_out(
    registry: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    between = {"bundles.vision": parts["plain"], "bundles.language": parts["opt"]}
    model = tmp_path / "model"
    here("pretrain", registry, "--out", model, "--pipeline", "instructblip", *sets(SETTINGS, between))
    [training] = read_card(model).training["instructions"]
    held_out = {name: set(row["held_out"]) for name, row in training.items()}
    # Twenty examples, of which a fifth are held out: two pictures, each on one side in both sets.
    assert {name: len(ids) for name, ids in held_out.items()} == {"shades": 2, "sizes": 2}
    assert len({name.partition(":")[0] for ids in held_out.values() for name in ids}) == 2

    chosen = sets({"compute.device": "cpu", "decoding.max_tokens": 4})
    ended = here("evaluate", "answers", model, "--registry", registry, "--json", *chosen)
    found = json.loads(ended.out)
    said = {name: (one["learnt"], one["examples"]) for name, one in found["datasets"].items()}
    assert said == {"shades": ("held_out", 2), "sizes": ("held_out", 2), "others": ("no", 10)}
    assert {one["row"] for one in found["figures"]} == {
        "shades (held out of its training): exact answers",
        "sizes (held out of its training): exact answers",
        "others: exact answers",
    }
    [note] = [note for note in found["notes"] if note.startswith("shades")]
    assert "the model was trained on its files; asked are 2 of the examples" in note
    assert "of 10 in all" in note
