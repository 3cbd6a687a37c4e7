"""The arms of the comparison: which of a run's texts a model is pre-trained on (BLIP, table 1).

The texts with their verdicts are written once beside the results, a row group for each shard, so that every
arm streams from the original shards by offset and no picture is copied.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from capfilt.canonical import canonical_json
from capfilt.data.sources import find_shards
from capfilt.data.stream import Reference, Text
from capfilt.errors import CapfiltError
from capfilt.files import whole_file
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.policy import newest_policy
from capfilt.provenance.rundir import recorded_facts
from capfilt.shell import shell_word

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capfilt.provenance.rundir import RunDir

Arm = Literal["none", "F", "C", "C+F", "repeated"]
ARMS: tuple[Arm, ...] = get_args(Arm)
WORDS: dict[Arm, str] = {
    "none": "raw web texts",
    "F": "web texts that the filter keeps",
    "C": "web and synthetic texts, unfiltered",
    "C+F": "web and synthetic texts that the filter keeps",
    "repeated": "raw web texts, as many as C+F has by repetition",
}
_TEXTS = """
    SELECT p.shard, h.path, p.key, s.image_offset, s.image_size, p.source, p.text, p.keep
    FROM pairs p JOIN samples s USING (shard, key) JOIN shards h USING (shard)
    WHERE s.status = 'ok' AND p.text IS NOT NULL AND p.shard = ?
    ORDER BY s.image_offset, p.source DESC, p.candidate
"""


def takes(arm: Arm, row: dict[str, Any]) -> bool:
    """Return whether a text is one of an arm's, by its source, text and verdict."""
    if not row["text"].strip():
        return False
    is_filtered, is_captioned = arm in ("F", "C+F"), arm in ("C", "C+F")
    return (bool(row["keep"]) or not is_filtered) and (row["source"] == "web" or is_captioned)


@dataclass(frozen=True)
class ArmPool:
    """The pictures of a run with the texts of one arm."""

    file: Path
    """Written by `write_texts`."""
    digest: str
    """Of the arm's texts, each with its picture's place: what the file says of other arms does not count."""
    arm: Arm
    shards: int

    def __len__(self) -> int:
        return self.shards

    def read(self, shard: int, refused: Counter[str]) -> Iterator[Reference]:
        """Yield the pictures of one shard that have a text in this arm; see `data.stream.Pool`."""
        import pyarrow.parquet as pq

        rows = pq.ParquetFile(self.file).read_row_group(shard).to_pylist()
        for (key, offset), group in groupby(rows, key=lambda row: (row["key"], row["image_offset"])):
            mine = list(group)
            texts = tuple(Text(row["source"], row["text"]) for row in mine if takes(self.arm, row))
            if not texts:
                refused["no_text_in_this_arm"] += 1
                continue
            first = mine[0]
            yield Reference(Path(first["path"]), offset, first["image_size"], first["shard"], key, texts)

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What the pairs depend on."""
        return [{"texts": self.digest, "arm": self.arm}]


@dataclass(frozen=True)
class Texts:
    """What was written of a run's texts."""

    file: Path
    digests: dict[Arm, str]
    """Of each arm's texts and where their pictures lie."""
    shards: int
    counts: dict[Arm, int]
    """Texts of each arm, before any is repeated."""
    pictures: dict[Arm, int]
    """Pictures that have a text in an arm."""

    def pool(self, arm: Arm) -> ArmPool:
        """Return the pictures of an arm; those of `repeated` are the raw ones, met more often."""
        own: Arm = "none" if arm == "repeated" else arm
        return ArmPool(self.file, self.digests[own], own, self.shards)

    def visits(self, arm: Arm) -> float:
        """Return how often an arm's pictures are to be met in a pass, for as many pairs as in every other.

        An arm with fewer pictures would otherwise see the clean pairs beside them more often, and be better
        for that. At least 1, so that every picture is met.
        """
        pictures = self.pictures["none" if arm == "repeated" else arm]
        return max(self.pictures.values()) / max(1, pictures)

    @property
    def repetition(self) -> float:
        """How often each raw text is to be met in a pass for as many texts as C+F has."""
        return max(1.0, self.counts["C+F"] / max(1, self.counts["none"]))


def write_texts(run: RunDir, folder: Path) -> Texts:
    """Write every text of a run with its verdict; CapfiltError where the run has no policy or no captions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if newest_policy(run) is None:
        raise CapfiltError(
            f"{run.path} has no policy, so that nothing says what is kept",
            fix=f"capfilt judge {shell_word(run.path)} --itm auto:recall=0.9",
        )
    _check_shards(run)
    file = folder / "texts.parquet"
    digests = {arm: hashlib.sha256() for arm in ARMS}
    counts: Counter[Arm] = Counter()
    pictures: Counter[Arm] = Counter()
    folder.mkdir(parents=True, exist_ok=True)
    with open_catalog(run) as catalog, whole_file(file) as temporary:
        shards = [name for (name,) in catalog.execute("SELECT shard FROM shards ORDER BY shard").fetchall()]
        schema = catalog.sql(_TEXTS, params=[""]).to_arrow_table().schema
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for shard in shards:
                table = catalog.sql(_TEXTS, params=[shard]).to_arrow_table()
                counts.update(_counted(table))
                pictures.update(_pictured(table))
                for row in table.drop_columns(["path"]).to_pylist():
                    for arm in ARMS:
                        if takes(arm, row):
                            place = {
                                name: row[name] for name in ("shard", "key", "image_offset", "source", "text")
                            }
                            digests[arm].update(canonical_json(place).encode())
                writer.write_table(table if len(table) else pa.Table.from_pylist([], schema), 1 << 30)
    if not counts["C"] > counts["none"]:
        raise CapfiltError(
            f"{run.path} holds no synthetic captions, so that there is nothing to compare",
            fix="give a run of `capfilt bootstrap`, with captioner and filter",
        )
    arms = [arm for arm in ARMS if arm != "repeated"]
    return Texts(
        file,
        {arm: digests[arm].hexdigest() for arm in arms},
        len(shards),
        counts={arm: counts[arm] for arm in arms},
        pictures={arm: pictures[arm] for arm in arms},
    )


def _counted(table: Any) -> Counter[Arm]:
    rows = table.select(["source", "text", "keep"]).to_pylist()
    return Counter(arm for row in rows for arm in ARMS if takes(arm, row))


def _pictured(table: Any) -> Counter[Arm]:
    rows = table.select(["key", "image_offset", "source", "text", "keep"]).to_pylist()
    seen = {(arm, row["key"], row["image_offset"]) for row in rows for arm in ARMS if takes(arm, row)}
    return Counter(arm for arm, _, _ in seen)


def _check_shards(run: RunDir) -> None:
    """Refuse shards that are no longer those of the run: other pictures would stand where texts point to."""
    recorded = {shard["name"]: shard["digest"] for shard in recorded_facts(run).get("web", ())}
    with open_catalog(run) as catalog:
        known = catalog.execute("SELECT shard, path FROM shards ORDER BY shard").fetchall()
    for name, path in known:
        if name in recorded and find_shards(path)[0].digest != recorded[name]:
            raise CapfiltError(
                f"{path} changed since {run.path} was made from it",
                fix="restore the shard, or start a new run on the changed input",
            )
