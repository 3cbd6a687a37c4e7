from __future__ import annotations

import errno
import json
import os
import shutil
import tarfile
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
import world

from capfilt import files
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.layers import changed
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.rundir import RunDir, lock, recorded_facts, stage_rows
from capfilt.settings import Bootstrap, Compute
from capfilt.stages.bootstrap import Request, bootstrap, resolve_devices
from capfilt.stages.judge import JudgePairs
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.train import TrainModels

if TYPE_CHECKING:
    from pathlib import Path

PHOTOS = world.REAL / "photos.tar"


def _refused(run: RunDir, web: Path, bundles: dict[str, Path], **changes: Any) -> str:
    with pytest.raises(CapfiltError, match="started with other choices") as caught:
        world.run(run.path, web, bundles, **changes)
    assert "another --out" in caught.value.fix
    assert "recorded values again" in caught.value.fix
    return caught.value.what


def test_every_sample_of_the_input_is_a_row(finished: RunDir) -> None:
    with tarfile.open(world.REAL / "noisy.tar") as tar:
        keys = {member.name.partition(".")[0] for member in tar}

    assert world.sql(finished, "SELECT count(*), count(DISTINCT key) FROM samples") == [
        (len(keys), len(keys))
    ]
    assert world.sql(finished, "SELECT sum(samples_in), sum(samples_ok + samples_refused) FROM shards") == [
        (len(keys), len(keys))
    ]


def test_stages_are_recorded_in_order_with_their_times_and_settings(finished: RunDir) -> None:
    rows = stage_rows(finished)

    assert [(row["stage"], row["status"]) for row in rows] == [
        ("recaption_and_score", "done"),
        ("judge", "done"),
        ("export", "done"),
    ]
    assert all(row["started"] <= row["ended"] for row in rows)
    assert [row["ended"] for row in rows] == sorted(row["ended"] for row in rows)
    assert json.loads(rows[0]["settings"])["decoding"]["max_tokens"] == 8
    assert "torch" in json.loads(rows[0]["versions"])
    assert rows[0]["per_second"] == rows[0]["count"] / (rows[0]["ended"] - rows[0]["started"])


def test_the_catalog_on_the_disk_shows_the_same_as_one_in_memory(finished: RunDir) -> None:
    with (
        duckdb.connect(finished.catalog_file, read_only=True) as on_disk,
        open_catalog(finished) as in_memory,
    ):
        for table in ("samples", "pairs", "shards", "models", "policies", "stages"):
            query = f"SELECT * FROM {table} ORDER BY ALL"
            assert on_disk.execute(query).fetchall() == in_memory.execute(query).fetchall()


def test_what_may_differ_at_each_start_is_not_asked_about(
    fresh: RunDir, bundles: dict[str, Path], tmp_path: Path
) -> None:
    web = world.REAL / "noisy.tar"
    elsewhere = {name: shutil.copytree(path, tmp_path / "moved" / name) for name, path in bundles.items()}
    facts = recorded_facts(fresh)

    for number, (given, changes) in enumerate(
        (
            (bundles, {"compute": {"workers": 2}}),
            (bundles, {"export": {"texts": "all"}}),
            (bundles, {"judge": {"itm": "0.8"}}),
            (bundles, {"clean": {"cache_mb": 1}}),
            (
                bundles,
                {"captioner_training": {"phases": [{"lm": 1.0}], "checkpoint_every": 3, "log_every": 1}},
            ),
            (elsewhere, {}),
        ),
        start=2,
    ):
        engine = world.InProcess()
        done = world.run(fresh.path, web, given, engine=engine, **changes)
        assert [outcome.status for _, outcome in done.outcomes] == ["done"] * 3
        assert len(engine.handed_out) == 1, "a shard was done again"
        assert max(row["start"] for row in stage_rows(fresh)) == number
    assert recorded_facts(fresh) == facts


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"decoding": {"top_p": 0.5}}, ("decoding.top_p", "0.9", "0.5")),
        ({"seed": 4}, ("seed", "0", "4")),
        ({"candidates": 2}, ("candidates", "1", "2")),
        ({"compute": {"batch_size": 9}}, ("batch_size", "8", "9")),
        ({"compute": {"threads": 2}}, ("threads", "1", "2")),
        ({"compute": {"precision": "bf16"}}, ("precision", "fp32", "bf16")),
        ({"input": {"max_pixels": 77}}, ("input.max_pixels", "100000000", "77")),
        ({"clean": {"held_out": 0.5}}, ("clean.held_out", "0.1", "0.5")),
    ],
)
def test_what_the_rows_depend_on_is_not_changed_in_the_middle(
    fresh: RunDir, bundles: dict[str, Path], change: dict[str, Any], shown: tuple[str, ...]
) -> None:
    before = world.digests(fresh.path)

    what = _refused(fresh, world.REAL / "noisy.tar", bundles, **change)

    assert all(word in what for word in shown)
    after = world.digests(fresh.path)
    assert {name for name in after if after[name] != before.get(name)} <= {"run.lock"}


def test_other_models_and_other_shards_are_another_run(
    fresh: RunDir, bundles: dict[str, Path], tmp_path: Path
) -> None:
    other = _refused(fresh, world.REAL / "noisy.tar", {**bundles, "filter": bundles["second"]})
    web = _refused(fresh, world.REAL, bundles)
    changed_tar = tmp_path / "noisy.tar"
    data = bytearray((world.REAL / "noisy.tar").read_bytes())
    data[2000] ^= 1
    changed_tar.write_bytes(bytes(data))

    touched = _refused(fresh, changed_tar, bundles)

    assert "bundles.filter" in other
    assert "photos" in web
    assert "noisy" in touched


def test_a_shard_may_move_as_long_as_it_is_the_same(
    fresh: RunDir, bundles: dict[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "noisy.tar"
    moved.parent.mkdir()
    shutil.copyfile(world.REAL / "noisy.tar", moved)

    done = world.run(fresh.path, moved, bundles)

    assert done.outcomes[0][1].detail.endswith("1 shards were done before")


def test_training_without_clean_pairs_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    settings = changed(Bootstrap(), {"compute": {"device": "cpu", "workers": 1}})
    stages = [TrainModels(("captioner", "filter")), RecaptionAndScore()]
    request = Request(str(PHOTOS), None, tmp_path / "run", settings, stages)

    with pytest.raises(CapfiltError, match="clean pairs are needed") as caught:
        bootstrap(request, world.InProcess(), world.QUIET)

    assert "--captioner and --filter" in caught.value.fix
    assert not (tmp_path / "run").exists()


def test_an_input_of_empty_shards_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "web.tar").touch()

    with pytest.raises(CapfiltError, match="every shard is empty"):
        world.run(tmp_path / "run", tmp_path / "web.tar", bundles)

    assert not (tmp_path / "run").exists()


def test_a_tar_without_samples_is_a_run_without_rows(bundles: dict[str, Path], tmp_path: Path) -> None:
    web = world.write_tar(tmp_path / "web.tar", [("README", "no samples here")])

    done = world.run(tmp_path / "run", web, bundles)

    assert [outcome.status for _, outcome in done.outcomes] == ["done", "done", "withheld"]
    assert world.sql(done.run, "SELECT count(*) FROM samples") == [(0,)]
    assert world.sql(done.run, "SELECT samples_in FROM shards") == [(0,)]


def test_a_stage_that_fails_is_recorded_and_the_lock_is_free_again(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        with files.whole_file(tmp_path / "file"):
            raise OSError(errno.ENOSPC, "No space left on device")

    run = RunDir(tmp_path / "run")
    monkeypatch.setattr(RecaptionAndScore, "_work", full)
    with pytest.raises(RunFailedError, match="is full") as caught:
        world.run(run.path, PHOTOS, bundles)
    monkeypatch.undo()

    assert "goes on where it stopped" in caught.value.fix
    [row] = stage_rows(run)
    assert (row["stage"], row["status"]) == ("recaption_and_score", "failed")
    assert "is full" in row["detail"]
    assert row["ended"] >= row["started"]
    with lock(run):
        pass
    assert [outcome.status for _, outcome in world.run(run.path, PHOTOS, bundles).outcomes] == ["done"] * 3
    assert {row["start"] for row in stage_rows(run)} == {1, 2}


@pytest.mark.parametrize("folder", ["samples", "scores", "manifests", "policies", "stages"])
def test_a_disk_that_fills_up_anywhere_ends_with_the_mend_and_the_same_command_goes_on(
    bundles: dict[str, Path], finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    flush, run = files._flush, RunDir(tmp_path / "run")

    def full(path: Path) -> None:
        if path.parent.name == folder:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(RunFailedError, match="the disk that holds"):
        world.run(run.path, world.REAL / "noisy.tar", bundles)
    monkeypatch.undo()
    assert not list(run.path.rglob(".partial-*.parquet.*"))

    world.run(run.path, world.REAL / "noisy.tar", bundles)

    rows = ("samples/*", "captions/*", "scores/*")
    assert world.digests(run.provenance, *rows) == world.digests(finished.provenance, *rows)
    assert world.digests(run.export) == world.digests(finished.export)


def test_a_file_is_no_folder_for_a_run(bundles: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    with pytest.raises(CapfiltError, match="it is a file") as caught:
        world.run(tmp_path / "file", PHOTOS, bundles)

    assert "a new or an empty folder" in caught.value.fix
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_may_not_be_written_is_an_error_with_the_mend(
    fresh: RunDir, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # Tests may run as root, whom no permission stops.
    monkeypatch.setattr(files, "_flush", refused)
    with pytest.raises(RunFailedError, match="cannot be written: Permission denied") as caught:
        world.run(fresh.path, world.REAL / "noisy.tar", bundles)

    assert "a folder that you may write to" in caught.value.fix


def test_a_run_in_use_is_refused_by_name(fresh: RunDir, bundles: dict[str, Path]) -> None:
    with lock(fresh), pytest.raises(CapfiltError, match=f"in use by process {os.getpid()}"):
        world.run(fresh.path, world.REAL / "noisy.tar", bundles)


def test_devices_and_precision_are_those_asked_for() -> None:
    for precision in ("fp32", "bf16", "int8"):
        compute = Compute(device="cpu", workers=3, precision=precision)

        assert resolve_devices(compute, world.InProcess()) == (["cpu"] * 3, precision)


def test_a_pipeline_without_an_export_ends_with_its_verdicts(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    done = world.run(tmp_path / "run", PHOTOS, bundles, stages=(RecaptionAndScore(), JudgePairs()))

    assert done.next_command == ""
    assert [name for name, _ in done.outcomes] == ["recaption_and_score", "judge"]
    assert not done.run.export.exists()
