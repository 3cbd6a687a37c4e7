"""The committed files of a run as arrays: what is compared, counted and sorted, and nothing else.

Every row has a number that no later commit changes: the shard's ordinal above, the row in its file below.
Rows of two files are brought together by key and by pair_id, as the record has them, whatever their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.provenance.commit import missing_files
from capfilt.provenance.rundir import json_files, read_json
from capfilt.records import Source, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from capfilt.provenance.rundir import RunDir

ROW_BITS = 32
"""Bits of a number that are the row in a file; above them stands the shard's ordinal."""
_DIGITS = 32
"""Hexadecimal digits of a pair_id."""
_MEND = "give the run's command again: it does that shard anew"
_OF_CAPTIONS = ("pair_id", "key", "source", "candidate", "text")
_OF_SCORES = ("pair_id", "filter", "score", "value")

Column = tuple[str, str]
"""A filter's digest and the name of a score."""


@dataclass(frozen=True)
class ShardFiles:
    """A committed shard and the files of its rows, those of further filters' scores too."""

    ordinal: int
    name: str
    manifest: dict[str, Any]
    """Its own, which holds the counts."""
    samples: Path
    captions: Path
    scores: tuple[Path, ...]
    filters: tuple[str, ...]
    signature: tuple[tuple[str, int, str], ...]
    """Changes when a file does."""

    @property
    def base(self) -> int:
        """The number of its first row."""
        return self.ordinal << ROW_BITS

    @property
    def tar(self) -> Path:
        """Where the shard was read."""
        return Path(self.manifest["path"])


@dataclass
class ManifestReader:
    """Reads a run's manifests; one that was read before is read again only when it changed."""

    run: RunDir

    def __post_init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}

    def shards(self) -> dict[int, ShardFiles]:
        """Return the committed shards by ordinal; CapfiltError where a file is gone or damaged."""
        mend = "remove the file and " + _MEND
        found: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}
        for path in json_files(self.run.manifests):
            try:
                status = path.stat()
                stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
                known = self._known.get(path)
                if known is None or known[0] != stamp:
                    manifest = read_json(path, mend=mend)
                    if gone := missing_files(self.run, manifest):
                        if not path.exists():
                            continue  # the shard is being done anew
                        raise CapfiltError(
                            f"{gone[0]} is gone or damaged, and the manifest of shard {manifest['shard']} "
                            "names it",
                            fix=_MEND,
                        )
                    known = (stamp, manifest)
            except FileNotFoundError:
                continue
            found[path] = known
        self._known = found
        return _by_ordinal(self.run, [manifest for _, manifest in found.values()])


def _by_ordinal(run: RunDir, manifests: list[dict[str, Any]]) -> dict[int, ShardFiles]:
    shards: dict[int, ShardFiles] = {}
    own = {manifest["ordinal"]: manifest for manifest in manifests if manifest["kind"] == "shard"}
    for ordinal, manifest in sorted(own.items()):
        further = [m for m in manifests if m["kind"] == "scores" and m["ordinal"] == ordinal]
        both = [manifest, *sorted(further, key=lambda m: list(m["filters"]))]
        files = [file for one in both for file in one["files"]]
        paths = [run.provenance / file["path"] for file in files]
        shards[ordinal] = ShardFiles(
            ordinal=ordinal,
            name=manifest["shard"],
            manifest=manifest,
            samples=next(path for path in paths if path.parent == run.samples),
            captions=next(path for path in paths if path.parent == run.captions),
            scores=tuple(path for path in paths if path.parent == run.scores),
            filters=tuple(dict.fromkeys(digest for one in both for digest in one["filters"])),
            signature=tuple((file["path"], file["size"], file["sha256"]) for file in files),
        )
    return shards


@dataclass(frozen=True)
class ShardRows:
    """The texts of one shard with what was measured of them: a row a pair, by samples, then by captions."""

    numbers: NDArray[np.int64]
    sample: NDArray[np.int64]
    """Number of each pair's sample."""
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    """Both halves of each pair_id."""
    is_web: NDArray[np.bool_]
    is_blank: NDArray[np.bool_]
    """Whether a text has no words; no policy keeps such a one."""
    twin: NDArray[np.int32]
    """Where a sample has a text several times, the text's number in the shard; -1 where it has it once."""
    scores: Mapping[Column, NDArray[np.float64]]
    """NaN where a pair lacks one."""
    candidate: pa.Array | None = None
    text: pa.Array | None = None
    """Both are searched in a database and not kept here."""


def read_rows(shard: ShardFiles) -> ShardRows:
    """Read the rows of a shard; CapfiltError where they contradict one another."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    samples = read_columns(shard.samples, ("key", "status"), dictionaries=("status",))
    usable = np.flatnonzero(_numpy(pc.equal(samples["status"], Status.OK.value)))
    captions = read_columns(shard.captions, _OF_CAPTIONS, dictionaries=("source",))
    sample = usable[_places(captions["key"], samples["key"].take(pa.array(usable)), shard)]
    order = np.argsort(sample, kind="stable")
    names = captions["pair_id"].combine_chunks()
    scores: dict[Column, NDArray[np.float64]] = {}
    for path in shard.scores:
        _add_scores(scores, path, names, shard)
    high, low = halves(names)
    captions = captions.take(pa.array(order))
    text = captions["text"].combine_chunks()
    sample = sample[order]
    return ShardRows(
        numbers=order.astype(np.int64) + shard.base,
        sample=sample.astype(np.int64) + shard.base,
        high=high[order],
        low=low[order],
        is_web=_numpy(pc.equal(captions["source"], Source.WEB.value)),
        is_blank=blank(text),
        twin=twins(text, sample),
        scores={column: values[order] for column, values in scores.items()},
        candidate=captions["candidate"].combine_chunks(),
        text=text,
    )


def read_columns(path: Path, columns: tuple[str, ...], *, dictionaries: tuple[str, ...] = ()) -> pa.Table:
    """Read some columns of one Parquet file; CapfiltError where it is gone or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A file is opened by itself: read as a data set, a folder named a=b would become a column.
        with (
            pa.OSFile(str(path)) as source,
            pq.ParquetFile(source, read_dictionary=list(dictionaries)) as file,
        ):
            return file.read(columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CapfiltError:
    """Return the error for a file of the run that cannot be read."""
    what = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CapfiltError(f"{path} cannot be read: {what}", fix=_MEND)


def blank(texts: pa.Array) -> NDArray[np.bool_]:
    """Return which texts are null, empty or white space alone, as a policy sees it."""
    import numpy as np

    ends = np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, texts.offset * 4)
    octets = np.frombuffer(texts.buffers()[2] or b"\0", np.uint8)
    first = octets[np.minimum(ends[:-1], len(octets) - 1)]
    # Nearly every text begins with a letter; of the others Python looks at all characters.
    found = ~((np.diff(ends) > 0) & (first > 32) & (first < 127))
    for place in np.flatnonzero(found).tolist():
        text = texts[place].as_py()
        found[place] = text is None or not text or text.isspace()
    return found


def twins(texts: pa.Array, sample: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the number of each text that its sample has several times, and -1 for the others.

    Texts are compared letter for letter; equal ones have one number, whatever their samples.
    """
    import numpy as np

    told = texts.dictionary_encode()
    found = told.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    # Nearly every text stands once in a shard, and the others are few enough to be sorted.
    often = np.flatnonzero((np.bincount(found + 1, minlength=2) > 1)[found + 1] & (found >= 0))
    _, which, times = np.unique(
        (sample[often] << ROW_BITS) | found[often], return_inverse=True, return_counts=True
    )
    twin = np.full(len(found), -1, np.int32)
    again = often[times[which] > 1]
    twin[again] = found[again]
    return twin


def halves(names: pa.Array) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return pair_ids as two numbers each, whose order is that of the texts.

    CapfiltError for a name that is not 32 hexadecimal digits, in small letters.
    """
    import numpy as np

    count = len(names)
    if not count:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    ends = np.frombuffer(names.buffers()[1], np.int32, count + 1, names.offset * 4)
    if names.null_count or (np.diff(ends) != _DIGITS).any():
        raise CapfiltError("a pair_id of the record is not 32 hexadecimal digits", fix=_MEND)
    letters = np.frombuffer(names.buffers()[2], np.uint8, count * _DIGITS, int(ends[0]))
    table = np.full(256, 255, np.uint8)
    table[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
    nibbles = table[letters]
    if nibbles.max() > 15:
        raise CapfiltError("a pair_id of the record is not 32 hexadecimal digits", fix=_MEND)
    octets = (nibbles[0::2] << 4) | nibbles[1::2]
    both = octets.view(">u8").reshape(count, 2).astype(np.uint64)
    return both[:, 0].copy(), both[:, 1].copy()


def _add_scores(
    scores: dict[Column, NDArray[np.float64]], path: Path, names: pa.Array, shard: ShardFiles
) -> None:
    import numpy as np

    # A pair has a row for each score, so its name is repeated and is looked up once.
    table = read_columns(path, _OF_SCORES, dictionaries=("pair_id", "filter", "score"))
    if not table.num_rows:
        return
    scored = table["pair_id"].unify_dictionaries().combine_chunks()
    place = _places(scored.dictionary, names, shard)[_numpy(scored.indices)]
    filters, filter_of = _dictionary(table["filter"])
    kinds, kind_of = _dictionary(table["score"])
    values = _numpy(table["value"])
    which = filter_of * len(kinds) + kind_of
    for number in np.flatnonzero(np.bincount(which)):
        column = (filters[number // len(kinds)], kinds[number % len(kinds)])
        mine = which == number
        array = scores.setdefault(column, np.full(len(names), np.nan))
        array[place[mine]] = values[mine]


def _places(
    names: pa.Array | pa.ChunkedArray, among: pa.Array | pa.ChunkedArray, shard: ShardFiles
) -> NDArray[np.int64]:
    """Return where each name stands among others that have no repetition."""
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among
    found = pc.index_in(names, value_set=whole)
    if found.null_count:
        raise CapfiltError(
            f"the files of shard {shard.name} contradict one another: a row names what is in none of them",
            fix=_MEND,
        )
    return _numpy(found)


def _dictionary(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    import numpy as np

    whole = column.unify_dictionaries().combine_chunks()
    return whole.dictionary.to_pylist(), whole.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _numpy(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    import pyarrow as pa

    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array: NDArray[Any] = whole.to_numpy(zero_copy_only=False)
    return array
