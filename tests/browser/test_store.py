from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import FILTER, SECOND, make_run, make_shard, score_again, start_run

from capfilt.browser import store as store_module
from capfilt.browser.shards import blank, halves, read_rows
from capfilt.browser.store import open_store
from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import open_catalog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capfilt.browser.store import Store
    from capfilt.provenance.rundir import RunDir


def by_name(store: Store) -> dict[str, tuple[Any, ...]]:
    """What the arrays hold of each pair: source, blank, and the scores of both filters."""
    columns = store.columns()
    wanted = [(FILTER, "itm"), (FILTER, "itc"), (SECOND, "itc")]
    nothing = np.full(len(columns), np.nan)
    arrays = [columns.scores.get(one, nothing) for one in wanted]
    return {
        columns.pair_id(row): (
            "web" if columns.is_web[row] else "synthetic",
            *(None if np.isnan(array[row]) else float(array[row]) for array in arrays),
        )
        for row in range(len(columns))
    }


def by_catalog(run: RunDir, further: str = "itc_1a2b3c4d") -> dict[str, tuple[Any, ...]]:
    """The same, as the run's catalog brings its files together."""
    with open_catalog(run) as catalog:
        rows = catalog.execute(f"SELECT pair_id, source, itm, itc, {further} FROM pairs").fetchall()
    return {name: tuple(rest) for name, *rest in rows}


def test_rows_are_those_of_the_catalog_in_whatever_order_the_files_hold_them(tmp_path: Path) -> None:
    run, made = make_run(tmp_path / "run")
    for one in made:
        score_again(run, one)
    store = open_store(run, kind_field="noise_kind")
    assert by_name(store) == by_catalog(run)
    store.close()


def test_pairs_of_a_picture_stand_together(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run")
    store = open_store(run, kind_field="noise_kind")
    columns = store.columns()
    assert (np.diff(columns.sample) >= 0).all()
    keys = store.rows("SELECT sample, count(*) FROM pairs GROUP BY sample ORDER BY sample")
    assert keys == list(
        zip(*map(np.ndarray.tolist, np.unique(columns.sample, return_counts=True)), strict=True)
    )
    store.close()


def test_the_first_shard_is_there_before_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = make_run(tmp_path / "run", shards=4)
    go_on, read = threading.Event(), []

    def held(shard: Any) -> Any:
        if shard.ordinal > 0:
            go_on.wait(60)
        read.append(shard.ordinal)
        return read_rows(shard)

    monkeypatch.setattr(store_module, "read_rows", held)
    store = open_store(run, kind_field="noise_kind")
    store.wait([0])
    assert read == [0]
    assert not store.is_complete
    assert len(store.columns_of([0])) > 0
    assert store.rows("SELECT count(*) FROM samples") == [(24,)]
    go_on.set()
    store.wait()
    assert sorted(read) == [0, 1, 2, 3]
    store.close()


def test_a_refresh_takes_in_new_shards_and_reads_no_old_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = make_run(tmp_path / "run", shards=2)
    read = []
    monkeypatch.setattr(
        store_module, "read_rows", lambda shard: read.append(shard.ordinal) or read_rows(shard)
    )
    store = open_store(run, kind_field="noise_kind")
    before = len(store.columns())
    assert not store.refresh()
    make_shard(tmp_path / "web", 2).commit(run)
    assert store.refresh()
    assert len(store.columns()) > before
    assert by_name(store) == by_catalog(run, "NULL")
    assert sorted(read) == [0, 1, 2]
    store.close()


def test_a_shard_that_was_done_anew_leaves_nothing_of_its_old_rows(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=2)
    store = open_store(run, kind_field="noise_kind")
    store.columns()
    make_shard(tmp_path / "web", 1, count=9, candidates=1).commit(run, fingerprint="new")
    assert store.refresh()
    assert by_name(store) == by_catalog(run, "NULL")
    assert store.rows("SELECT count(*) FROM samples") == [(6 + 9,)]
    assert store.rows("SELECT count(*) FROM pairs") == [(len(store.columns()),)]
    store.close()


def test_scores_of_a_further_filter_appear_with_the_next_refresh(tmp_path: Path) -> None:
    run, made = make_run(tmp_path / "run", shards=2)
    store = open_store(run, kind_field="noise_kind")
    store.columns()
    score_again(run, made[1])
    assert store.refresh()
    assert by_name(store) == by_catalog(run)
    assert store.filters == [FILTER, SECOND]
    store.close()


def test_a_run_without_a_shard_is_empty_and_not_an_error(tmp_path: Path) -> None:
    store = open_store(start_run(tmp_path / "run"), kind_field="noise_kind")
    assert len(store.columns()) == 0
    assert store.columns().pictures == 0
    assert store.filters == []
    store.close()


def test_a_folder_with_signs_that_mean_something_to_duckdb_is_a_folder(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "it's a=b [1] *" / "run", kinds=("right", "swap"))
    store = open_store(run, kind_field="noise_kind")
    assert by_name(store) == by_catalog(run, "NULL")
    assert store.columns().kinds
    store.close()


def test_a_damaged_file_is_told_and_mended_by_the_next_refresh(tmp_path: Path) -> None:
    run, made = make_run(tmp_path / "run", shards=2)
    file = next(run.captions.glob("000001*"))
    whole = file.read_bytes()
    file.write_bytes(bytes(len(whole)))
    store = open_store(run, kind_field="noise_kind")
    with pytest.raises(CapfiltError, match=r"000001-00001\.parquet cannot be read"):
        store.columns()
    file.write_bytes(whole)
    store.refresh()
    assert len(store.columns()) == sum(len(one.captions) for one in made)
    store.close()


def test_a_damaged_file_of_samples_is_told_at_once(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=2)
    file = next(run.samples.glob("000001*"))
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(CapfiltError, match=r"samples cannot be read: .*000001-00001"):
        open_store(run, kind_field="noise_kind")


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=1)
    next(run.scores.glob("*.parquet")).unlink()
    with pytest.raises(CapfiltError, match=r"000000-00000\.parquet is gone or damaged"):
        open_store(run, kind_field="noise_kind")


def test_rows_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=2)
    first, second = sorted(run.captions.glob("*.parquet"))
    store = open_store(run, kind_field="noise_kind")
    [shard] = [one for one in store.shards.values() if one.ordinal == 1]
    second.write_bytes(first.read_bytes())
    with pytest.raises(CapfiltError, match="contradict one another"):
        read_rows(shard)
    store.close()


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Store]:
    run, _ = make_run(tmp_path / "run", shards=1)
    (tmp_path / "secret.txt").write_text("a secret")
    store = open_store(run, kind_field="noise_kind")
    store.wait()
    yield store
    store.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{outside}/secret.txt')",
        "COPY (SELECT 1) TO '{outside}/written.csv'",
        "ATTACH '{outside}/other.duckdb'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "SET memory_limit = '1TB'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM glob('{outside}/*')",
        "SELECT * FROM '{outside}/secret.txt'",
    ],
)
def test_nothing_outside_the_run_can_be_reached_and_no_setting_changed(
    locked: Store, tmp_path: Path, sql: str
) -> None:
    with pytest.raises(duckdb.Error):
        locked.rows(sql.format(outside=tmp_path))
    assert not (tmp_path / "written.csv").exists()


@given(
    texts=st.lists(
        st.one_of(st.none(), st.text(max_size=4), st.sampled_from([" ", "\u00a0", "\x1f", "\x85"]))
    )
)
def test_blank_texts_are_those_that_a_policy_drops(texts: list[str | None]) -> None:
    import pyarrow as pa

    assert blank(pa.array(texts, pa.string())).tolist() == [not (text or "").strip() for text in texts]


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=20))
def test_pair_ids_as_numbers_keep_their_order_and_come_back(names: list[bytes]) -> None:
    import pyarrow as pa

    texts = [name.hex() for name in names]
    high, low = halves(pa.array(texts, pa.string()))
    assert [f"{h:016x}{w:016x}" for h, w in zip(high.tolist(), low.tolist(), strict=True)] == texts
    assert np.lexsort((low, high)).tolist() == sorted(range(len(texts)), key=lambda n: (texts[n], n))


@pytest.mark.parametrize("name", ["", "0" * 31, "0" * 33, "G" + "0" * 31, "A" + "0" * 31])
def test_a_name_that_is_no_pair_id_is_refused(name: str) -> None:
    import pyarrow as pa

    with pytest.raises(CapfiltError, match="32 hexadecimal digits"):
        halves(pa.array(["0" * 32, name]))


def test_a_pair_is_found_by_its_name(tmp_path: Path) -> None:
    run, made = make_run(tmp_path / "run")
    store = open_store(run, kind_field="noise_kind")
    columns = store.columns()
    names = [row["pair_id"] for one in made for row in one.captions]
    assert [columns.pair_id(row) for row in columns.places(names).tolist()] == names
    assert columns.places(["0" * 32, names[0][:16] + "0" * 16]).tolist() == [-1, -1]
    # Python would read most of these as a number.
    odd = ["", "no name", f"0x{names[0][2:]}", f" {names[0]}", f"{names[0]}_0", names[0].upper(), "f" * 64]
    assert columns.places([*odd, names[0]]).tolist() == [-1] * len(odd) + columns.places(names[:1]).tolist()
    store.close()


def test_as_many_kinds_may_be_planted_as_there_are_texts(tmp_path: Path) -> None:
    """The metadata are a stranger's: it may say something else of every text."""
    import pyarrow as pa

    store = open_store(make_run(tmp_path / "run")[0], kind_field="noise_kind")
    numbers = np.arange(70_000)
    columns = replace(store.columns(), sample=numbers, is_web=numbers >= 0)
    store.close()
    said = pa.chunked_array([pa.array([f"kind {number}" for number in numbers])])
    found = columns.with_planted(pa.chunked_array([pa.array(numbers)]), said)
    assert [found.kinds[place] for place in found.planted.tolist()] == said.to_pylist()
