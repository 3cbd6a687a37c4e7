from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capfilt.errors import CapfiltError, RunFailedError
from capfilt.files import (
    TEMPORARY_PREFIX,
    disk_errors,
    remove_strays,
    remove_temporaries,
    whole_file,
    whole_folder,
    write_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# -- whole or not there


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    with whole_file(path) as temporary:
        temporary.write_bytes(b"one")
        assert not path.exists()
        assert temporary.name.startswith(TEMPORARY_PREFIX)
    assert path.read_bytes() == b"one"
    assert names(path.parent) == ["a.bin"]


def test_a_file_whose_block_fails_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, "old")

    def fails() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("new")
            raise KeyError("in the block")

    with pytest.raises(KeyError):
        fails()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_text_is_written_as_utf8_and_bytes_as_they_are(tmp_path: Path) -> None:
    write_whole(tmp_path / "t", "é\r\n")
    write_whole(tmp_path / "b", b"\xff\x00")
    assert (tmp_path / "t").read_bytes() == b"\xc3\xa9\r\n"
    assert (tmp_path / "b").read_bytes() == b"\xff\x00"


def test_a_folder_replaces_the_one_before_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    for version in ("one", "two"):
        with whole_folder(path) as temporary:
            (temporary / version).mkdir()
            (temporary / version / "file").write_text(version)
    assert names(path) == ["two"]
    assert (path / "two" / "file").read_text() == "two"
    assert names(tmp_path) == ["bundle"]


def test_a_folder_whose_block_fails_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with whole_folder(path) as temporary:
        (temporary / "a").write_text("old")

    def fails() -> None:
        with whole_folder(path) as temporary:
            (temporary / "a").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".partial-a.1", ".partial-a.old", ".partial-ab.1", "a", ".partial-b.1"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".partial-a.2").mkdir()
    (tmp_path / ".partial-a.2" / "file").touch()
    remove_temporaries(tmp_path / "a")
    assert names(tmp_path) == [".partial-ab.1", ".partial-b.1", "a"]


# -- killed at any moment

WRITER = """
import itertools, pathlib, sys
from capfilt.files import whole_folder, write_whole
folder = pathlib.Path(sys.argv[1])
for n in itertools.count():
    write_whole(folder / "file", f"{n % 10}" * 50_000)
    with whole_folder(folder / "bundle") as temporary:
        for part in range(4):
            (temporary / str(part)).write_text(f"{n % 10}" * 5_000)
    if n == 0:
        print("begun", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_things_and_strays_that_go_away(tmp_path: Path) -> None:
    for number in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "begun\n"
            time.sleep(0.003 * number)
            writer.kill()
        text = (tmp_path / "file").read_text()
        assert len(text) == 50_000
        assert len(set(text)) == 1
        if (tmp_path / "bundle").exists():  # between two renames there may be none
            parts = [(tmp_path / "bundle" / str(part)).read_text() for part in range(4)]
            assert len(set(parts)) == 1
            assert len(parts[0]) == 5_000
        assert all(
            name in {"file", "bundle"} or name.startswith(TEMPORARY_PREFIX) for name in names(tmp_path)
        )
    remove_temporaries(tmp_path / "file")
    with whole_folder(tmp_path / "bundle") as temporary:
        (temporary / "0").write_text("last")
    assert names(tmp_path) == ["bundle", "file"]


# -- a disk that does not take it


def test_strays_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / f"{TEMPORARY_PREFIX}a.{dead.pid}").write_text("")
    (tmp_path / f"{TEMPORARY_PREFIX}folder.{dead.pid}").mkdir()
    living = tmp_path / f"{TEMPORARY_PREFIX}b.{os.getpid()}"
    living.write_text("")
    (tmp_path / "kept").write_text("")

    remove_strays(tmp_path)

    assert names(tmp_path) == [living.name, "deep", "kept"]
    assert names(tmp_path / "deep") == []


def test_a_folder_killed_between_its_two_renames_comes_back_before_it_is_replaced(tmp_path: Path) -> None:
    aside = tmp_path / f"{TEMPORARY_PREFIX}a.old"
    aside.mkdir()
    (aside / "old").write_text("")

    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "a"):
        _ = 1 // 0

    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["old"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so_and_that_the_run_goes_on(tmp_path: Path, number: int) -> None:
    with pytest.raises(RunFailedError, match="is full") as failed, disk_errors(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert "give the same command again" in failed.value.fix


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG]
)
def test_a_folder_that_may_not_be_written_says_so(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(RunFailedError, match=f"cannot be written: {os.strerror(number)}"),
        disk_errors(tmp_path / "a"),
    ):
        raise OSError(number, os.strerror(number))


def test_another_error_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as failed, disk_errors(tmp_path):
        (tmp_path / "none").read_text()
    assert not isinstance(failed.value, CapfiltError)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_write_to_a_full_device_is_the_full_disk_error(tmp_path: Path) -> None:
    def fills() -> None:
        with whole_file(tmp_path / "a"), open("/dev/full", "w", buffering=1) as full:  # noqa: PTH123
            full.write("x\n")

    with pytest.raises(RunFailedError, match="is full"):
        fills()
    assert names(tmp_path) == []
