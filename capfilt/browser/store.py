"""A run's rows in memory: DuckDB for what is searched, arrays for what is judged.

Samples are there at once, texts and scores shard after shard from a thread behind, so that the first page
needs the first shard alone. DuckDB reaches no file but the record of the run (see locked.py).
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from capfilt.browser.columns import Columns, joined
from capfilt.browser.locked import locked_connection
from capfilt.browser.shards import (
    ROW_BITS,
    ManifestReader,
    ShardFiles,
    ShardRows,
    damaged,
    read_rows,
)
from capfilt.browser.tables import PLANTED, SAMPLES, TABLES, json_path
from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import duckdb_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import duckdb

    from capfilt.browser.shards import Column
    from capfilt.provenance.rundir import RunDir

_READERS = 2
"""Shards that are read at once: reading is bound by the processor."""
_AHEAD = 4
_LOOKED_THROUGH = 1000
"""Samples in which the field of planted labels is looked for."""


class ClosedError(Exception):
    """The run is no longer looked at."""


@dataclass
class Store:
    """The rows of one run. Made by `open_store`; its methods may be called from several threads."""

    run: RunDir
    kind_field: str
    connection: duckdb.DuckDBPyConnection
    manifests: ManifestReader
    shards: dict[int, ShardFiles] = field(default_factory=dict)
    """By ordinal; committed, and loaded or being loaded."""
    version: int = 0
    """Grows with every change of the rows."""
    queries: int = 0
    """Queries run so far."""

    def __post_init__(self) -> None:
        self._state = threading.Condition()
        self._loaded: dict[int, ShardRows] = {}
        self._error: BaseException | None = None
        self._loader: threading.Thread | None = None
        self._is_loading = False
        self._closed = False
        self._columns: tuple[int, Columns] | None = None
        self._physical: dict[Column, str] = {}
        self._writing = threading.Lock()
        self._has_planted = False

    # -- questions

    def rows(self, sql: str, parameters: Sequence[object] | dict[str, object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query of ours; values are its parameters."""
        with self.cursor() as cursor:
            return cursor.execute(sql, parameters).fetchall()

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection of this thread's own."""
        self.queries += 1
        cursor = self.connection.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def wait(self, ordinals: Collection[int] | None = None) -> None:
        """Wait until these shards are loaded, or all; raises what went wrong with any of them."""
        with self._state:
            self._state.wait_for(
                lambda: self._error is not None or self._closed or self._are_loaded(ordinals)
            )
            if self._error is not None:
                raise self._error
            if self._closed:
                raise ClosedError

    @property
    def is_complete(self) -> bool:
        """Whether everything that was committed at the last refresh is loaded."""
        with self._state:
            return self._are_loaded(None)

    def _are_loaded(self, ordinals: Collection[int] | None) -> bool:
        wanted = self.shards.keys() if ordinals is None else ordinals
        return all(ordinal in self._loaded for ordinal in wanted)

    def columns(self) -> Columns:
        """Return every pair as arrays, once all are loaded."""
        self.wait()
        with self._writing, self._state:
            if self._closed:
                raise ClosedError
            if self._columns is None or self._columns[0] != self.version:
                columns, self._loaded = joined(self._loaded)
                with self.cursor() as cursor:
                    told = cursor.sql("SELECT sample, kind FROM planted ORDER BY sample").to_arrow_table()
                self._columns = (self.version, columns.with_planted(told["sample"], told["kind"]))
            return self._columns[1]

    def columns_of(self, ordinals: Collection[int]) -> Columns:
        """Return the pairs of some shards as arrays, once these are loaded."""
        self.wait(ordinals)
        with self._state:
            return joined({one: self._loaded[one] for one in set(ordinals) if one in self._loaded})[0]

    def physical(self, column: Column) -> str | None:
        """Return the name of the column of `pairs` that holds a filter's score; None where nothing does."""
        return self._physical.get(column)

    @property
    def measured(self) -> list[Column]:
        """Filters and scores that some pair has."""
        return list(self._physical)

    @property
    def filters(self) -> list[str]:
        """Digests of the filters that scored the run, those that scored whole shards first."""
        own = [digest for shard in self.shards.values() for digest in shard.manifest["filters"]]
        further = [digest for shard in self.shards.values() for digest in shard.filters]
        return list(dict.fromkeys((*own, *further)))

    # -- what is loaded

    def refresh(self) -> bool:
        """Take in what was committed since, and let go of what is no longer there; True for any change."""
        with self._writing:
            found = self.manifests.shards()
            changed = [
                ordinal
                for ordinal in {*found, *self.shards}
                if ordinal not in found
                or ordinal not in self.shards
                or found[ordinal].signature != self.shards[ordinal].signature
            ]
            if not changed and self._error is None:
                return False
            new = [found[ordinal] for ordinal in sorted(changed) if ordinal in found]
            with self.cursor() as cursor, _transaction(cursor):
                for ordinal in changed:
                    self._forget(cursor, ordinal)
                self._load_samples(cursor, new)
            with self._state:
                for ordinal in changed:
                    self._loaded.pop(ordinal, None)
                self.shards = found
                self.version += 1
                self._error = None
        self._load_behind()
        return bool(changed)

    def replace_labels(self, told: Sequence[tuple[int, str]]) -> None:
        """Have the table `labels` hold these verdicts of people, by the numbers of pairs, and no others."""
        with self._writing, self.cursor() as cursor, _transaction(cursor):
            cursor.execute("DELETE FROM labels")
            numbers, verdicts = [one[0] for one in told], [one[1] for one in told]
            cursor.execute("INSERT INTO labels SELECT unnest(?), unnest(?)", [numbers, verdicts])

    def close(self) -> None:
        """Stop loading and free the memory."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        if self._loader is not None:
            self._loader.join()
        with self._writing:
            self.connection.close()

    def _forget(self, cursor: duckdb.DuckDBPyConnection, ordinal: int) -> None:
        if ordinal in self.shards:
            ends = [ordinal << ROW_BITS, (ordinal + 1) << ROW_BITS]
            for table, column in (("samples", "sample"), ("pairs", "number"), ("planted", "sample")):
                cursor.execute(f"DELETE FROM {table} WHERE {column} >= ? AND {column} < ?", ends)

    def _load_samples(self, cursor: duckdb.DuckDBPyConnection, new: Sequence[ShardFiles]) -> None:
        if not new:
            return
        import duckdb

        files = [duckdb_path(shard.samples) for shard in new]
        try:
            cursor.execute(SAMPLES, [files])
        except duckdb.Error as error:
            raise damaged(self.run.samples, error) from error
        if not self._has_planted:
            found = cursor.execute(
                "SELECT count(*) FROM (SELECT metadata "
                "FROM read_parquet(?, hive_partitioning = false) LIMIT ?) "
                "WHERE CASE WHEN json_valid(metadata) THEN json_exists(metadata, ?) ELSE false END",
                [files[:1], _LOOKED_THROUGH, json_path(self.kind_field)],
            ).fetchone()
            self._has_planted = found is not None and found[0] > 0
        # The metadata of a large run are its longest column: read where there is something in them.

    def _load_behind(self) -> None:
        """Have a thread load what is not loaded; one at a time does."""
        with self._state:
            if self._is_loading:
                return
            self._is_loading = True
            self._loader = threading.Thread(target=self._load, daemon=True, name="capfilt-load")
            self._loader.start()

    def _load(self) -> None:
        try:
            with ThreadPoolExecutor(_READERS) as pool:
                while waiting := self._next_shards():
                    for shard, reading in [(shard, pool.submit(read_rows, shard)) for shard in waiting]:
                        self._take(shard, reading)
        except BaseException as error:  # noqa: BLE001  # raised in whoever waits for it
            with self._state:
                self._error, self._is_loading = error, False
        finally:
            with self._state:
                self._state.notify_all()

    def _take(self, shard: ShardFiles, reading: Future[ShardRows]) -> None:
        """Add the pairs of a shard that is being read."""
        try:
            rows = reading.result()
        except CapfiltError:
            if not self._was_replaced(shard):
                raise
            with self._state:  # the next refresh finds it as it is then
                self.shards = {o: one for o, one in self.shards.items() if one is not shard}
            return
        if not self._closed:
            self._insert(shard, rows)

    def _was_replaced(self, shard: ShardFiles) -> bool:
        """Return whether the files that could not be read are no longer those of the run."""
        try:
            now = ManifestReader(self.run).shards().get(shard.ordinal)
        except CapfiltError:
            return False
        return now is None or now.signature != shard.signature

    def _next_shards(self) -> list[ShardFiles]:
        """Return some shards that are to be loaded; where there is none the loader ends."""
        with self._state:
            waiting = [shard for ordinal, shard in self.shards.items() if ordinal not in self._loaded]
            self._is_loading = bool(waiting) and not self._closed
            return waiting[: _AHEAD * _READERS] if self._is_loading else []

    def _insert(self, shard: ShardFiles, rows: ShardRows) -> None:
        """Add the pairs of a shard, unless it was committed anew in the meantime."""
        with self._writing:
            if (known := self.shards.get(shard.ordinal)) is None or known.signature != shard.signature:
                return
            with self.cursor() as cursor, _transaction(cursor):
                self._add_columns(cursor, rows)
                cursor.register("incoming", self._table(rows))
                cursor.execute("INSERT INTO pairs BY NAME SELECT * FROM incoming")
                cursor.unregister("incoming")
                if self._has_planted:
                    path = json_path(self.kind_field)
                    cursor.execute(PLANTED, {"files": [duckdb_path(shard.samples)], "path": path})
            with self._state:
                self._loaded[shard.ordinal] = replace(rows, candidate=None, text=None)
                self.version += 1
                self._state.notify_all()

    def _add_columns(self, cursor: duckdb.DuckDBPyConnection, rows: ShardRows) -> None:
        for column in rows.scores:
            if column not in self._physical:
                name = f"score_{len(self._physical)}"
                cursor.execute(f"ALTER TABLE pairs ADD COLUMN {name} DOUBLE")
                self._physical[column] = name

    def _table(self, rows: ShardRows) -> Any:
        import pyarrow as pa

        scores = {self._physical[column]: values for column, values in rows.scores.items()}
        return pa.table(
            {
                "number": rows.numbers,
                "sample": rows.sample,
                "is_web": pa.array(rows.is_web),
                "candidate": rows.candidate,
                "text": rows.text,
                # NaN is a score that is not there.
                **{name: pa.array(values, from_pandas=True) for name, values in scores.items()},
            }
        )


def open_store(run: RunDir, *, kind_field: str) -> Store:
    """Return the rows of what is committed now, texts and scores still being loaded."""
    store = Store(run, kind_field, locked_connection(run), ManifestReader(run))
    try:
        store.connection.execute(TABLES)
        store.refresh()
    except BaseException:
        store.close()
        raise
    return store


@contextmanager
def _transaction(cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    cursor.begin()
    try:
        yield
    except BaseException:
        cursor.rollback()
        raise
    cursor.commit()
