"""Files that are either whole or not there.

Everything a run must not lose is written to a temporary beside its place, flushed to disk and
renamed. A process killed at any moment leaves the old file, the new one, or a stray temporary whose
name starts with a dot and that the next writer removes. A folder that replaces another is away for a
moment between two renames; killed there, the next writer puts the old one back first.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from capfilt.errors import RunFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMPORARY_PREFIX = ".partial-"
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
"""Errors that say that a file cannot be made there at all."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends without an error it becomes `path`."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            _flush(temporary)
            temporary.replace(path)
            flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends without an error it replaces `path`."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{TEMPORARY_PREFIX}{path.name}.old")
        if aside.exists() and not path.exists():
            aside.replace(path)  # killed between the two renames below: the old folder comes back
        temporary = _temporary(path)
        remove_temporaries(path)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            flush_folder(temporary)
            if path.exists():
                # A folder cannot be replaced in one step: the old one steps aside first.
                shutil.rmtree(aside, ignore_errors=True)
                path.replace(aside)
                temporary.replace(path)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                temporary.replace(path)
            flush_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a small file, all or nothing."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def remove_temporaries(path: Path) -> None:
    """Remove what a killed writer of `path` left behind."""
    for stray in path.parent.glob(f"{TEMPORARY_PREFIX}{path.name}.*"):
        if stray.is_dir():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            stray.unlink(missing_ok=True)


def remove_strays(folder: Path) -> None:
    """Remove the temporaries of dead processes of this machine below a folder."""
    for stray in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        process = stray.name.rpartition(".")[2]
        if not process.isdecimal() or _is_alive(int(process)):
            continue
        if stray.is_dir():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            stray.unlink(missing_ok=True)


def flush_folder(path: Path) -> None:
    """Make renames inside the folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into an error with its mend."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailedError(
                f"the disk that holds {path} is full",
                fix="free some space and give the same command again: it goes on where it stopped",
            ) from error
        if error.errno in _NO_PLACE:
            raise RunFailedError(
                f"{path} cannot be written: {error.strerror}",
                fix="give a folder that you may write to, or change its permissions",
            ) from error
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}.{os.getpid()}")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
