"""The folder of a run: where everything lies, who holds it, and what its rows depend on.

No other module joins a path below a run, so a run can be moved and its layout read in one place. Names
from the web never become paths: a shard's file is named by its ordinal, with a sanitised name behind it
for people.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json, digest_of
from capfilt.errors import CapfiltError
from capfilt.files import TEMPORARY_PREFIX, disk_errors, remove_temporaries, write_whole
from capfilt.provenance.differences import differences, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from capfilt.records import Shard

_NAME_LENGTH = 80
"""Characters of a shard's name that stand in its files' names; file systems allow 255 bytes."""
_HOW_TO_MAKE = "make a run with `capfilt bootstrap WEB --clean CLEAN --out RUN`, or give the folder of one"


class RunDir:
    """Every path of a run. Making one touches no disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.run_file = self.path / "run.json"
        """What the rows depend on, and the settings of the first start."""
        self.lock_file = self.path / "run.lock"
        self.export = self.path / "export"
        """The cleaned shards."""
        self.export_manifest = self.export / "manifest.json"
        self.rounds = self.path / "rounds"
        """Further rounds of bootstrapping, each a run of its own."""
        self.gain = self.path / "gain"
        """What bootstrapping was worth: models and figures of `capfilt evaluate gain`."""
        self.report = self.path / "report.html"
        """One page to look at the run."""
        self.catalog_file = self.path / "catalog.duckdb"
        """Views for people with a DuckDB shell; can be deleted."""
        self.provenance = self.path / "provenance"
        self.samples = self.provenance / "samples"
        self.captions = self.provenance / "captions"
        self.scores = self.provenance / "scores"
        self.manifests = self.provenance / "manifests"
        self.stages = self.provenance / "stages"
        self.metrics = self.provenance / "metrics"
        self.policies = self.provenance / "policies"
        self.models = self.provenance / "models"
        """One row a model; the weights are in `model(kind)`."""
        self.calibration = self.provenance / "calibration"
        self.given = self.provenance / "given"
        """Where each model came from that was given to the run."""
        self.labels = self.provenance / "labels"
        """What people said of pairs."""
        self.labels_file = self.labels / "labels.jsonl"
        self.strata_file = self.labels / "strata.json"
        """How pairs are divided by score, so that samples drawn at different times are of one kind."""
        self.next_file = self.provenance / "next.json"
        """The model that was pre-trained on this round's export, and what it depends on."""
        self.previous_file = self.provenance / "previous.json"
        """The same of the round before: where this round's `init` comes from."""

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    def model(self, kind: str) -> Path:
        """Return the bundle of a model: captioner, filter, joint, init, next, or a further filter."""
        return self.path / "models" / safe_name(kind)

    def given_file(self, name: str) -> Path:
        """Return the record of where the model of this name came from."""
        return self.given / f"{safe_name(name)}.json"

    def training(self, name: str) -> Path:
        """Return where a training in progress keeps its checkpoints."""
        return self.path / "training" / safe_name(name)

    def curves(self, name: str) -> Path:
        """Return the picture of the training of this model."""
        return self.path / "curves" / f"{safe_name(name)}.png"

    def round(self, number: int) -> RunDir:
        """Return the run of a round, from 1: the first round is this run, a further one lies in it."""
        return self if number == 1 else RunDir(self.rounds / str(number))

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """Return the run at `path`; a folder that is no run is refused, saying what it is."""
        run = cls(path)
        if not run.run_file.is_file():
            raise CapfiltError(f"{run.path} is no run: {_what_it_is(run.path)}", fix=_HOW_TO_MAKE)
        return run

    @classmethod
    def create(cls, path: Path | str) -> RunDir:
        """Return the run at `path`, there already or to be made; a folder of other things is refused."""
        run = cls(path)
        if run.path.exists() and not run.run_file.is_file() and (not run.path.is_dir() or _names(run.path)):
            raise CapfiltError(
                f"no run can be made in {run.path}: {_what_it_is(run.path)}",
                fix="give --out a new or an empty folder, or one that holds a run",
            )
        with disk_errors(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        return run


def safe_name(text: str) -> str:
    """Return a text as one part of a path: [A-Za-z0-9._-], no leading dot, at most 80 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+|^\.+", "_", text)[:_NAME_LENGTH] or "_"


def shard_file(shard: Shard) -> str:
    """Return the stem of a shard's files: its ordinal, which is unique in a run, and its sanitised name."""
    return f"{shard.ordinal:06d}-{safe_name(shard.name)}"


def read_json(path: Path, *, mend: str) -> Any:
    """Read a JSON file of a run; one that somebody damaged is an error with its mend."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise CapfiltError(f"{path} is damaged: {error}", fix=mend) from error


def json_files(folder: Path) -> list[Path]:
    """Return a folder's JSON files, sorted; temporaries of killed writers are not among them."""
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


# -- who holds the run


@contextmanager
def lock(run: RunDir) -> Iterator[None]:
    """Hold the run; a second process is refused with the name of the first."""
    with hold(run.lock_file, run.path):
        remove_temporaries(run.run_file)
        yield


@contextmanager
def hold(lock_file: Path, what: Path) -> Iterator[None]:
    """Hold what a lock file stands for; a second process is refused with the name of the first.

    The lock is an flock: the kernel drops it with its holder, however that dies. It belongs to the open
    file, which exec'd and spawned processes do not inherit (O_CLOEXEC) but forked ones share: start
    workers by spawn or forkserver, or they keep the lock after a killed parent. The holder may remove
    the file.
    """
    with disk_errors(lock_file):
        descriptor = _opened(lock_file)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _in_use(lock_file, what) from None
            if _is_still(lock_file, descriptor):
                break
            os.close(descriptor)
            with disk_errors(lock_file):
                descriptor = _opened(lock_file)
        with disk_errors(lock_file):
            _note_holder(descriptor)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _opened(lock_file: Path) -> int:
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    return os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _is_still(lock_file: Path, descriptor: int) -> bool:
    """Return whether the file that was opened is still the one of that name: its holder may have ended."""
    try:
        return os.path.samestat(lock_file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _note_holder(descriptor: int) -> None:
    """Write who holds the lock, for the message that others get."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": sys.argv}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, canonical_json(holder).encode("utf-8"), 0)


def _in_use(lock_file: Path, what: Path) -> CapfiltError:
    fix = "wait until it has ended, stop it, or give another --out"
    try:
        holder = json.loads(lock_file.read_text(encoding="utf-8"))
        command = shown(" ".join(holder["command"]))
        who = f"process {int(holder['pid'])} on {shown(holder['host'])}: {command}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return CapfiltError(f"{what} is in use by {who}", fix=fix)


# -- what the rows depend on


def record_run(
    run: RunDir, facts: Mapping[str, Any], *, settings: Any = None, command: Sequence[str] = ()
) -> str:
    """Write what the run's rows depend on at its first start; refuse other facts at a later one.

    `facts` is a nested mapping of plain values (models, shards, decoding, seed, ...). `settings` and
    `command` are kept for people and compared with nothing. Returns the digest of the facts, which is the
    fingerprint of a run.
    """
    new = json.loads(canonical_json(facts))
    if not run.run_file.exists():
        record = {"facts": new, "fingerprint": digest_of(new), "settings": settings, "command": list(command)}
        record = json.loads(canonical_json(record))
        write_whole(run.run_file, json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    old = recorded_facts(run)
    found = differences(old, new)
    if found:
        raise CapfiltError(
            f"{run.path} was started with other choices (recorded -> given):\n"
            + "\n".join(f"    {line}" for line in found),
            fix="give the recorded values again to go on with this run, or another --out to start a new one",
        )
    return digest_of(new)


def recorded_facts(run: RunDir) -> dict[str, Any]:
    """Return what the run's rows depend on, as its first start recorded it."""
    record = read_json(run.run_file, mend="restore run.json from a copy, or start a new run elsewhere")
    facts: dict[str, Any] = record["facts"]
    return facts


# -- what a folder is


def _names(folder: Path) -> list[str]:
    """Return a folder's names, those that a run makes before its first record left out."""
    return [
        p.name for p in folder.iterdir() if p.name != "run.lock" and not p.name.startswith(TEMPORARY_PREFIX)
    ]


def _what_it_is(path: Path) -> str:
    if not path.exists():
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file"
    names = _names(path)
    if not names:
        return "the folder is empty"
    if "capfilt.json" in names:
        return "it is a bundle, a trained model"
    if tars := sum(name.endswith(".tar") for name in names):
        return f"it is a folder of shards ({tars} .tar files)"
    return "it holds no run.json"


# -- what was done, and when


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage of one start of the run; its fields are columns of `stages`."""

    stage: str
    start: int
    """Which start of the run, from 1."""
    started: float
    """Seconds since 1970."""
    status: str = "running"
    """running, done, withheld or failed."""
    detail: str = ""
    """Why it was withheld or failed, or what it made."""
    ended: float | None = None
    """Seconds since 1970; None while it runs."""
    count: int | None = None
    """Images, steps or pairs."""
    settings: str = "{}"
    """Canonical JSON."""
    versions: str = "{}"
    """Canonical JSON."""

    def finished(
        self, status: str, *, ended: float, detail: str = "", count: int | None = None
    ) -> StageRecord:
        """Return the record of the same stage, ended."""
        return replace(self, status=status, ended=ended, detail=detail, count=count)

    @property
    def per_second(self) -> float | None:
        """Count by second; None while it runs or where nothing was counted."""
        if self.ended is None or self.count is None or self.ended <= self.started:
            return None
        return self.count / (self.ended - self.started)


def save_stage(run: RunDir, record: StageRecord) -> None:
    """Write a stage's record, replacing that of the same stage and start."""
    path = run.stages / f"{record.start:06d}-{safe_name(record.stage)}.json"
    write_whole(path, canonical_json({**asdict(record), "per_second": record.per_second}))


def stage_rows(run: RunDir) -> list[dict[str, Any]]:
    """Return the stages by start and time; one that an older start left running was interrupted."""
    rows = [read_json(path, mend="remove the file: it records times only") for path in json_files(run.stages)]
    newest = max((row["start"] for row in rows), default=0)
    for row in rows:
        if row["status"] == "running" and row["start"] < newest:
            row["status"] = "interrupted"
    return sorted(rows, key=lambda row: (row["start"], row["started"], row["stage"]))


def next_start(run: RunDir) -> int:
    """Return the number of a start that begins now: one more than the last that recorded a stage."""
    return max((row["start"] for row in stage_rows(run)), default=0) + 1
