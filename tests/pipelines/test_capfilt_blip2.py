"""BLIP-2's own CapFilt, by a CLIP and by a MED that has ITC alone: rank, keep two, draw one at each step."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import world
from blip2_world import here, sets
from small_folders import clip
from whole_runs import Ended, sql

from capfilt.cli.pipelines import load_pipeline
from capfilt.data.sources import find_shards
from capfilt.data.stream import Stream, TarPool
from capfilt.settings import Clean, Input
from capfilt.settings import Stream as Weights

if TYPE_CHECKING:
    from pathlib import Path

PASSES = 60


@dataclass(frozen=True)
class Ran:
    path: Path
    ended: Ended
    is_sure: bool
    """Whether its captioner draws the same again and again, as a trained one does."""


@pytest.fixture(scope="module", params=["CLIP", "MED"])
def ran(few: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Ran:
    """A run of the pipeline with small models; not to be changed."""
    folder = tmp_path_factory.mktemp("capfilt")
    captioner = world.bundle(folder / "captioner", "captioner", ("lm",), seed=1)
    by_med = request.param == "MED"
    filter_ = world.bundle(folder / "f", "filter", ("itc",), seed=2) if by_med else clip(folder / "f")
    models = ("--captioner", captioner, "--filter", filter_)
    lengths = {"decoding.min_tokens": 2, "decoding.max_tokens": 8}
    shorter = sets({**lengths, "decoding.top_p": 0.1 if by_med else 0.9, "compute.device": "cpu"})
    words = (
        "bootstrap",
        few / "web",
        "--out",
        folder / "run",
        "--pipeline",
        "capfilt_blip2",
        *models,
        *shorter,
    )
    return Ran(folder / "run", here(*words, "--json"), is_sure=by_med)


def _texts(run: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """By picture: its texts, the best first by ITC, then by pair_id."""
    names = ("shard", "key", "pair_id", "source", "candidate", "text", "itc", "itm", "keep")
    texts = defaultdict(list)
    for values in sql(run, f"SELECT {', '.join(names)} FROM pairs"):
        row = dict(zip(names, values, strict=True))
        texts[row["shard"], row["key"]].append(row)
    return {key: sorted(mine, key=lambda row: (-row["itc"], row["pair_id"])) for key, mine in texts.items()}


def _best_two(mine: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best text and the best of those that say something else."""
    best = mine[0]
    return [best, *[row for row in mine if row["text"] != best["text"]][:1]]


def _exported(run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """By picture of the input: what the export says of it, and its KEY.txt."""
    samples = {}
    for tar in sorted((run / "export").glob("*.tar")):
        members = world.members(tar)
        for name, data in members.items():
            if name.endswith(".json"):
                own = json.loads(data)["capfilt"]
                own["txt"] = members[name.removesuffix("json") + "txt"].decode()
                samples[own["shard"], own["key"]] = own
    return samples


def test_web_and_synthetic_texts_are_ranked_together_and_the_best_two_are_kept(ran: Ran) -> None:
    texts = _texts(ran.path)

    assert len(texts) == 24
    for mine in texts.values():
        sources = Counter(row["source"] for row in mine)
        assert sources["synthetic"] == 10
        assert {row["candidate"] for row in mine if row["source"] == "synthetic"} == set(range(10))
        assert [row["pair_id"] for row in mine if row["keep"]] == [row["pair_id"] for row in _best_two(mine)]
        assert {row["itm"] for row in mine} == {None}
    # Of some pictures the web text is among the two, of others it is not.
    web = [row["keep"] for mine in texts.values() for row in mine if row["source"] == "web"]
    assert 0 < sum(web) < len(web)
    [(words,)] = sql(ran.path, "SELECT words FROM policies")
    assert words == "at most 2 an image, the best by ITC"


def test_what_was_drawn_twice_takes_one_of_the_two_places(ran: Ran) -> None:
    texts = _texts(ran.path)
    twice = [mine for mine in texts.values() if mine[0]["text"] == mine[1]["text"]]
    reasons = dict(sql(ran.path, "SELECT reason, count(*) FROM pairs GROUP BY ALL"))
    repeated = sum(
        any(other["text"] == row["text"] for other in mine[:place])
        and len({other["text"] for other in mine[: place + 1]}) <= 2
        for mine in texts.values()
        for place, row in enumerate(mine)
    )

    for mine in texts.values():
        kept = [row["text"] for row in mine if row["keep"]]
        assert len(set(kept)) == len(kept) == 2
    assert reasons.get("repeated_text", 0) == repeated
    assert len(twice) > 6 or not ran.is_sure


def test_both_texts_go_out_the_better_one_first(ran: Ran) -> None:
    texts, exported = _texts(ran.path), _exported(ran.path)

    assert set(exported) == set(texts)
    for key, own in exported.items():
        best = _best_two(texts[key])
        assert [pair["pair_id"] for pair in own["captions"]] == [row["pair_id"] for row in best]
        assert [pair["itc"] for pair in own["captions"]] == [row["itc"] for row in best]
        assert own["txt"] == best[0]["text"]
    assert {pair["source"] for own in exported.values() for pair in own["captions"]} == {"web", "synthetic"}


def test_a_training_on_the_export_draws_one_of_the_two_at_each_visit(ran: Ran) -> None:
    pool = TarPool(tuple(find_shards(ran.path / "export")), Input(), "web")
    stream = Stream([pool], Weights(), 0, Clean(), ())
    first: Counter[int] = Counter()

    for number in range(PASSES):
        drawn = list(stream.epoch(number))
        assert len({pair.reference.offset for pair in drawn}) == len(drawn) == 24  # each picture once a pass
        for pair in drawn:
            texts = [text.text for text in pair.reference.texts]
            assert len(set(texts)) == len(texts) == 2
            assert pair.text in texts
            first[pair.reference.offset] += pair.text == texts[0]

    # A coin that is thrown 60 times: 30, with a standard deviation of 3.9.
    assert all(12 < count < 48 for count in first.values())
    assert len(first) == 24
    mean = sum(first.values()) / len(first)
    assert abs(mean - PASSES / 2) < 4 * (PASSES / 4 / len(first)) ** 0.5


def test_the_pipeline_is_the_papers_by_itself() -> None:
    choices = load_pipeline("capfilt_blip2").choices()
    assert (choices.candidates, choices.judge.per_image, choices.judge.by) == (10, 2, "itc")
    assert "clip-vit-large" in str(choices.bundles.filter)
    assert "blip-image-captioning-large" in str(choices.bundles.captioner)
