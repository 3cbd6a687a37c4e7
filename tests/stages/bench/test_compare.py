"""The peer that is measured beside ours does the same work, and does it as users write it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import world

from capfilt.data.images import decode
from capfilt.data.sources import read_shard
from capfilt.settings import Input, Matching
from capfilt.stages.bench.compare import ROUNDS, THEIR_IMAGES, Comparison, Theirs, compare, why_not
from capfilt.stages.shard import load_captioner, load_filter

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.records import Sample
    from capfilt.stages.shard import ShardJob

FORCED = {"min_tokens": 6, "max_tokens": 6}


@pytest.fixture(scope="module")
def job(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ShardJob:
    return world.job(tmp_path_factory.mktemp("run"), world.REAL / "noisy.tar", bundles, candidates=2)


@pytest.fixture(scope="module")
def samples(job: ShardJob) -> list[Sample]:
    return list(read_shard(job.shard, Input()))[:6]


def passes_of(model: Any) -> list[int]:
    """Collect how many pictures go through an encoder of transformers, pass by pass."""
    seen: list[int] = []
    model.vision_model.register_forward_hook(lambda _m, _given, states: seen.append(len(states[0])))
    return seen


def test_they_write_captions_of_the_length_that_is_asked_for_and_encode_for_each_text(
    job: ShardJob, samples: list[Sample]
) -> None:
    theirs = Theirs(job, job.decoding.model_copy(update=FORCED), "cpu")
    picture = decode(samples[0].image or b"", max_pixels=10**6)
    captioner, matcher = theirs._models["captioner"], theirs._models["filter"]
    encoded = [passes_of(captioner), passes_of(matcher)]
    steps: list[int] = []
    captioner.text_decoder.register_forward_hook(lambda *_: steps.append(1))

    written = theirs.caption_and_score(picture, samples[0].web_text)

    assert len(written) == 2  # candidates
    assert len(steps) == 6
    assert encoded == [[1], [1, 1, 1]]  # once to write, then for the web text and each caption


def test_their_score_of_a_text_is_ours(
    job: ShardJob, samples: list[Sample], bundles: dict[str, Path]
) -> None:
    # The bundle says [ENC]; transformers reads [CLS].
    ours = load_filter(bundles["filter"], "cpu", "fp32", Matching(match_token="cls"), False)
    theirs = Theirs(job, job.decoding, "cpu")
    picture = decode(samples[0].image or b"", max_pixels=10**6)
    from capfilt.models.protocols import ImageBatch

    [[expected]] = ours.score(ImageBatch([picture], ["0"]), [["a red circle"]])

    with torch.inference_mode():
        found = theirs._score(picture.convert("RGB"), "a red circle")
    # Their processor resizes by torchvision, ours by Pillow; a picture is not the same to the last digit.
    assert found == pytest.approx(expected.itm, abs=0.05)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_they_search_as_ours_does(method: str, job: ShardJob, samples: list[Sample]) -> None:
    decoding = job.decoding.model_copy(update={**FORCED, "method": method})
    theirs = Theirs(replace(job, candidates=1), decoding, "cpu")
    picture = decode(samples[0].image or b"", max_pixels=10**6)

    assert len(theirs.caption_and_score(picture, None)) == 1


def test_both_are_measured_on_the_first_pictures_in_turn(
    job: ShardJob, samples: list[Sample], bundles: dict[str, Path]
) -> None:
    captioner = load_captioner(bundles["captioner"], "cpu", "fp32", False)
    filter_ = load_filter(bundles["filter"], "cpu", "fp32", Matching(), False)
    before = captioner.model.image.passes

    found = compare(job, captioner, filter_, samples, "cpu")

    assert (found.our_images, found.their_images, found.rounds) == (THEIR_IMAGES, THEIR_IMAGES, ROUNDS)
    assert captioner.model.image.passes - before == THEIR_IMAGES * (1 + ROUNDS)  # one round is not timed
    assert (found.tokens, found.texts, found.seconds) == (job.decoding.max_tokens, 1 + 2, "cpu")
    assert found.ours_s > 0
    assert found.ratio == found.theirs_s / found.ours_s


def test_a_ratio_above_one_says_that_ours_is_faster() -> None:
    values: dict[str, Any] = {"our_images": 4, "their_images": 4, "rounds": 3, "tokens": 20, "texts": 2.0}
    assert Comparison(ours_s=0.5, theirs_s=2.0, seconds="cpu", **values).ratio == 4


def test_what_cannot_be_compared_says_why(
    job: ShardJob, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = [replace(sample, web_text=None) for sample in samples]
    assert why_not(job, samples) == ""
    assert why_not(job, silent) == ""  # captions are written and scored
    assert "no text to score" in why_not(replace(job, captioner=None), silent)
    itm = world.bundle(tmp_path / "itm", "filter", ("itm",))
    assert why_not(replace(job, filter=itm), samples).startswith("transformers cannot build the filter")
    # A joint model holds a captioner and a filter that transformers can build.
    joint = world.bundle(tmp_path / "joint", "joint", ("itc", "itm", "lm"))
    assert why_not(replace(job, captioner=joint, filter=joint), samples) == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert why_not(job, samples) == "transformers is not installed"
