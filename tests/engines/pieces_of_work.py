"""Work for the workers of an engine, and a program that is killed while its workers are at it.

python pieces_of_work.py FOLDER    start two workers that note their process ids in FOLDER and never end
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError, RunFailedError

if TYPE_CHECKING:
    from capfilt.stages.context import Tell


def square(item: tuple[int, float], device: str, tell: Tell) -> tuple[int, str]:
    """Take a while, say how far it is, return the square."""
    number, seconds = item
    tell(0, number)
    time.sleep(seconds)
    tell(number, number)
    return number**2, device


def threads(_item: int, _device: str, _tell: Tell) -> tuple[int, int, str]:
    """Return this worker's number of threads, its process and its word on tokenizers' threads."""
    import torch

    return torch.get_num_threads(), os.getpid(), os.environ["TOKENIZERS_PARALLELISM"]


class NotPortable(Exception):
    """An error of a library that cannot be sent: it takes two arguments and passes on one."""

    def __init__(self, what: str, more: object) -> None:
        super().__init__(what)
        self.more = more


def fail(item: str, _device: str, _tell: Tell) -> None:
    """Fail in the way that is asked for."""
    match item:
        case "wrong":
            raise CapfiltError("the shard is gone", fix="put it back")
        case "failed":
            raise RunFailedError("the disk is full", fix="free some space")
        case "defect":
            raise ZeroDivisionError("a defect of ours")
        case "not portable":
            raise NotPortable("of a library", lambda: None)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "left":
            os._exit(3)
        case "slow":
            time.sleep(60)


def linger(item: str, _device: str, _tell: Tell) -> None:
    """Note the process id and stay."""
    folder, name = item.split("|")
    Path(folder, name).write_text(str(os.getpid()))
    time.sleep(600)


def main() -> None:
    from pieces_of_work import linger  # by a name that workers can import

    from capfilt.engines.local import LocalEngine

    items = [f"{sys.argv[1]}|one", f"{sys.argv[1]}|two"]
    for _ in LocalEngine().run(linger, items, devices=["cpu", "cpu"], threads=1):
        pass


if __name__ == "__main__":
    main()
