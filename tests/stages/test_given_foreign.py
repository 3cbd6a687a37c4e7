"""Models that other software runs, in runs: what rows know them by, and how they are asked."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "backends"))

import small_folders
import world
from chat_server import Asked, ChatServer, Reply, caption, chat_server, failure, seen

from capfilt.errors import CapfiltError
from capfilt.models.cards import identity, read_card
from capfilt.provenance.rundir import RunDir
from capfilt.settings import Server
from capfilt.stages.given import read_given, take_given
from capfilt.stages.judge import filters_of
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.rescore import score_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WEB = world.REAL / "photos.tar"
PASS = (RecaptionAndScore(),)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folders.clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture
def captioned(bundles: dict[str, Path], tmp_path: Path) -> RunDir:
    """A run of real pictures, captioned and scored by models of capfilt's own."""
    return world.run(tmp_path / "run", WEB, bundles, stages=PASS).run


def scored(run: RunDir, bundles: Mapping[str, Path], by: Path) -> str:
    return score_run(run, by, world.settings(dict(bundles)), world.InProcess(), world.QUIET)


# -- what rows know a model by


def test_the_same_weights_behind_other_preprocessing_are_another_filter(
    captioned: RunDir, bundles: dict[str, Path], clip: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(clip, tmp_path / "other")
    seen = json.loads((other / "preprocessor_config.json").read_text())
    changed = {**seen, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]}
    (other / "preprocessor_config.json").write_text(json.dumps(changed))

    first, second = scored(captioned, bundles, clip), scored(captioned, bundles, other)

    cards = [read_card(captioned.model(f"filter-{digest[:12]}")) for digest in (first, second)]
    assert cards[0].weights == cards[1].weights
    assert [identity(card) for card in cards] == [first, second]
    assert filters_of(captioned)[1:] == sorted([first, second])
    query = "SELECT value FROM scores WHERE filter = ? ORDER BY pair_id"
    values = [[value for (value,) in world.sql(captioned, query, one)] for one in (first, second)]
    assert len(values[0]) == len(values[1]) == 10
    assert values[0] != pytest.approx(values[1], abs=1e-3)
    known = {model for (model,) in world.sql(captioned, "SELECT model FROM models WHERE kind = 'filter'")}
    assert {first, second} < known
    # Their own weights still name what is trained here.
    assert read_card(bundles["filter"]).digest == read_card(bundles["filter"]).weights


# -- a server, asked in one way


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as made:
        yield made


def captioned_by(url: str | Path, out: Path, bundles: dict[str, Path], **server: Any) -> RunDir:
    return world.run(out, WEB, {**bundles, "captioner": url}, stages=PASS, server=server).run  # type: ignore[dict-item]


def test_one_refused_picture_is_rows_that_say_so_and_the_run_goes_on(
    server: ChatServer,
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def moderated(asked: Asked) -> Reply:
        if asked.url in refused:
            return failure(400, "content policy violation")
        is_first = len(server.chats) == 1
        return caption("A cut off", finish_reason="length") if is_first else seen(asked)

    refused: set[str] = set()
    server.answer = seen
    captioned_by(server.url, tmp_path / "first", bundles, concurrency=1)
    refused.add(server.chats[2].url)
    server.requests.clear()
    server.answer = moderated
    told: list[str] = []
    monkeypatch.setattr(world.QUIET, "say", told.append)

    given = {**bundles, "captioner": server.url}
    for _ in range(2):
        finished = world.run(tmp_path / "run", WEB, given, stages=PASS, server={"concurrency": 1})  # type: ignore[dict-item]
    rows = world.sql(
        finished.run,
        "SELECT text, unfinished FROM captions WHERE source = 'synthetic' ORDER BY unfinished NULLS LAST",
    )
    assert rows[:2] == [("A cut off", "length"), ("", "refused")]
    assert len(rows) == 5
    assert all(unfinished is None and text for text, unfinished in rows[2:])
    web = "SELECT count(*), count(unfinished) FROM captions WHERE source = 'web'"
    assert world.sql(finished.run, web) == world.sql(RunDir(tmp_path / "first"), web)
    assert len(server.chats) == 5 + 1, "it is not met again, and one plain picture was sent"
    assert sum("content policy violation" in line for line in told) == 1
    assert sum("1 synthetic captions were refused, and are empty" in line for line in told) == 2
    assert sum("1 synthetic captions were cut off at decoding.max_tokens=" in line for line in told) == 2
    detail = finished.outcomes[0][1].detail
    assert detail.endswith("; unfinished captions: 1 length, 1 refused")


def test_a_server_is_asked_in_one_way_and_may_stand_elsewhere(
    server: ChatServer, bundles: dict[str, Path], tmp_path: Path
) -> None:
    run = captioned_by(server.url, tmp_path / "run", bundles)
    kept = ("models/**/*", "provenance/**/*.parquet", "provenance/given/*", "run.json")
    before = world.digests(run.path, *kept)
    card = read_card(run.model("captioner"))

    for changes, told in (
        ({"image_px": 64}, r"server\.image_px: 1024 -> 64"),
        ({"extra": {"top_k": 3}}, r"server\.extra\.top_k: nothing -> 3"),
    ):
        for _ in range(2):  # what was refused changed nothing
            with pytest.raises(CapfiltError, match=told) as caught:
                captioned_by(server.url, tmp_path / "run", bundles, **changes)
            assert f"{server.url} is the captioner" in caught.value.what
    server.models[0]["root"] = "acme/seer-8b"
    with pytest.raises(CapfiltError, match=r"told by the server\.root: acme/seer-7b -> acme/seer-8b"):
        captioned_by(server.url, tmp_path / "run", bundles)
    server.models[0]["root"] = "acme/seer-7b"
    assert before == world.digests(run.path, *kept)

    asked = len(server.chats)
    captioned_by(server.url, tmp_path / "run", bundles, concurrency=2)
    assert read_card(run.model("captioner")).foreign.asked["concurrency"] == 2
    with chat_server() as other:
        captioned_by(other.url, tmp_path / "run", bundles)
        assert read_card(run.model("captioner")).foreign.asked["url"] == other.url
        assert other.chats == []
    assert len(server.chats) == asked
    assert read_card(run.model("captioner")).digest == card.digest


def test_an_address_is_shown_and_recorded_as_it_was_typed(
    server: ChatServer, bundles: dict[str, Path], tmp_path: Path
) -> None:
    run = captioned_by(Path(server.url), tmp_path / "run", bundles)  # so a command's option has it
    given = json.loads(run.given_file("captioner").read_text())
    assert given["source"] == given["found"] == server.url
    assert world.settings({**bundles, "captioner": Path(server.url)}).bundles.captioner == server.url


def test_a_server_that_changes_between_look_and_copy_is_not_written(
    server: ChatServer, bundles: dict[str, Path], tmp_path: Path
) -> None:
    run = captioned_by(server.url, tmp_path / "run", bundles)
    given = read_given(run.given_file("captioner"))
    assert given is not None
    before = (run.model("captioner") / "capfilt.json").read_bytes()
    with pytest.raises(CapfiltError, match="changed while it was read"):
        take_given(
            replace(given, identity="other"), run.model("captioner"), world.InProcess(), Server(image_px=64)
        )
    assert (run.model("captioner") / "capfilt.json").read_bytes() == before


# -- what such a model is made with

OWN = """
from capfilt.records import Scores

SCORES = ("itm",)


class Same:
    def __init__(self, word, value):
        self.word, self.value = word, value

    def caption(self, batch, decoding, *, seed, candidates):
        return [[self.word] * candidates for _ in batch.pictures]

    def score(self, batch, texts):
        return [[Scores(itm=self.value) for _ in mine] for mine in texts]


def captioner(device, precision, word="nothing"):
    return Same(word, 0.0)


def filter(device, precision, value=0.5):
    return Same("", value)
"""


def test_options_reach_the_model_and_are_part_of_what_it_is(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    given = {"captioner": own, "filter": own}
    chosen = {"captioner_options": {"word": "something"}, "filter_options": {"value": 0.25}}
    run = world.run(tmp_path / "run", WEB, given, stages=PASS, bundles=chosen).run

    query = "SELECT DISTINCT text, itm FROM pairs WHERE source = 'synthetic'"
    assert world.sql(run, query) == [("something", 0.25)]
    own.unlink()  # what was taken stays, with its options
    assert world.run(tmp_path / "run", WEB, given, stages=PASS, bundles=chosen).outcomes[0][1].count == 0
    own.write_text(OWN)
    for other in ({}, {**chosen, "filter_options": {"value": 0.75}}):
        with pytest.raises(CapfiltError, match=r"bundles\.filter"):
            world.run(tmp_path / "run", WEB, given, stages=PASS, bundles=other)


def test_options_are_refused_by_a_model_that_takes_none(
    bundles: dict[str, Path], clip: Path, tmp_path: Path
) -> None:
    for filter_, told in ((bundles["filter"], "has no options"), (clip, "no option value")):
        with pytest.raises(CapfiltError, match=told):
            world.run(
                tmp_path / "run",
                WEB,
                {**bundles, "filter": filter_},
                stages=PASS,
                bundles={"filter_options": {"value": 1}},
            )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("judge", "read"),
    [({"itm": "0.5"}, "ITM"), ({"vqa": "0.5"}, "VQA"), ({"per_image": 1, "by": "0.5*itm + itc"}, "ITM")],
)
def test_a_policy_of_scores_that_the_filter_has_not_is_refused_before_the_work(
    bundles: dict[str, Path], clip: Path, tmp_path: Path, judge: dict[str, Any], read: str
) -> None:
    given = {**bundles, "filter": clip}
    with pytest.raises(CapfiltError, match=f"reads {read}, and the filter .* measures ITC alone"):
        world.run(tmp_path / "run", WEB, given, judge=judge)
    assert not (tmp_path / "run").exists()
    run = world.run(tmp_path / "run", WEB, given, stages=PASS).run
    with pytest.raises(CapfiltError, match="measures ITC alone"):  # of one that was taken before, too
        world.run(run.path, WEB, given, judge=judge)
