"""What a tar holds is one row each, whole or with its reason, however the tar was made or broken."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.canonical import canonical_json
from capfilt.data.sources import find_shards, read_bytes, read_shard
from capfilt.errors import CapfiltError
from capfilt.records import Refusal, Sample, Shard, Status
from capfilt.settings import Input

if TYPE_CHECKING:
    from collections.abc import Sequence

REAL = Path(__file__).parent / "real"
LIMITS = Input()


def tar_at(path: Path, files: Sequence[tuple[str, bytes]], *, encoding: str = "utf-8") -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding=encoding) as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def samples_of(path: Path, limits: Input = LIMITS) -> list[Sample]:
    [shard] = find_shards(path)
    return list(read_shard(shard, limits))


def read(tmp_path: Path, files: Sequence[tuple[str, bytes]], limits: Input = LIMITS) -> list[Sample]:
    return samples_of(tar_at(tmp_path / "a.tar", files), limits)


def shown(samples: list[Sample]) -> list[tuple[str, str | None]]:
    return [(sample.key, sample.reason) for sample in samples]


@pytest.mark.parametrize("name", ["clean", "noisy", "photos"])
def test_a_real_tar_gives_what_tarfile_reads_from_it(name):
    path = REAL / f"{name}.tar"
    samples = samples_of(path)

    with tarfile.open(path) as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    # WebDataset's own rule for the key, as a pattern.
    rule = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
    keys = list(dict.fromkeys(rule.fullmatch(member)[1] for member in content))
    assert [sample.key for sample in samples] == keys
    for sample in samples:
        assert sample.status is Status.OK
        assert sample.reason is None
        assert sample.image == content[sample.member]
        assert sample.web_text == content[f"{sample.key}.txt"].decode().strip()
        assert sample.metadata == json.loads(content[f"{sample.key}.json"])
        assert read_bytes(path, sample.image_offset, len(sample.image)) == sample.image


def test_texts_that_stand_behind_all_the_pictures_find_theirs(tmp_path):
    keys = [f"{i:04d}" for i in range(50)]
    files = [(f"{key}.jpg", b"picture " + key.encode()) for key in keys]
    files += [(f"{key}.txt", b"text " + key.encode()) for key in reversed(keys)]

    samples = read(tmp_path, files)

    assert [sample.key for sample in samples] == keys
    assert all(sample.image == f"picture {sample.key}".encode() for sample in samples)
    assert all(sample.web_text == f"text {sample.key}" for sample in samples)


def test_the_key_ends_at_the_first_dot_of_the_file_name(tmp_path):
    files = [
        ("a.b/c.jpg", b"1"),
        ("a.b/c.txt", b"one"),
        ("d.seg.png", b"2"),
        ("./e.JPEG", b"3"),
        (".f.jpg", b"4"),
    ]

    samples = read(tmp_path, files)

    assert [(sample.key, sample.web_text) for sample in samples] == [("a.b/c", "one"), ("./e", None)]


def test_members_of_other_kinds_are_no_samples(tmp_path):
    assert read(tmp_path, [("a.cls", b"1"), ("b", b"2"), ("c.npy", b"3"), ("d.", b"4")]) == []


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "PNG"])
def test_a_picture_goes_by_any_of_its_names(tmp_path, extension):
    [sample] = read(tmp_path, [(f"a.{extension}", b"x"), ("a.TXT", b"text")])

    assert (sample.image, sample.web_text, sample.member) == (b"x", "text", f"a.{extension}")


def test_a_second_member_of_a_kind_begins_a_sample_that_is_refused(tmp_path):
    files = [
        ("a.jpg", b"1"),
        ("a.txt", b"one"),
        ("a.jpg", b"2"),
        ("a.txt", b"two"),
        ("b.jpg", b"3"),
        ("b.png", b"4"),
    ]

    samples = read(tmp_path, [*files, ("b.txt", b"three")])

    assert shown(samples) == [
        ("a", None),
        ("a", Refusal.REPEATED_KEY),
        ("b", Refusal.MISSING_TEXT),
        ("b", Refusal.REPEATED_KEY),
    ]
    assert [sample.web_text for sample in samples] == ["one", "two", None, "three"]


def test_a_sample_without_a_picture_is_refused_with_its_reason(tmp_path):
    samples = read(tmp_path, [("a.txt", b"text"), ("b.json", b"{}"), ("c.jpg", b""), ("c.txt", b"text")])

    assert shown(samples) == [
        ("a", Refusal.MISSING_IMAGE),
        ("b", Refusal.MISSING_IMAGE),
        ("c", Refusal.EMPTY_IMAGE),
    ]
    assert {sample.status for sample in samples} == {Status.REFUSED}


@pytest.mark.parametrize(
    ("data", "text", "reason"),
    [
        (b"a cat", "a cat", None),
        ("\ufeff  a cat\n".encode(), "a cat", None),
        (b"a\x00b\x1b[31mc", "a\x00b\x1b[31mc", None),
        (b"", None, Refusal.EMPTY_TEXT),
        ("\ufeff \u00a0\n\t".encode(), None, Refusal.EMPTY_TEXT),
        (b"caf\xe9", None, Refusal.TEXT_NOT_UTF8),
        (b"\xed\xa0\x80", None, Refusal.TEXT_NOT_UTF8),
        (b"x" * 10_000, "x" * 10_000, None),
        (b"x" * 10_001, None, Refusal.TEXT_TOO_LONG),
        (b"x" * 100_000, None, Refusal.TEXT_TOO_LONG),
    ],
)
def test_a_text_that_cannot_be_used_leaves_the_picture_in_use(tmp_path, data, text, reason):
    [sample] = read(tmp_path, [("a.jpg", b"1"), ("a.txt", data)])

    assert (sample.status, sample.web_text, sample.reason) == (Status.OK, text, reason)


@pytest.mark.parametrize(
    ("metadata", "text", "reason"),
    [
        (b'{"caption": " a dog "}', "a dog", None),
        (b'{"caption": null}', None, Refusal.MISSING_TEXT),
        (b'{"caption": ["a dog"]}', None, Refusal.MISSING_TEXT),
        (b'{"caption": "  "}', None, Refusal.EMPTY_TEXT),
        (rb'{"caption": "\ud800"}', None, Refusal.TEXT_NOT_UTF8),
        (b'{"caption": "%s"}' % (b"x" * 10_001), None, Refusal.TEXT_TOO_LONG),
    ],
)
def test_the_caption_that_img2dataset_notes_stands_in_for_a_missing_text(tmp_path, metadata, text, reason):
    [sample] = read(tmp_path, [("a.jpg", b"1"), ("a.json", metadata)])

    assert (sample.web_text, sample.reason) == (text, reason)


def test_a_text_of_its_own_goes_before_the_caption_in_the_metadata(tmp_path):
    [sample] = read(tmp_path, [("a.jpg", b"1"), ("a.json", b'{"caption": "a dog"}'), ("a.txt", b"a cat")])

    assert sample.web_text == "a cat"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1, 2]",
        b"{",
        b"\xff\xfe",
        b'{"a": ' * 100_000,
        b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "' + b"x" * (1 << 20) + b'"}',
    ],
)
def test_metadata_that_cannot_be_used_is_empty(tmp_path, data):
    [sample] = read(tmp_path, [("a.jpg", b"1"), ("a.txt", b"text"), ("a.json", data)])

    assert sample.metadata == {}
    assert sample.status is Status.OK


@pytest.mark.parametrize("data", [b'{"a": NaN, "b": -Infinity, "c": 1e999}', rb'{"\ud800": "\udfff"}'])
def test_odd_metadata_can_be_written_again(tmp_path, data):
    [sample] = read(tmp_path, [("a.jpg", b"1"), ("a.json", data)])

    assert sample.metadata
    assert json.loads(canonical_json(sample.metadata))


def test_names_that_are_not_utf8_stay_apart_and_can_be_written(tmp_path):
    path = tar_at(
        tmp_path / "a.tar",
        [("caf\xe9.jpg", b"1"), ("caf\xea.jpg", b"2"), (r"caf\xe9.jpg", b"3"), ("caf\xe9.txt", b"text")],
        encoding="latin-1",
    )

    samples = samples_of(path)

    assert [sample.key for sample in samples] == [r"caf\xe9", r"caf\xea", r"caf\xe9~2"]
    assert [sample.web_text for sample in samples] == ["text", None, None]
    assert all(sample.member.encode("utf-8") for sample in samples)


def test_a_picture_larger_than_any_allowed_one_is_refused_unread(tmp_path):
    path = tmp_path / "a.tar"
    header = tarfile.TarInfo("a.jpg")
    header.size = 3 << 30
    with path.open("wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(512 + header.size + 1024)  # a hole in the file: nothing is on the disk

    [sample] = samples_of(path)

    assert (sample.reason, sample.image) == (Refusal.TOO_MANY_PIXELS, None)


def test_a_file_of_no_bytes_is_one_damaged_row(tmp_path):
    (tmp_path / "a.tar").touch()

    [sample] = samples_of(tmp_path)

    assert (sample.key, sample.status, sample.reason, sample.member) == (
        "",
        Status.REFUSED,
        Refusal.DAMAGED_SHARD,
        "bytes 0-0",
    )


def test_a_text_named_like_a_tar_is_one_damaged_row(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"<html>404</html>")

    assert [(sample.reason, sample.member) for sample in samples_of(tmp_path)] == [
        (Refusal.DAMAGED_SHARD, "bytes 0-16")
    ]


REAL_TAR = (REAL / "clean.tar").read_bytes()
REAL_SAMPLES = samples_of(REAL / "clean.tar")
with tarfile.open(REAL / "clean.tar") as _tar:
    ENDS = {
        sample.key: max(
            member.offset_data + member.size
            for member in _tar.getmembers()
            if member.name.startswith(sample.key)
        )
        for sample in REAL_SAMPLES
    }
    END_OF_MEMBERS = -(-max(ENDS.values()) // 512) * 512


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "damaged.tar"


def shard_at(path: Path) -> Shard:
    return Shard(name="clean", path=path, ordinal=0, size=path.stat().st_size, digest="")


def whole_before(samples: list[Sample], first_bad_byte: int) -> list[str]:
    """Check that every sample that ends before the damage is as it was; return their keys."""
    sound = [sample for sample in REAL_SAMPLES if ENDS[sample.key] <= first_bad_byte]
    assert samples[: len(sound)] == sound
    return [sample.key for sample in sound]


@settings(max_examples=150)
@given(st.integers(0, len(REAL_TAR) - 1))
def test_a_tar_cut_off_anywhere_keeps_what_precedes_the_cut_and_names_the_rest(scratch, length):
    scratch.write_bytes(REAL_TAR[:length])

    samples = list(read_shard(shard_at(scratch), LIMITS))

    whole_before(samples, length)
    damaged = [sample for sample in samples if sample.reason is Refusal.DAMAGED_SHARD]
    if length <= END_OF_MEMBERS:
        assert damaged == samples[-1:]
        first, end = map(int, re.fullmatch(r"bytes (\d+)-(\d+)", samples[-1].member).groups())
        assert end == length
        # Nothing between the samples and the named rest is left out.
        in_use = [sample for sample in samples if sample.image is not None]
        assert all(sample.image_offset + len(sample.image) <= first for sample in in_use)
    else:
        assert damaged == []


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(REAL_TAR) - 1), st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped_bytes_cost_no_sample_before_the_first_of_them(scratch, flips):
    damaged = bytearray(REAL_TAR)
    for at, bits in flips:
        damaged[at] ^= bits
    scratch.write_bytes(damaged)

    samples = list(read_shard(shard_at(scratch), LIMITS))

    whole_before(samples, min(at for at, _ in flips))
    if len(samples) < len(REAL_SAMPLES):
        assert samples[-1].reason is Refusal.DAMAGED_SHARD


@settings(max_examples=100)
@given(st.integers(0, len(REAL_SAMPLES) * 3 - 1), st.integers(0, 511), st.integers(1, 255))
def test_a_damaged_header_is_always_noticed(scratch, which, at, bits):
    with tarfile.open(REAL / "clean.tar") as tar:
        offset = tar.getmembers()[which].offset
    damaged = bytearray(REAL_TAR)
    damaged[offset + at] ^= bits
    scratch.write_bytes(damaged)

    samples = list(read_shard(shard_at(scratch), LIMITS))

    if 148 <= at < 156 and samples == REAL_SAMPLES:
        return  # the checksum itself can be written in several ways
    assert samples[-1].member == f"bytes {offset}-{len(REAL_TAR)}"


def test_a_picture_is_found_again_and_a_changed_shard_is_an_error(tmp_path):
    path = tar_at(tmp_path / "a.tar", [("a.jpg", b"picture"), ("a.txt", b"text")])
    [sample] = samples_of(path)
    assert read_bytes(path, sample.image_offset, len(sample.image)) == b"picture"

    path.write_bytes(path.read_bytes()[: sample.image_offset + 3])

    with pytest.raises(CapfiltError, match="has changed"):
        read_bytes(path, sample.image_offset, len(sample.image))
    path.unlink()
    with pytest.raises(CapfiltError, match="cannot be read"):
        read_bytes(path, sample.image_offset, len(sample.image))


def test_a_shard_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = tar_at(tmp_path / "a.tar", [(f"{i}.jpg", b"x" * 100_000) for i in range(3)])
    [shard] = find_shards(path)
    reading = read_shard(shard, LIMITS)
    next(reading)

    with path.open("rb+") as file:
        file.truncate(150_000)

    with pytest.raises(CapfiltError, match="has changed"):
        list(reading)


def test_shards_are_named_by_their_path_below_the_common_folder(tmp_path):
    for name in ("b/00001.tar", "b/00000.tar", "a/00000.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tar_at(tmp_path / name, [("a.jpg", b"1")])

    shards = find_shards(tmp_path)

    assert [(shard.name, shard.ordinal) for shard in shards] == [
        ("a/00000", 0),
        ("b/00000", 1),
        ("b/00001", 2),
    ]
    assert [shard.name for shard in find_shards(tmp_path / "b" / "00001.tar")] == ["00001"]


def test_names_that_differ_in_their_ending_alone_stay_apart(tmp_path):
    tar_at(tmp_path / "a.tar", [("a.jpg", b"1")])
    tar_at(tmp_path / "a.TAR", [("a.jpg", b"1")])

    assert sorted(shard.name for shard in find_shards(tmp_path)) == ["a", "a~2"]


def test_the_digest_sees_the_size_the_beginning_and_the_end(tmp_path):
    path = tmp_path / "a.tar"

    def digest(data: bytes) -> str:
        path.write_bytes(data)
        return find_shards(path)[0].digest

    data = bytearray(300_000)
    seen = {digest(bytes(data)), digest(bytes(data) + b"\0")}
    for at in (0, 65_535, 299_999 - 65_535, 299_999):
        changed = bytearray(data)
        changed[at] = 1
        seen.add(digest(bytes(changed)))

    assert len(seen) == 6
    assert digest(bytes(data)) == digest(bytes(data))
