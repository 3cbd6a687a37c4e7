from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
import world

from capfilt.data.sources import find_shards, read_bytes, read_shard
from capfilt.data.stream import TarPool
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.provenance.commit import commit_scores, manifests
from capfilt.provenance.policy import newest_policy
from capfilt.records import Shard
from capfilt.settings import Export, Input, Judge
from capfilt.stages import export as export_module
from capfilt.stages.export import export_run
from capfilt.stages.judge import judge_run

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir

SOURCE = world.REAL / "noisy.tar"


def _samples(folder: Path) -> list[dict[str, Any]]:
    """Every sample of an export, read by the standard library: image, text and json."""
    samples: dict[tuple[str, str], dict[str, Any]] = {}
    for tar in sorted(folder.glob("*.tar")):
        for name, data in world.members(tar).items():
            key, _, extension = name.partition(".")
            kind = extension if extension in ("txt", "json") else "image"
            samples.setdefault((tar.name, key), {"name": name})[kind] = data
    return [
        {**sample, "txt": sample["txt"].decode(), "json": json.loads(sample["json"])}
        for sample in samples.values()
    ]


def _kept(run: RunDir, source: str = "%") -> dict[str, list[tuple[str, float, str]]]:
    """By key of the input: (text, ITM, source) of what the policy keeps, the best first."""
    rows = world.sql(
        run,
        "SELECT key, text, itm, source FROM pairs WHERE keep AND source LIKE ? ORDER BY key, itm DESC",
        source,
    )
    kept: dict[str, list[tuple[str, float, str]]] = {}
    for key, *pair in rows:
        kept.setdefault(key, []).append(tuple(pair))
    return kept


@pytest.mark.parametrize("texts", ["best", "all", "web", "synthetic"])
def test_what_is_kept_comes_out_with_the_very_bytes_of_its_picture(
    fresh: RunDir, tmp_path: Path, texts: Any
) -> None:
    judge_run(fresh, Judge(itm="0.3"))
    originals = {
        name.partition(".")[0]: data
        for name, data in world.members(SOURCE).items()
        if not name.endswith((".txt", ".json"))
    }
    expected = _kept(fresh, texts if texts in ("web", "synthetic") else "%")
    assert any(len(pairs) > 1 for pairs in _kept(fresh).values())

    made = export_run(fresh, tmp_path / "to", Export(texts=texts))

    samples = _samples(tmp_path / "to")
    assert made.samples == len(samples) == len(expected) > 0
    for sample in samples:
        provenance = sample["json"]["capfilt"]
        pairs = expected.pop(provenance["key"])
        assert sample["image"] == originals[provenance["key"]]
        assert hashlib.sha256(sample["image"]).hexdigest() == provenance["image_sha256"]
        assert sample["txt"] == pairs[0][0]
        written = [(pair["text"], pair["itm"], pair["source"]) for pair in provenance["captions"]]
        assert written == (pairs if texts == "all" else pairs[:1])
    assert expected == {}


def test_what_the_metadata_said_goes_along_and_the_provenance_of_the_pair(
    fresh: RunDir, tmp_path: Path
) -> None:
    originals = world.members(SOURCE)

    export_run(fresh, tmp_path / "to", Export())

    rows = world.sql(
        fresh, "SELECT pair_id, captioner, filter, decoding, prompt, seed, round, itc FROM pairs"
    )
    facts = {row[0]: row[1:] for row in rows}
    names = ("captioner", "filter", "decoding", "prompt", "seed", "round", "itc")
    for sample in _samples(tmp_path / "to"):
        own = sample["json"].pop("capfilt")
        assert sample["json"] == json.loads(originals[f"{own['key']}.json"])
        [pair] = own["captions"]
        assert tuple(pair[name] for name in names) == facts[pair["pair_id"]]
        assert own["shard"] == "noisy"


def test_an_export_is_read_back_by_our_own_reader(fresh: RunDir, tmp_path: Path) -> None:
    made = export_run(fresh, tmp_path / "to", Export(samples_per_shard=5))

    read = [sample for shard in find_shards(tmp_path / "to") for sample in read_shard(shard, Input())]

    assert made.shards == len(list((tmp_path / "to").glob("*.tar"))) == -(-made.samples // 5)
    assert len(read) == made.samples
    assert {sample.status for sample in read} == {"ok"}
    assert [sample.web_text for sample in read] == [s["txt"] for s in _samples(tmp_path / "to")]


def test_an_export_is_streamed_with_every_text_that_was_kept(fresh: RunDir, tmp_path: Path) -> None:
    judge_run(fresh, Judge(itm="0.3"))
    kept = _kept(fresh)
    export_run(fresh, tmp_path / "to", Export(texts="all", samples_per_shard=5))
    refused: Counter[str] = Counter()

    pool = TarPool(tuple(find_shards(tmp_path / "to")), Input(), "clean")
    read = [reference for shard in range(len(pool)) for reference in pool.read(shard, refused)]

    assert [[(text.text, text.source) for text in reference.texts] for reference in read] == [
        [(text, source) for text, _, source in kept[sample["json"]["capfilt"]["key"]]]
        for sample in _samples(tmp_path / "to")
    ]
    assert any(len(reference.texts) > 1 for reference in read)
    assert [read_bytes(one.path, one.offset, one.size) for one in read] == [
        sample["image"] for sample in _samples(tmp_path / "to")
    ]
    assert not refused


def test_the_same_export_has_the_same_bytes_and_is_written_once(fresh: RunDir, tmp_path: Path) -> None:
    first = export_run(fresh, tmp_path / "a", Export(samples_per_shard=7))
    second = export_run(fresh, tmp_path / "b", Export(samples_per_shard=7))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    again = export_run(fresh, tmp_path / "a", Export(samples_per_shard=7))

    assert (first.is_new, second.is_new, again.is_new) == (True, True, False)
    assert (again.samples, again.shards) == (first.samples, first.shards)
    assert world.digests(tmp_path / "a") == world.digests(tmp_path / "b")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == times


def test_a_changed_policy_replaces_the_export(fresh: RunDir) -> None:
    export_run(fresh, fresh.export, Export())
    before = world.digests(fresh.export)
    judge_run(fresh, Judge(fraction=0.3))

    made = export_run(fresh, fresh.export, Export())

    assert made.is_new
    assert made.samples == len(_kept(fresh))
    assert json.loads((fresh.export / "policy.json").read_text())["words"].startswith("among the best 30%")
    assert world.digests(fresh.export) != before
    assert [path.name for path in fresh.path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("harm", ["a shard is gone", "a shard is cut", "the card is gone"])
def test_an_export_that_was_harmed_is_made_again(fresh: RunDir, harm: str) -> None:
    export_run(fresh, fresh.export, Export())
    before = world.digests(fresh.export)
    tar = fresh.export / "00000.tar"
    if harm == "a shard is gone":
        tar.unlink()
    elif harm == "a shard is cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    else:
        (fresh.export / "README.md").unlink()

    assert export_run(fresh, fresh.export, Export()).is_new
    assert world.digests(fresh.export) == before


def test_further_scores_of_the_policys_filter_change_the_export(fresh: RunDir, tmp_path: Path) -> None:
    """A policy may name a filter whose scores came half; when the rest is there, the export is another."""
    [row] = manifests(fresh)
    shard = Shard(row["shard"], SOURCE, row["ordinal"], row["bytes"], row["digest"])
    ids = [pair for (pair,) in world.sql(fresh, "SELECT pair_id FROM captions ORDER BY 1")]
    other = "a" * 64

    def scored(some: list[str], fingerprint: str) -> None:
        scores = [{"pair_id": pair, "filter": other, "score": "itm", "value": 0.9} for pair in some]
        commit_scores(fresh, shard, filter_digest=other, fingerprint=fingerprint, scores=scores)

    scored(ids[:6], "half")
    judge_run(fresh, Judge(itm="0.5"), filter_digest=other[:8])
    half = export_run(fresh, tmp_path / "to", Export(texts="all"))
    scored(ids, "all")
    whole = export_run(fresh, tmp_path / "to", Export(texts="all"))

    assert whole.is_new
    assert (half.samples <= 6, whole.samples) == (True, 24)


@pytest.mark.parametrize("kind", ["shards", "file", "other json"])
def test_a_folder_of_other_things_is_refused_and_left_alone(fresh: RunDir, tmp_path: Path, kind: str) -> None:
    to = tmp_path / "to"
    if kind == "file":
        to.write_text("mine")
    else:
        to.mkdir()
        (to / ("manifest.json" if kind == "other json" else "0.tar")).write_text('{"mine": 1}')
    before = world.digests(tmp_path)

    with pytest.raises(CapfiltError, match="is no export of capfilt") as caught:
        export_run(fresh, to, Export())

    assert "--to a new folder" in caught.value.fix
    assert world.digests(tmp_path) == before


def test_overwriting_replaces_a_folder_of_other_things(fresh: RunDir, tmp_path: Path) -> None:
    to = tmp_path / "to"
    to.mkdir()
    (to / "mine.txt").write_text("mine")

    made = export_run(fresh, to, Export(), overwrite=True)

    assert made.is_new
    assert not (to / "mine.txt").exists()
    assert (to / "manifest.json").exists()


def test_an_empty_folder_is_taken(fresh: RunDir, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()

    assert export_run(fresh, tmp_path / "to", Export()).is_new


@pytest.mark.parametrize("moment", [0, 1, 5])
def test_an_export_that_is_interrupted_leaves_the_old_one_whole(
    fresh: RunDir, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    export_run(fresh, fresh.export, Export())
    before = world.digests(fresh.export)
    judge_run(fresh, Judge(itm="0.05"))
    read, calls = export_module.judged_bytes, []

    def full(shard: Path, offset: int, size: int, sha256: str) -> bytes:
        calls.append(offset)
        if len(calls) > moment:
            raise OSError(errno.ENOSPC, "No space left on device")
        return read(shard, offset, size, sha256)

    monkeypatch.setattr(export_module, "judged_bytes", full)
    with pytest.raises(RunFailedError, match="is full") as caught:
        export_run(fresh, fresh.export, Export())
    monkeypatch.undo()

    assert "same command again" in caught.value.fix
    assert world.digests(fresh.export) == before
    assert [path.name for path in fresh.path.iterdir() if path.name.startswith(".")] == []
    assert export_run(fresh, fresh.export, Export()).is_new


def test_the_manifest_names_every_file_by_its_sha256(fresh: RunDir) -> None:
    export_run(fresh, fresh.export, Export(samples_per_shard=6))

    manifest = json.loads((fresh.export / "manifest.json").read_text())
    named = {row["name"]: row["sha256"] for row in manifest["shards"]} | manifest["files"]
    assert named | {"manifest.json": ""} == world.digests(fresh.export) | {"manifest.json": ""}
    for row in manifest["shards"]:
        members = world.members(fresh.export / row["name"])
        assert row["samples"] == len({name.partition(".")[0] for name in members})
        assert row["bytes"] == (fresh.export / row["name"]).stat().st_size
    assert manifest["samples"] == sum(row["samples"] for row in manifest["shards"])


def test_verdicts_cover_every_pair_dropped_ones_included(fresh: RunDir) -> None:
    export_run(fresh, fresh.export, Export())

    rows = pq.read_table(fresh.export / "verdicts.parquet").to_pylist()
    expected = world.sql(fresh, "SELECT pair_id, keep, reason, itm FROM pairs ORDER BY pair_id")
    assert [(row["pair_id"], row["keep"], row["reason"], row["itm"]) for row in rows] == expected
    assert {row["keep"] for row in rows} == {True, False}


def test_the_policy_beside_the_shards_is_the_one_in_force(fresh: RunDir) -> None:
    export_run(fresh, fresh.export, Export())

    record = json.loads((fresh.export / "policy.json").read_text())
    newest = newest_policy(fresh)
    assert newest is not None
    assert record == {**newest[1].record(), "digest": newest[1].digest, "words": newest[1].words}


def test_where_nothing_was_scored_the_new_caption_goes_out(bundles: dict[str, Path], tmp_path: Path) -> None:
    run = world.run(tmp_path / "run", world.REAL / "photos.tar", bundles, score=False).run

    samples = _samples(run.export)

    written = dict(world.sql(run, "SELECT key, text FROM captions WHERE source = 'synthetic'"))
    assert {s["json"]["capfilt"]["key"]: s["txt"] for s in samples} == written
    assert len(samples) == 5


def test_a_policy_that_keeps_nothing_exports_nothing_and_says_what_to_type(fresh: RunDir) -> None:
    judge_run(fresh, Judge(itc="1.0"))

    with pytest.raises(CapfiltError, match="keeps no caption") as caught:
        export_run(fresh, fresh.export, Export())

    assert "capfilt " in caught.value.fix
    assert not fresh.export.exists()


def test_the_best_text_is_best_by_the_score_that_the_policy_reads(fresh: RunDir, tmp_path: Path) -> None:
    judge_run(fresh, Judge(itc="-1"))
    best = dict(
        world.sql(
            fresh, "SELECT key, arg_max(text, (itc, source = 'web')) FROM pairs GROUP BY key ORDER BY key"
        )
    )
    by_itm = dict(world.sql(fresh, "SELECT key, arg_max(text, itm) FROM pairs GROUP BY key"))
    assert best != by_itm

    export_run(fresh, tmp_path / "to", Export())

    samples = _samples(tmp_path / "to")
    assert {sample["json"]["capfilt"]["key"]: sample["txt"] for sample in samples} == best


def test_a_run_that_nobody_judged_is_refused_with_what_to_type(fresh: RunDir, tmp_path: Path) -> None:
    shutil.rmtree(fresh.policies)

    with pytest.raises(CapfiltError, match="has no policy yet") as caught:
        export_run(fresh, tmp_path / "to", Export())

    assert f"capfilt judge {fresh.path} --itm 0.5" in caught.value.fix


def test_a_shard_whose_pictures_changed_is_not_exported_as_if_they_had_not(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    web = tmp_path / "web.tar"
    shutil.copyfile(SOURCE, web)
    run = world.run(tmp_path / "run", web, bundles).run
    data = bytearray(web.read_bytes())
    for (offset,) in world.sql(run, "SELECT image_offset FROM samples"):
        data[offset + 40] ^= 0xFF
    web.write_bytes(bytes(data))

    with pytest.raises(CapfiltError, match="has changed: another picture stands at byte"):
        export_run(run, tmp_path / "to", Export())

    assert not (tmp_path / "to").exists()
