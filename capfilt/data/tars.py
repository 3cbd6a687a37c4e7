"""Where in a tar each file's bytes lie, and from which byte on the tar cannot be trusted.

Python's tarfile takes a damaged header for the end of the archive, believes sizes that reach past the
end of the file and stops at the first block of zeros; each of these would lose samples without a word.
So the headers are read here. Nothing is ever extracted, and only plain files count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512
_ZEROS_AT_ONCE = bytes(128 * BLOCK)
_LARGEST_EXTENSION = 1 << 20
"""Bytes of a pax header or a GNU long name that are still read; real ones stay below a few kB."""
_MOST_DIGITS = 20
_EXTENSIONS = (b"x", b"g", b"L", b"K")
_PLAIN = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, folders, FIFOs: whatever their size field says, no data follows (as in GNU tar)."""


@dataclass(frozen=True, slots=True)
class Member:
    """One plain file in a tar."""

    name: bytes
    offset: int
    """First byte of its data in the tar."""
    size: int


@dataclass(frozen=True, slots=True)
class Damage:
    """From here to the end of the file nothing was used."""

    first: int
    """First byte that was not used: that of a header."""
    end: int
    """One past the last byte: the size of the file. Equal to `first` where only the end marker is missing."""


class _BadHeaderError(Exception):
    """These bytes are no header, or the data they announce is not there."""


def scan(file: BinaryIO, size: int) -> Iterator[Member | Damage]:
    """Yield the plain files of a tar in its order and, last, the damage if there is any.

    ustar, pax, GNU and old (v7) headers are understood. Blocks of zeros do not end the scan: tars that
    were put together with `cat` are read whole (GNU tar: --ignore-zeros). A tar without any block of
    zeros at its end has been cut off, even if it was between two members, and that is damage too.
    Sparse files are passed over, since their bytes do not lie in one piece.
    """
    at, ended = 0, False
    while at < size:
        file.seek(at)
        block = file.read(BLOCK)
        if not block.strip(b"\0"):
            at, ended = _after_zeros(file, at), True
            continue
        try:
            member, at_next = _read_entry(file, at, block, size)
        except _BadHeaderError:
            yield Damage(at, size)
            return
        if member is not None:
            yield member
        at, ended = at_next, False
    if not ended:
        yield Damage(size, size)


def _after_zeros(file: BinaryIO, at: int) -> int:
    """Return the first block boundary after `at` whose block is not all zeros, or the end of the file."""
    file.seek(at)
    while chunk := file.read(len(_ZEROS_AT_ONCE)):
        if chunk != _ZEROS_AT_ONCE[: len(chunk)]:
            zeros = len(chunk) - len(chunk.lstrip(b"\0"))
            return at + zeros // BLOCK * BLOCK
        at += len(chunk)
    return at


def _read_entry(file: BinaryIO, at: int, block: bytes, end: int) -> tuple[Member | None, int]:
    """Return the plain file whose header, or first extension header, stands at `at`, and where the next is.

    None for what is no plain file.
    """
    extended = _Extended()
    while block[156:157] in _EXTENSIONS:
        at = extended.take(file, at, block, end)
        if block[156:157] == b"g":
            # It speaks of the archive, and may stand last in it.
            return None, at
        file.seek(at)
        block = file.read(BLOCK)
    _check(block)
    kind, data = block[156:157], at + BLOCK
    name = _name(block) if extended.name is None else extended.name
    if kind in _WITHOUT_DATA or (kind == b"\0" and name.endswith(b"/")):
        return None, data
    if kind == b"S":
        data = _after_sparse_headers(file, data, block, end)
    size = _number(block[124:136]) if extended.size is None else extended.size
    if data + size > end:
        raise _BadHeaderError
    is_plain = kind in _PLAIN and not extended.is_sparse
    return Member(name, data, size) if is_plain else None, _padded(data + size)


@dataclass(slots=True)
class _Extended:
    """What pax and GNU extension headers say of the file that follows them."""

    name: bytes | None = None
    size: int | None = None
    is_sparse: bool = False

    def take(self, file: BinaryIO, at: int, block: bytes, end: int) -> int:
        """Take one extension in and return where the next header stands."""
        _check(block)
        size = _number(block[124:136])
        if size > _LARGEST_EXTENSION or at + BLOCK + size > end:
            raise _BadHeaderError
        content = file.read(size)
        if block[156:157] == b"L":
            self.name = content.split(b"\0", 1)[0]
        elif block[156:157] == b"x":
            records = _pax_records(content)
            self.name = records.get(b"path", self.name)
            if b"size" in records:
                self.size = _digits(records[b"size"])
            self.is_sparse = any(key.startswith(b"GNU.sparse.") for key in records)
        return _padded(at + BLOCK + size)


def _check(block: bytes) -> None:
    """Compare the header with its own checksum (some old tars summed signed bytes)."""
    if len(block) < BLOCK:
        raise _BadHeaderError
    stated = _number(block[148:156])
    rest = block[:148] + b" " * 8 + block[156:]
    # Most of a header is zeros; summing what is left takes a third of the time.
    unsigned = sum(rest.translate(None, b"\0"))
    if stated != unsigned and stated != unsigned - 256 * sum(byte > 127 for byte in rest):
        raise _BadHeaderError


def _number(field: bytes) -> int:
    """Read a number as tars write it: octal digits or, for large ones, big-endian bytes after 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip()
    if not text:
        return 0
    if text.strip(b"01234567"):
        # Neither a sign (negative sizes), nor the 0xff of negative big-endian numbers, nor junk.
        raise _BadHeaderError
    return int(text, 8)


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0]
    # GNU's own format keeps times where ustar keeps the prefix; only ustar's magic is followed by a NUL.
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    r"""Read records `length key=value\n`, where the length counts the whole record."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        digits, space, _ = content[at : at + _MOST_DIGITS + 1].partition(b" ")
        length = _digits(digits)
        record = content[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not (space and equals) or len(record) != length or not record.endswith(b"\n"):
            raise _BadHeaderError
        records[key] = value
        at += length
    return records


def _digits(text: bytes) -> int:
    if not text.isdigit() or len(text) > _MOST_DIGITS:
        raise _BadHeaderError
    return int(text)


def _after_sparse_headers(file: BinaryIO, data: int, block: bytes, end: int) -> int:
    """Return where the data of an old GNU sparse file begins: more maps may follow its header."""
    more = block[482]
    while more:
        if data + BLOCK > end:
            raise _BadHeaderError
        file.seek(data)
        more = file.read(BLOCK)[504]
        data += BLOCK
    return data


def _padded(offset: int) -> int:
    return -(-offset // BLOCK) * BLOCK
