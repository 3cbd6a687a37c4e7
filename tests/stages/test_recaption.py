from __future__ import annotations

import json
from typing import TYPE_CHECKING

import world
from PIL import Image

from capfilt.models.protocols import ImageBatch
from capfilt.records import Caption, Source
from capfilt.settings import SettledDecoding
from capfilt.stages.recaption import recaption

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir


class Echo:
    """A captioner that says what it was asked."""

    digest = "e" * 64

    def caption(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> Sequence[list[str]]:
        return [
            [f"{decoding.prompt}{sha} {decoding.top_p} {seed} {n}" for n in range(candidates)]
            for sha in batch.sha256
        ]


def test_candidates_are_numbered_in_their_order() -> None:
    batch = ImageBatch([Image.new("RGB", (2, 2))] * 2, ["a", "b"])

    captions = recaption(Echo(), batch, SettledDecoding(top_p=0.5), seed=3, candidates=2)

    assert captions == [
        [Caption(f"{sha} 0.5 3 0", Source.SYNTHETIC, 0), Caption(f"{sha} 0.5 3 1", Source.SYNTHETIC, 1)]
        for sha in ("a", "b")
    ]


def test_prompts_are_taken_in_turn_and_each_draws_by_itself() -> None:
    batch = ImageBatch([Image.new("RGB", (2, 2))], ["a"])
    decoding = SettledDecoding(prompts=("x ", "y ", "z "))

    [several] = recaption(Echo(), batch, decoding, seed=3, candidates=7)
    [alone] = recaption(Echo(), batch, decoding.of("x "), seed=3, candidates=3)

    assert [(caption.candidate, caption.text[0]) for caption in several] == list(enumerate("xyzxyzx"))
    assert [decoding.prompt_of(caption.candidate)[0] for caption in several] == list("xyzxyzx")
    # The first prompt writes what it writes alone; no two captions of the others are the same draw.
    assert [caption.text for caption in several[::3]] == [caption.text for caption in alone]
    assert len({caption.text[2:] for caption in several}) == 7


def test_fewer_candidates_than_prompts_use_the_first_prompts() -> None:
    batch = ImageBatch([Image.new("RGB", (2, 2))], ["a"])

    [captions] = recaption(Echo(), batch, SettledDecoding(prompts=("x", "y", "z")), seed=0, candidates=2)

    assert [caption.text[0] for caption in captions] == ["x", "y"]


def test_the_rows_of_a_run_name_the_prompt_of_each_caption(
    bundles: dict[str, Path], finished: RunDir, tmp_path: Path
) -> None:
    prompts = ("a picture of", "", "the words say")
    three = {"candidates": 3, "decoding": {"prompts": prompts}}

    run = world.run(tmp_path / "run", world.REAL / "photos.tar", bundles, **three).run

    rows = world.sql(
        run, "SELECT candidate, prompt, text, decoding FROM captions WHERE source = 'synthetic' ORDER BY key"
    )
    assert len(rows) >= 3 * 5
    assert {(candidate, prompt) for candidate, prompt, *_ in rows} == set(enumerate(prompts))
    assert all(tuple(json.loads(decoding)["prompts"]) == prompts for *_, decoding in rows)
    # The prompt changes what is written, beyond the draw: greedily there is none.
    greedy = {"candidates": 3, "decoding": {"prompts": prompts, "method": "greedy"}}
    told = world.run(tmp_path / "greedy", world.REAL / "photos.tar", bundles, **greedy).run
    distinct = "SELECT count(DISTINCT text) FROM captions WHERE source = 'synthetic' GROUP BY shard, key"
    assert max(count for (count,) in world.sql(told, distinct)) > 1
    # A run of one prompt says nothing of several.
    [(decoding,)] = world.sql(finished, "SELECT DISTINCT decoding FROM captions WHERE decoding IS NOT NULL")
    assert "prompts" not in json.loads(decoding)
