from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.data.instructions.example import Example
from capfilt.data.instructions.pictures import PictureFiles, are_as_before, digests_of


@given(st.lists(st.sampled_from(["a", "b", "a/b", "c\udcff", "é", "e\u0301"]), max_size=12))
def test_files_are_numbered_in_the_order_of_their_coming(names: list[str]) -> None:
    files = PictureFiles()
    passed = [
        one.image.as_posix() for one in files.noting(Example("", "", Path(n), {}, (), ()) for n in names)
    ]
    firsts, numbers = files.numbered()
    assert passed == names
    assert firsts.tolist() == [names.index(name) for name in dict.fromkeys(names)]
    assert numbers.tolist() == [list(dict.fromkeys(names)).index(name) for name in names]


@pytest.mark.parametrize("threads", [0, 3])
def test_a_file_is_known_by_its_bytes_or_by_its_name_where_it_cannot_be_read(
    tmp_path: Path, threads: int
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(600)]
    for number, path in enumerate(paths[:-2]):
        path.write_bytes(b"picture %d" % (number % 400))
    paths.append(tmp_path / "elsewhere" / paths[-1].name)
    found = digests_of(len(paths), paths.__getitem__, threads=threads)
    known = [
        hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else f"unreadable {path.name}"
        for path in paths
    ]
    assert known[-3:] == ["unreadable 598.png", "unreadable 599.png", "unreadable 599.png"]
    assert [found.name(number) for number in range(len(paths))] == known
    assert found.numbers.tolist() == [sorted(set(known)).index(name) for name in known]
    assert found.stamps[0].tolist() == [len(b"picture 0"), paths[0].stat().st_mtime_ns]
    assert found.stamps[-1].tolist() == [-1, -1]


def test_a_file_that_was_changed_lost_or_found_is_seen(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "gone.png")]
    for path in paths[:2]:
        path.write_bytes(b"picture")
    stamps = digests_of(3, paths.__getitem__).stamps
    assert are_as_before(stamps, paths.__getitem__, threads=2)
    assert are_as_before(np.zeros((0, 2), np.int64), paths.__getitem__)
    paths[2].write_bytes(b"picture")
    assert not are_as_before(stamps, paths.__getitem__)
    paths[2].unlink()
    paths[1].write_bytes(b"another")
    assert not are_as_before(stamps, paths.__getitem__)
    stamps = digests_of(3, paths.__getitem__).stamps
    paths[0].unlink()
    assert not are_as_before(stamps, paths.__getitem__, threads=2)
