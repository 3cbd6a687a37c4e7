"""Programs that add labels to a run until they are done or killed.

python label_writers.py WHO RUN CALLS LABELS [PADDING]    add LABELS labels in each of CALLS calls
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from capfilt.provenance.label_rows import Label, append_labels
from capfilt.provenance.rundir import RunDir


def one_call(who: str, call: int, labels: int, padding: int = 0) -> list[Label]:
    """The labels of one call: it can be seen of each which others belong to it."""
    return [
        Label(f"{call}-{number}", "match", who, float(call), note="x" * padding, text_sha256="d")
        for number in range(labels)
    ]


def start(*words: object) -> subprocess.Popen[str]:
    """Start this file as a program and wait until it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def main() -> None:
    who, run, *numbers = sys.argv[1:]
    calls, labels, *padding = map(int, numbers)
    print("ready", flush=True)  # noqa: T201
    for call in range(calls):
        append_labels(RunDir(run), one_call(who, call, labels, *padding))


if __name__ == "__main__":
    main()
