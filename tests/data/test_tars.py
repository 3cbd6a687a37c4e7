"""The scan against Python's tarfile on sound tars, and against what is known of damaged ones."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.data.tars import Damage, Member, scan

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}

names = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/"), min_size=1, max_size=150
).filter(lambda name: name.strip(".") != "")


def tar_of(files: Sequence[tuple[str, bytes]], kind: str = "ustar") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[kind]) as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def scanned(tar: bytes) -> list[Member | Damage]:
    return list(scan(io.BytesIO(tar), len(tar)))


def as_tarfile_sees_it(tar: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return [
            Member(member.name.encode("utf-8", "surrogateescape"), member.offset_data, member.size)
            for member in opened
            if member.isreg()
        ]


@given(st.lists(st.tuples(names, st.binary(max_size=1200)), max_size=6), st.sampled_from(["gnu", "pax"]))
def test_a_sound_tar_reads_as_tarfile_reads_it(files, kind):
    tar = tar_of(files, kind)

    assert scanned(tar) == as_tarfile_sees_it(tar)


def test_a_long_ustar_path_is_put_together_from_its_two_fields():
    path = "/".join(["folder" * 5] * 6) + "/0001.jpg"
    tar = tar_of([(path, b"x")])

    assert scanned(tar) == [Member(path.encode(), 512, 1)]


def test_links_folders_and_devices_are_passed_over():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (
            ("folder", tarfile.DIRTYPE),
            ("a.jpg", tarfile.SYMTYPE),
            ("b.jpg", tarfile.LNKTYPE),
            ("c.jpg", tarfile.FIFOTYPE),
            ("d.jpg", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("e.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))

    assert [found.name for found in scanned(buffer.getvalue())] == [b"e.jpg"]


def test_a_tar_of_before_ustar_is_read():
    header = bytearray(tar_of([("a.jpg", b"abc")])[:512])
    header[257:512] = bytes(255)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    tar = bytes(header) + b"abc".ljust(512, b"\0") + bytes(1024)

    assert scanned(tar) == [Member(b"a.jpg", 512, 3)]


def test_tars_joined_with_cat_are_read_to_the_end():
    first, second = tar_of([("a.jpg", b"1")]), tar_of([("b.jpg", b"2")])

    assert scanned(first + second) == [Member(b"a.jpg", 512, 1), Member(b"b.jpg", len(first) + 512, 1)]


def test_a_header_that_does_not_match_its_checksum_ends_the_trust():
    tar = bytearray(tar_of([("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")]))
    tar[1024 + 3] ^= 1  # in the name of b.jpg

    assert scanned(bytes(tar)) == [Member(b"a.jpg", 512, 1), Damage(1024, len(tar))]


def test_junk_behind_the_end_marker_is_named():
    tar = tar_of([("a.jpg", b"1")])

    assert scanned(tar + b"junk" * 300) == [Member(b"a.jpg", 512, 1), Damage(len(tar), len(tar) + 1200)]


def test_a_tar_cut_between_two_members_is_known_by_its_missing_end_marker():
    tar = tar_of([("a.jpg", b"1"), ("b.jpg", b"2")])[:1024]

    assert scanned(tar) == [Member(b"a.jpg", 512, 1), Damage(1024, 1024)]


def test_a_file_of_no_bytes_is_damaged_and_a_tar_of_no_members_is_not():
    assert scanned(b"") == [Damage(0, 0)]
    assert scanned(tar_of([])) == []


def resized(tar: bytes, field: bytes) -> bytes:
    """Put another size into the first header, with a checksum that agrees."""
    header = bytearray(tar[:512])
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tar[512:]


@pytest.mark.parametrize(
    "field",
    [
        b"\xff" * 11 + b"\x80",  # -128, as GNU tar writes negative numbers
        b"-0000000001\0",
        b"77777777777\0",
        b"\x80" + b"\x7f" * 11,
        b"0000000008x\0",
        b"1_0\0\0\0\0\0\0\0\0\0",
    ],
)
def test_a_size_that_cannot_be_is_damage(field):
    tar = tar_of([("a.jpg", b"1"), ("b.jpg", b"2")])

    assert scanned(resized(tar, field)) == [Damage(0, len(tar))]


@pytest.mark.parametrize(
    "record",
    [b"9999999 path=x\n", b"-5 path=x\n", b"0 path=x\n", b"11 path=abc", b"x", b"5 a\n\n", b"9" * 5000],
)
def test_a_pax_header_that_cannot_be_read_is_damage_and_no_loop(record):
    header = tarfile.TarInfo("pax")
    header.type = tarfile.XHDTYPE
    header.size = len(record)
    pax = header.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512)
    tar = tar_of([("a.jpg", b"1")])[:1024] + pax + tar_of([("b.jpg", b"2")])

    assert scanned(tar) == [Member(b"a.jpg", 512, 1), Damage(1024, len(tar))]


def test_a_pax_size_overrules_the_header():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = 600
        member.pax_headers = {"size": "600"}
        tar.addfile(member, io.BytesIO(b"x" * 600))
    whole = bytearray(buffer.getvalue())
    member_header = bytes(whole[1024:1536])
    whole[1024:1536] = resized(member_header, b"00000000000\0")

    assert scanned(bytes(whole)) == [Member(b"a.jpg", 1536, 600)]


def test_a_global_pax_header_may_stand_anywhere():
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "0" * 40}
    ) as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))

    assert [found.name for found in scanned(buffer.getvalue())] == [b"a.jpg"]


def test_sparse_files_are_passed_over_with_all_their_maps():
    def sparse(more: int) -> bytes:
        header = bytearray(tar_of([("s.jpg", b"")])[:512])
        header[156:157] = b"S"
        header[482] = more
        return resized(bytes(header), b"00000000001\0")

    extra = bytearray(512)
    extra[504] = 1
    tar = sparse(1) + bytes(extra) + bytes(512) + b"x".ljust(512, b"\0") + tar_of([("b.jpg", b"2")])

    assert [found.name for found in scanned(tar)] == [b"b.jpg"]


@given(st.binary(max_size=3000))
def test_any_bytes_at_all_end(junk):
    found = scanned(junk)

    assert all(isinstance(member, Member) for member in found[:-1])
