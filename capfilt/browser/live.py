"""Where a run stands, read from its files at every look: stages, shards that are committed, newest texts."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING

from capfilt.browser.previews import Live, Newest
from capfilt.browser.shards import read_columns
from capfilt.errors import CapfiltError
from capfilt.provenance.lineage import rounds_of
from capfilt.provenance.rundir import recorded_facts, stage_rows
from capfilt.records import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from capfilt.browser.shards import ManifestReader, ShardFiles
    from capfilt.provenance.rundir import RunDir

NEWEST = 12
"""Texts shown."""


def live(run: RunDir, reader: Callable[[RunDir], ManifestReader]) -> Live:
    """Return where a run stands, in the last round that began; `reader` gives that of a round's manifests."""
    number, last = rounds_of(run)[-1]
    # The first round's folder holds all of them.
    is_running = is_held(run)
    shards = list(reader(last).shards().values())
    stages = stage_rows(last)
    stage = stages[-1] if stages else None
    refusals: Counter[str] = Counter()
    for shard in shards:
        refusals.update(shard.manifest["reasons"])
    ended = None if stage is None else (stage["ended"] or (time.time() if is_running else None))
    status = None if stage is None else stage["status"]
    return Live(
        is_running=is_running,
        round=number,
        stage=None if stage is None else stage["stage"],
        # Nobody is left who could end it.
        status="interrupted" if status == "running" and not is_running else status,
        detail="" if stage is None else stage["detail"],
        seconds=None if stage is None or ended is None else max(0.0, ended - stage["started"]),
        shards=len(shards),
        shards_total=_shards_total(last),
        samples=sum(shard.manifest["samples_in"] for shard in shards),
        pictures=sum(shard.manifest["statuses"].get("ok", 0) for shard in shards),
        captions=sum(shard.manifest["rows"].get("captions", 0) for shard in shards),
        images_per_second=_rate(stage, shards, last),
        refusals=dict(refusals.most_common()),
        newest=_newest(last, shards),
    )


def is_held(run: RunDir) -> bool:
    """Return whether a process holds the run, by what it wrote into its lock.

    The lock itself is not tried: whoever starts a run in that moment would be refused.
    """
    try:
        holder = json.loads(run.lock_file.read_text(encoding="utf-8"))
        host, process = str(holder["host"]), int(holder["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # its holder empties it
    if host != socket.gethostname():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _shards_total(run: RunDir) -> int | None:
    try:
        web = recorded_facts(run).get("web")
    except (OSError, KeyError, CapfiltError):
        return None
    return len(web) if isinstance(web, list) else None


def _rate(stage: dict[str, Any] | None, shards: Sequence[ShardFiles], run: RunDir) -> float | None:
    """Return the stage's own rate, else that of the shards that were committed since it began."""
    if stage is None:
        return None
    if stage["per_second"] is not None:
        return float(stage["per_second"])
    times = [(_committed(shard, run), shard.manifest["statuses"].get("ok", 0)) for shard in shards]
    since = [(when, images) for when, images in times if when is not None and when >= stage["started"]]
    if not since:
        return None
    seconds = max(when for when, _ in since) - stage["started"]
    return sum(images for _, images in since) / seconds if seconds > 0 else None


def _committed(shard: ShardFiles, run: RunDir) -> float | None:
    """Return when a shard was committed; None where that file is gone."""
    try:
        return (run.manifests / shard.captions.with_suffix(".json").name).stat().st_mtime
    except OSError:
        return None


def _newest(run: RunDir, shards: Sequence[ShardFiles]) -> list[Newest]:
    """Return the last synthetic texts of the shard that was committed last."""
    import pyarrow.compute as pc

    times = [(when, shard) for shard in shards if (when := _committed(shard, run)) is not None]
    if not times:
        return []
    _, newest = max(times, key=lambda one: (one[0], one[1].ordinal))
    try:
        table = read_columns(newest.captions, ("key", "source", "text"), dictionaries=("source",))
    except CapfiltError:
        return []  # the shard is being done anew
    mine = table.filter(pc.equal(table["source"], Source.SYNTHETIC.value))
    last = mine.slice(max(0, mine.num_rows - NEWEST)).to_pylist()
    return [Newest(newest.name, row["key"], row["source"], row["text"] or "") for row in reversed(last)]
