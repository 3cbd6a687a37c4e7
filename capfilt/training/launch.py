"""In how many processes a command was launched: known from the environment, without torch."""

from __future__ import annotations

import os

from capfilt.errors import CapfiltError


def rank() -> int:
    """Return the number of this process among those that torchrun started, from 0."""
    return int(os.environ.get("RANK", "0"))


def launched() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Return whether this process is the one that writes and speaks."""
    return rank() == 0


def check_launch(processes: int, command: str) -> None:
    """Refuse to start in another number of processes than was asked for.

    Launchers have been seen to start one process where two were asked for, without a word. `command` is
    what torchrun is to run in each process, such as "-m capfilt pretrain ...".
    """
    if launched() == processes:
        return
    asked = f"{processes} processes are" if processes > 1 else "1 process is"
    were = f"{launched()} were" if launched() > 1 else "1 was"
    raise CapfiltError(
        f"compute.processes: {asked} asked for, and {were} launched",
        fix=f"torchrun --standalone --nproc_per_node {processes} {command}"
        if processes > 1
        else f"say so with --set compute.processes={launched()}, or start it without torchrun",
    )
