from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import world

from capfilt.errors import CapfiltError
from capfilt.provenance.rundir import RunDir, stage_rows
from capfilt.stages.process import RecaptionAndScore

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.stages.context import Outcome

ONE_PASS = (RecaptionAndScore(),)


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """Two shards of real pictures."""
    folder = tmp_path / "web"
    folder.mkdir()
    for name in ("noisy.tar", "photos.tar"):
        shutil.copyfile(world.REAL / name, folder / name)
    return folder


def _once(run: Path, web: Path, bundles: dict[str, Path], **changes: object) -> tuple[Outcome, list[str]]:
    """Do the stage; returns its outcome and the shards that were handed out."""
    engine = world.InProcess()
    finished = world.run(run, web, bundles, stages=ONE_PASS, engine=engine, **changes)
    return finished.outcomes[0][1], [item.shard.name for item in engine.handed_out[1:]]


def test_what_is_committed_is_not_done_again(web: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    first, did = _once(tmp_path / "run", web, bundles)
    files = world.digests(tmp_path / "run" / "provenance", "[!s]*/*", "samples/*", "scores/*")

    second, did_again = _once(tmp_path / "run", web, bundles)

    assert did == ["noisy", "photos"]
    assert first.detail == "2 shards, 29 samples, 29 images"
    assert (first.status, first.count) == ("done", 29)
    assert did_again == []
    assert second.detail == "0 shards, 0 samples, 0 images; 2 shards were done before"
    assert world.digests(tmp_path / "run" / "provenance", "[!s]*/*", "samples/*", "scores/*") == files


@pytest.mark.parametrize("loss", ["manifest", "rows", "cut rows"])
def test_a_shard_that_is_not_whole_is_done_again_with_the_same_bytes(
    loss: str, web: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    _once(run.path, web, bundles)
    files = world.digests(run.provenance, "samples/*", "captions/*", "scores/*", "manifests/*")
    if loss == "manifest":
        next(run.manifests.glob("*photos.json")).unlink()
    elif loss == "rows":
        next(run.captions.glob("*photos.parquet")).unlink()
    else:
        file = next(run.scores.glob("*photos.parquet"))
        file.write_bytes(file.read_bytes()[:-10])

    _, did = _once(run.path, web, bundles)

    assert did == ["photos"]
    assert world.digests(run.provenance, "samples/*", "captions/*", "scores/*", "manifests/*") == files


def test_half_of_the_pass_is_recorded_as_that_half(bundles: dict[str, Path], tmp_path: Path) -> None:
    photos = world.REAL / "photos.tar"
    for name, recaption, score in (
        ("recaption", True, False),
        ("score", False, True),
        ("read", False, False),
    ):
        stage = RecaptionAndScore(recaption, score)
        run = world.run(tmp_path / name, photos, bundles, stages=(stage,)).run

        assert stage.name == name
        assert [row["stage"] for row in stage_rows(run)] == [name]
        facts = json.loads(stage_rows(run)[0]["settings"])
        assert (facts["captioner"] is not None, facts["filter"] is not None) == (recaption, score)
        [counts] = world.sql(
            run,
            "SELECT count(*) FILTER (WHERE source = 'web'), count(*) FILTER (WHERE source = 'synthetic'), "
            "count(itm) FROM pairs",
        )
        assert counts == (5, 5 * recaption, 5 * score)
        kinds = {kind for (kind,) in world.sql(run, "SELECT kind FROM models")}
        assert kinds == {kind for kind, used in (("captioner", recaption), ("filter", score)) if used}


def test_a_filter_that_cannot_write_is_refused_as_a_captioner(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    wrong = {"captioner": bundles["filter"], "filter": bundles["filter"]}

    with pytest.raises(CapfiltError, match="cannot write captions"):
        world.run(tmp_path / "run", world.REAL / "photos.tar", wrong, stages=ONE_PASS)

    [row] = stage_rows(RunDir(tmp_path / "run"))
    assert row["status"] == "failed"
    assert "cannot write captions" in row["detail"]
