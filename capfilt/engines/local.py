"""Workers as processes of this machine, one for each device.

They are forked from a small server that has imported the models once, so that a worker is ready at
once, holds no lock of its parent's, and starts without threads. A worker ends when its parent does,
however that dies.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import traceback
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError, RunFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from capfilt.stages.context import Item, Result, Work

PRELOADED = ("capfilt.models.captioner", "capfilt.models.filter", "capfilt.training.loop")
"""What every worker needs and is slow to import."""


class LocalEngine:
    """Hands out items to processes on this machine."""

    def __init__(self) -> None:
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(list(PRELOADED))

    def run(
        self,
        work: Work[Item, Result],
        items: Sequence[Item],
        *,
        devices: Sequence[str],
        threads: int,
        hear: Callable[[int, int, int], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Yield (number of the item, its result) as they come; see `stages.context.Engine`."""
        waiting = list(enumerate(items))[::-1]
        workers: dict[multiprocessing.connection.Connection, Any] = {}
        try:
            for device in devices[: len(items)]:
                ours, theirs = self._processes.Pipe()
                process = self._processes.Process(
                    target=_work, args=(work, theirs, device, threads), daemon=True
                )
                process.start()
                theirs.close()
                workers[ours] = process
                _hand(ours, process, waiting.pop())
            while workers:
                for connection in multiprocessing.connection.wait(list(workers)):
                    assert isinstance(connection, multiprocessing.connection.Connection)
                    try:
                        kind, number, value = connection.recv()
                    except (EOFError, OSError):
                        raise _died(workers[connection]) from None
                    if kind == "progress":
                        if hear is not None:
                            hear(number, *value)
                        continue
                    if kind == "words":
                        if say is not None:
                            say(value)
                        continue
                    if kind == "error":
                        error, where = value
                        if not isinstance(error, CapfiltError):
                            error.add_note(where)
                        raise error
                    if waiting:
                        _hand(connection, workers[connection], waiting.pop())
                    else:
                        _hand(connection, workers[connection], None)
                        workers.pop(connection).join()
                    yield number, value
        finally:
            for process in workers.values():
                process.kill()
            for process in workers.values():
                process.join()


def _work(
    work: Work[Any, Any], connection: multiprocessing.connection.Connection, device: str, threads: int
) -> None:
    """Do items until there are no more."""
    _end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    from capfilt.models.devices import keep_freed_memory

    torch.set_num_threads(threads)
    if device == "cpu":
        keep_freed_memory()
    while (job := connection.recv()) is not None:
        number, item = job

        tell = _Teller(connection, number)

        try:
            result = work(item, device, tell)
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised in the parent
            connection.send(("error", number, (_portable(error), traceback.format_exc())))
            return
        connection.send(("result", number, result))


class _Teller:
    """A worker's word on its item, sent to whoever handed it out."""

    def __init__(self, connection: multiprocessing.connection.Connection, number: int) -> None:
        self._connection, self._number = connection, number

    def __call__(self, done: int, total: int, words: str = "") -> None:
        if words:
            self._connection.send(("words", self._number, words))
        else:
            self._connection.send(("progress", self._number, (done, total)))


def _hand(connection: multiprocessing.connection.Connection, process: Any, job: Any) -> None:
    """Give a worker its next item, or None to end."""
    try:
        connection.send(job)
    except OSError:
        raise _died(process) from None


def _end_with_parent() -> None:
    """End this process when the one that asked for the work is gone, without waiting for a next word."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _portable(error: BaseException) -> BaseException:
    """Return an error that survives being sent: errors of libraries may not."""
    import pickle

    try:
        copy = pickle.loads(pickle.dumps(error))  # our own bytes
    except Exception:  # noqa: BLE001  # any failure means the same
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error if type(copy) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")


def _died(process: Any) -> RunFailedError:
    process.join(5)
    code = process.exitcode
    hint = " (killed, perhaps for want of memory)" if code == -9 else ""
    return RunFailedError(
        f"a worker ended without a word, exit code {code}{hint}",
        fix="give the same command again: it goes on where it stopped; with less memory take fewer --workers "
        "or a smaller --batch-size",
    )
