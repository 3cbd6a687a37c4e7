"""Whole runs by the command line: in processes of their own, to be killed, or in this one, to be quick."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from capfilt.cli.main import app
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY = {
    "model.images.size_px": 16,
    "model.vision.width": 32,
    "model.vision.layers": 1,
    "model.vision.stem": "patch",
    "model.text.width": 32,
    "model.text.layers": 1,
    "model.text.feed_forward": 64,
    "model.text.vocabulary": 150,
    "model.embed": 16,
    "pretrain.phases.0.steps": 40,
    "pretrain.phases.0.batch_size": 16,
    "pretrain.checkpoint_every": 10,
    "captioner_training.phases.0.steps": 30,
    "captioner_training.phases.0.batch_size": 16,
    "captioner_training.checkpoint_every": 10,
    "filter_training.phases.0.steps": 30,
    "filter_training.phases.0.batch_size": 16,
    "filter_training.checkpoint_every": 10,
    "decoding.max_tokens": 8,
}
"""Pipeline `small`, smaller."""
HALF = ("--itm", "0", "--fraction", "0.5")
"""A policy that keeps half of the captions, whatever so short a training makes of their scores."""
MOST_SECONDS = 300


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.strip().rpartition("\n")[2]


@dataclass(frozen=True)
class Trained:
    """A run and how its command ended."""

    path: Path
    code: int
    out: str
    err: str


def bootstrap(drawn: Path, out: Path, *more: object, **changes: Any) -> list[str]:
    """Words of the command that trains from scratch; `changes` are settings, with `__` for a dot."""
    chosen = {**TINY, **{name.replace("__", "."): value for name, value in changes.items()}}
    sets = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
    words = ["bootstrap", drawn / "web", "--clean", drawn / "clean", "--out", out, "--pipeline", "small"]
    return [str(word) for word in (*words, *HALF, "--accept-weak-filter", *sets, *more)]


def given(drawn: Path, out: Path, models: Path, *more: object) -> list[str]:
    """Words of the command that takes trained models; no pipeline is named, so it is the default one."""
    words = [
        "bootstrap",
        drawn / "web",
        "--out",
        out,
        "--set",
        "decoding.max_tokens=8",
        "--precision",
        "fp32",
    ]
    words += ["--captioner", models / "captioner", "--filter", models / "filter"]
    return [str(word) for word in (*words, *HALF, "--accept-weak-filter", *more)]


def start(*words: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "capfilt", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*words: str) -> tuple[int, str, str]:
    """Run a command in a process of its own to its end: exit code, stdout, stderr."""
    process = start(*words)
    try:
        out, err = process.communicate(timeout=MOST_SECONDS)
    finally:
        process.kill()  # or one that takes too long goes on beside every test that follows
    return process.returncode, out, err


def capfilt(*words: object) -> Ended:
    """Run a command in this process; its workers are forked from one server for all such commands."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def kill_when(process: subprocess.Popen[str], moment: Callable[[], bool]) -> None:
    """Kill a process that must not end before its moment comes."""
    deadline = time.monotonic() + MOST_SECONDS
    while not moment():
        if process.poll() is not None:
            raise AssertionError(f"it ended before its moment came: {process.communicate()[1]}")
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError("its moment never came")
        time.sleep(0.002)
    process.kill()
    process.communicate()


def lasting(run: Path) -> dict[str, str]:
    """sha256 of every file whose bytes must not depend on when and how often a run was started."""
    patterns = (
        "models/**/*.safetensors",
        "models/**/*config.json",
        "models/**/vocab.txt",
        "models/**/tokenizer.json",
        "models/*/calibration.json",
        "models/**/capfilt.json",
        "provenance/samples/*",
        "provenance/captions/*",
        "provenance/scores/*",
        "provenance/policies/*",
        "provenance/calibration/*",
        "export/*",
    )
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in sorted(run.glob(pattern))
    }


def sql(run: Path, query: str) -> list[tuple[Any, ...]]:
    with open_catalog(RunDir(run)) as catalog:
        return catalog.execute(query).fetchall()


def copied(run: Path, to: Path) -> Path:
    """A copy of a run without its export."""
    shutil.copytree(run, to, ignore=lambda folder, _: {"export"} if folder == str(run) else set())
    return to
