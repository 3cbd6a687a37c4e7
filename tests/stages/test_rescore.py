from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import world

from capfilt.errors import CapfiltError
from capfilt.models.cards import read_card
from capfilt.provenance.rundir import RunDir, lock, stage_rows
from capfilt.settings import Blip2, Foreign, Judge, Matching
from capfilt.stages.judge import filters_of, judge_run
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.rescore import score_run, score_shard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from capfilt.settings import Bootstrap

RECORD = ("samples/*", "captions/*", "scores/*", "manifests/*", "policies/*")


def _scored(
    run: RunDir, bundle: Path, bundles: dict[str, Path], engine: world.InProcess | None = None
) -> str:
    return score_run(run, bundle, world.settings(bundles), engine or world.InProcess(), world.QUIET)


def test_a_second_filter_adds_rows_and_rewrites_no_file(fresh: RunDir, bundles: dict[str, Path]) -> None:
    before = world.digests(fresh.provenance, *RECORD)
    first = read_card(bundles["filter"]).weights
    own = world.sql(fresh, "SELECT pair_id, itc, itm FROM pairs ORDER BY pair_id")

    second = _scored(fresh, bundles["second"], bundles)

    after = world.digests(fresh.provenance, *RECORD)
    assert before.items() < after.items()
    assert len(after) == len(before) + 2, "one file of scores and one manifest"
    assert filters_of(fresh) == [first, second]
    assert sorted(world.sql(fresh, "SELECT filter, score, count(*) FROM scores GROUP BY ALL")) == sorted(
        (digest, score, 48) for digest in (first, second) for score in ("itc", "itm")
    )
    # Until a policy names the second filter, the view shows the first one's scores.
    assert world.sql(fresh, "SELECT pair_id, itc, itm FROM pairs ORDER BY pair_id") == own


def test_the_view_shows_the_scores_of_the_filter_that_the_policy_names(
    fresh: RunDir, bundles: dict[str, Path]
) -> None:
    second = _scored(fresh, bundles["second"], bundles)
    first_scores = dict(world.sql(fresh, "SELECT pair_id, itm FROM pairs"))

    judge_run(fresh, Judge(itm="0.5"), filter_digest=second[:12])

    rows = world.sql(fresh, "SELECT pair_id, itc, itm, filter, keep FROM pairs")
    stored = {
        (pair, score): value
        for pair, score, value in world.sql(
            fresh, "SELECT pair_id, score, value FROM scores WHERE filter = ?", second
        )
    }
    assert {row[3] for row in rows} == {second}
    for pair, itc, itm, _, keep in rows:
        assert (itc, itm) == (stored[pair, "itc"], stored[pair, "itm"])
        assert keep == (itm >= 0.5)
    assert sum(itm != first_scores[pair] for pair, _, itm, _, _ in rows) > 40


def test_scores_that_were_added_are_those_of_a_run_by_that_filter(
    fresh: RunDir, bundles: dict[str, Path], tmp_path: Path
) -> None:
    other = {**bundles, "filter": bundles["second"]}
    alone = world.run(tmp_path / "alone", world.REAL / "noisy.tar", other).run

    second = _scored(fresh, bundles["second"], bundles)

    query = "SELECT pair_id, score, value FROM scores WHERE filter = ? ORDER BY ALL"
    added, expected = world.sql(fresh, query, second), world.sql(alone, query, second)
    assert [row[:2] for row in added] == [row[:2] for row in expected]
    assert [row[2] for row in added] == pytest.approx([row[2] for row in expected], abs=1e-5)


def test_scoring_again_does_nothing_new(fresh: RunDir, bundles: dict[str, Path]) -> None:
    _scored(fresh, bundles["second"], bundles)
    files = world.digests(fresh.provenance, *RECORD)
    engine = world.InProcess()

    _scored(fresh, bundles["second"], bundles, engine)
    _scored(fresh, bundles["filter"], bundles, engine)

    assert world.digests(fresh.provenance, *RECORD) == files
    assert len(engine.handed_out) == 2, "only the devices were asked for"
    assert [(row["stage"], row["start"]) for row in stage_rows(fresh)][-3:] == [
        ("score", 2),
        ("score", 3),
        ("score", 4),
    ]


def test_a_filter_that_did_not_score_the_run_cannot_judge_it(fresh: RunDir) -> None:
    with pytest.raises(CapfiltError, match="was not scored by a filter ffff") as caught:
        judge_run(fresh, Judge(itm="0.5"), filter_digest="ffff")

    assert filters_of(fresh)[0][:12] in caught.value.fix


def test_a_shard_whose_pictures_changed_is_not_scored_as_if_they_had_not(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    web = tmp_path / "web.tar"
    shutil.copyfile(world.REAL / "photos.tar", web)
    run = world.run(tmp_path / "run", web, bundles).run
    files = world.digests(run.provenance, *RECORD)
    data = bytearray(web.read_bytes())
    [(offset,)] = world.sql(run, "SELECT image_offset FROM samples LIMIT 1")
    data[offset + 200] ^= 0xFF
    web.write_bytes(bytes(data))

    with pytest.raises(CapfiltError, match="has changed: another picture stands at byte"):
        _scored(run, bundles["second"], bundles)

    assert world.digests(run.provenance, *RECORD) == files


def test_a_run_that_is_in_use_is_not_scored(fresh: RunDir, bundles: dict[str, Path]) -> None:
    with lock(RunDir(fresh.path)), pytest.raises(CapfiltError, match="is in use by process"):
        _scored(fresh, bundles["second"], bundles)


# -- how a filter reads texts is part of what its scores are


@pytest.fixture
def halves(bundles: dict[str, Path], tmp_path: Path) -> RunDir:
    """A run of two shards, captioned and scored."""
    web = tmp_path / "web"
    web.mkdir()
    for name in ("photos.tar", "noisy.tar"):
        shutil.copyfile(world.REAL / name, web / name)
    return world.run(tmp_path / "run", web, bundles, stages=(RecaptionAndScore(),)).run


class Killed(world.InProcess):
    """An engine that dies after the first shard that is scored."""

    def run(self, work: Any, items: Sequence[Any], **how: Any) -> Iterator[tuple[int, Any]]:
        for number, done in super().run(work, items, **how):
            yield number, done
            if work is score_shard:
                raise KeyboardInterrupt


def _read_by(match_token: str, bundles: dict[str, Path], **changes: Any) -> Bootstrap:
    return world.settings(bundles, filter={"match_token": match_token}, **changes)


def test_a_further_filter_that_scored_some_shards_is_not_asked_to_read_otherwise(
    halves: RunDir, bundles: dict[str, Path]
) -> None:
    second = bundles["second"]
    with pytest.raises(KeyboardInterrupt):
        score_run(halves, second, _read_by("cls", bundles), Killed(), world.QUIET)
    before = world.digests(halves.provenance, *RECORD)

    with pytest.raises(CapfiltError, match=r"has scored this run, and with another filter\.match_token=cls"):
        score_run(halves, second, _read_by("enc", bundles), world.InProcess(), world.QUIET)
    assert world.digests(halves.provenance, *RECORD) == before

    # What was refused left no word of its own: the first reading goes on, and is refused another one still.
    digest = score_run(halves, second, _read_by("cls", bundles), world.InProcess(), world.QUIET)
    [(pairs, scored)] = world.sql(
        halves, "SELECT (SELECT count(*) FROM captions), count(*) FROM scores WHERE filter = ?", digest
    )
    assert scored == 2 * pairs
    with pytest.raises(CapfiltError, match=r"another filter\.match_token=cls"):
        score_run(halves, second, _read_by("enc", bundles), world.InProcess(), world.QUIET)


def test_scores_of_which_some_were_measured_otherwise_are_not_judged(
    halves: RunDir, bundles: dict[str, Path]
) -> None:
    second = bundles["second"]
    digest = score_run(halves, second, _read_by("enc", bundles), world.InProcess(), world.QUIET)
    judge_run(halves, Judge(itm="0.5"), filter_digest=digest)
    others = _read_by("enc", bundles, compute={"batch_size": 3})
    with pytest.raises(KeyboardInterrupt):
        score_run(halves, second, others, Killed(), world.QUIET)

    for judge, chosen in (Judge(itm="0.5"), digest), (Judge(also=(f"{digest}:itm=0.5",)), None):
        with pytest.raises(CapfiltError, match="in another way than others: batch_size: ") as caught:
            judge_run(halves, judge, filter_digest=chosen)
        assert f"capfilt score {halves.path}" in caught.value.fix
    judge_run(halves, Judge(itm="0.5"))  # the run's own filter

    score_run(halves, second, others, world.InProcess(), world.QUIET)
    judge_run(halves, Judge(itm="0.5"), filter_digest=digest)


def test_a_filter_is_known_to_read_what_its_kind_can_heed(bundles: dict[str, Path]) -> None:
    card = read_card(bundles["filter"])
    asked = Matching(match_token="cls", question="Is it {text}?")
    assert card.matching(asked) == {"match_token": "cls", "clean_up": "none"}
    assert card.model_copy(update={"model": Foreign(backend="python")}).matching(asked) == {}
    answers = card.model_copy(update={"model": Blip2(family="instructblip")})
    assert answers.matching(asked) == {"question": "Is it {text}?"}
    assert answers.matching(Matching()) == {}
