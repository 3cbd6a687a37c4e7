"""What is typed for an input means the tars that a shell would mean, or an error with the mend."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from capfilt.data import patterns
from capfilt.data.patterns import expand_braces, find_files
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def web(tmp_path) -> Path:
    folder = tmp_path / "web"
    for name in ("00000.tar", "00001.tar", "00002.tar", "more/00003.tar"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / name, "w"):
            pass
    (folder / "00000_stats.json").write_text('{"count": 1}')
    return folder


def names(where: object, below: Path) -> list[str]:
    return [file.relative_to(below).as_posix() for file in find_files(where)]


@pytest.mark.skipif(shutil.which("bash") is None, reason="compares with bash")
@pytest.mark.parametrize(
    "pattern",
    [
        "a",
        "{a,b}.tar",
        "{00000..00012}.tar",
        "{8..11}",
        "{08..11}",
        "{3..1}",
        "{-2..2}",
        "x{a,b}{1..2}y",
        "{a,{b,c}d}e",
        "{a,}b",
        "{a}b",
        "{}b",
        "a{b",
        "{a..}",
        "{x}{1,2}",
    ],
)
def test_braces_stand_for_what_bash_makes_of_them(pattern):
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True
    )

    assert expand_braces(pattern) == done.stdout.split("\n")[:-1]


def test_braces_that_stand_for_too_many_names_are_refused(monkeypatch):
    monkeypatch.setattr(patterns, "_MOST_NAMES", 1000)
    assert len(expand_braces("{0..9}{00..99}")) == 1000
    for pattern in ("{0..99999999}", "{0..99}{0..99}", "{a,b}{0..999}"):
        with pytest.raises(CapfiltError, match="more than"):
            expand_braces(pattern)


def test_a_folder_is_searched_to_the_bottom(web):
    (web / ".partial-00009.tar.1").touch()
    (web / "._00000.tar").touch()

    assert names(web, web) == ["00000.tar", "00001.tar", "00002.tar", "more/00003.tar"]


def test_a_pattern_takes_its_tars(web):
    assert names(f"{web}/0000*.tar", web) == ["00000.tar", "00001.tar", "00002.tar"]
    assert names(f"{web}/**/*.tar", web) == ["00000.tar", "00001.tar", "00002.tar", "more/00003.tar"]
    assert names(f"{web}/{{00001..00002}}.tar", web) == ["00001.tar", "00002.tar"]
    assert names(f"{web}/*", web) == ["00000.tar", "00001.tar", "00002.tar", "more/00003.tar"]
    assert names(f"{web}/{{more,.}}/0000[03].tar", web) == ["00000.tar", "more/00003.tar"]


def test_several_inputs_count_every_tar_once(web):
    given = [web / "more", f"{web}/**/00003.tar", str(web / "00001.tar")]

    assert names(given, web) == ["00001.tar", "more/00003.tar"]


def test_a_name_with_brackets_in_it_means_itself(tmp_path):
    with tarfile.open(tmp_path / "a[1]{2}.tar", "w"):
        pass

    assert names(tmp_path / "a[1]{2}.tar", tmp_path) == ["a[1]{2}.tar"]


def test_a_folder_that_links_to_itself_is_read_once(web):
    (web / "more" / "loop").symlink_to(web, target_is_directory=True)

    assert len(find_files(web)) == 4


def test_a_linked_folder_counts(web, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "linked").symlink_to(web / "more", target_is_directory=True)

    assert names(tmp_path / "other", tmp_path) == ["other/linked/00003.tar"]


def test_a_tar_without_its_ending_is_known_by_its_magic(web, tmp_path):
    with tarfile.open(tmp_path / "shard", "w") as tar:
        tar.add(web / "00000_stats.json", "a.json")

    assert names(tmp_path / "shard", tmp_path) == ["shard"]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("nowhere", "there is no .*nowhere"),
        ("web/00009.tar", "there is no .*00009"),
        ("web/{00000..00004}.tar", "there is no .*00003.tar, and 1 more"),
        ("web/x*.tar", "nothing matches"),
        ("empty", "there is no file in"),
        ("other", r"no tar in .*, but 2 x \.jpg, 1 x \.md"),
        ("other/*.jpg", "a.jpg is not a tar"),
        ("other/a.jpg", "a.jpg is not a tar"),
        ("web/00000_stats.json", "is not a tar"),
    ],
)
@pytest.mark.usefixtures("web")
def test_what_is_not_there_is_an_error_with_the_mend(tmp_path, monkeypatch, given, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("a.jpg", "b.jpg", "README.md"):
        (tmp_path / "other" / name).write_bytes(b"x")

    with pytest.raises(CapfiltError, match=what) as caught:
        find_files(given)

    assert "WebDataset tars" in caught.value.fix


def test_no_input_at_all_is_an_error():
    with pytest.raises(CapfiltError, match="no input"):
        find_files([])


@pytest.mark.parametrize("name", ["a.tar.gz", "a b.tgz", "a.tar.zst", "a.TAR.GZ", "a.tar"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_a_compressed_tar_comes_with_the_command_that_makes_it_plain(web, tmp_path, name, as_folder):
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / name).write_bytes(gzip.compress((web / "00000.tar").read_bytes()))

    with pytest.raises(CapfiltError, match="is compressed") as caught:
        find_files(folder if as_folder else folder / name)

    subprocess.run(caught.value.fix.splitlines()[-1], shell=True, check=True)
    (folder / name).unlink()
    assert [file.read_bytes() for file in find_files(folder)] == [(web / "00000.tar").read_bytes()]


def test_what_stands_beside_a_tar_and_is_named_after_it_is_left_alone(web):
    for name in ("00000.tar.md5", "00000.tar.idx", "00001.tar.json"):
        (web / name).write_text("x")

    assert len(find_files(web)) == 4


def test_a_compressed_tar_among_plain_ones_is_not_passed_over(web):
    (web / "00004.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")

    with pytest.raises(CapfiltError, match=r"00004\.tar\.zst is compressed"):
        find_files(web)


def test_a_folder_that_may_not_be_read_is_an_error(web, monkeypatch):
    import os

    real = os.scandir

    def scandir(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)

    with pytest.raises(CapfiltError, match=r"more cannot be read: Permission denied"):
        find_files(web)


def test_a_list_of_urls_gets_the_command_that_downloads_it(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "cc3m.tsv").write_text("caption\turl\na cat\thttps://example.org/a.jpg\n")

    for given in (tmp_path / "lists", tmp_path / "lists" / "cc3m.tsv", f"{tmp_path}/lists/*.tsv"):
        with pytest.raises(CapfiltError, match="URLs") as caught:
            find_files(given)
        assert "img2dataset --url_list" in caught.value.fix
