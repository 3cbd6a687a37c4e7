"""What a user typed for an input, as the tars it means, or as an error that says what to type instead."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.data.url_lists import download_command, is_list_name
from capfilt.errors import CapfiltError
from capfilt.shell import shell_word

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ACCEPTED = (
    "give WebDataset tars (KEY.jpg, KEY.txt, KEY.json): a .tar file, a folder of them, or a glob in quotes"
)
_COMPRESSED_NAME = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z|br)|tgz|tbz|tbz2|txz|tzst)$", re.IGNORECASE)
_DECOMPRESSORS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
}
"""The program that undoes each compression, by the file's first bytes; all of them take -d."""
_MOST_NAMES = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def find_files(where: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the tars, absolute, each once, sorted by path; never an empty list.

    Raises CapfiltError where there is none, or where something else stands in the way.
    """
    given = [where] if isinstance(where, (str, Path)) else list(where)
    if not given:
        raise CapfiltError("no input was given", fix=_ACCEPTED)
    found = {Path(os.path.abspath(file)) for item in given for file in _files(str(item))}  # noqa: PTH100
    return sorted(found, key=lambda file: file.as_posix())


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a shell would make of {a,b} and {00..99}, in its order, each once."""
    found = next((m for m in _BRACES.finditer(pattern) if "," in m[1] or _RANGE.fullmatch(m[1])), None)
    if found is None:
        return [pattern]
    span = _RANGE.fullmatch(found[1])
    choices = _numbers(span[1], span[2]) if span else found[1].split(",")
    names: list[str] = []
    for choice in choices:
        names += expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])
        if len(names) > _MOST_NAMES:
            raise _too_many(pattern)
    # The innermost braces go first, so what stands beside them comes once for each of their choices.
    return list(dict.fromkeys(names))


def _numbers(first: str, last: str) -> list[str]:
    low, high = int(first), int(last)
    if abs(high - low) >= _MOST_NAMES:
        raise _too_many(f"{{{first}..{last}}}")
    # As in bash, a leading zero on either side asks for equal widths.
    is_padded = any(re.match(r"-?0\d", side) for side in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    step = 1 if high >= low else -1
    return [f"{number:0{width}d}" for number in range(low, high + step, step)]


def _too_many(pattern: str) -> CapfiltError:
    return CapfiltError(f"{pattern} stands for more than {_MOST_NAMES} files", fix="give the folder instead")


def _files(given: str) -> Iterator[Path]:
    path = Path(given).expanduser()
    if path.exists():
        yield from _in_folder(path) if path.is_dir() else _one_file(path)
        return
    names = expand_braces(str(path))
    missing = [name for name in names if not glob.has_magic(name) and not Path(name).exists()]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CapfiltError(f"there is no {missing[0]}{more}", fix=f"check the path; {_ACCEPTED}")
    for name in names:
        yield from _matches(name) if glob.has_magic(name) else _files(name)


def _matches(pattern: str) -> Iterator[Path]:
    """What a glob finds: folders are searched, and among files the tars count."""
    paths = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
    if not paths:
        raise CapfiltError(f"nothing matches {pattern}", fix=f"check the pattern and its quotes; {_ACCEPTED}")
    folders = [path for path in paths if path.is_dir()]
    files = [path for path in paths if not path.is_dir()]
    tars = _tars_among(files)
    if not tars and files and not folders:
        yield from _one_file(files[0])
        return
    yield from tars
    # `**` matches a folder and what is in it: the files are then found twice, and count once.
    found = [file for folder in folders for file in _walk(folder)]
    inside = _tars_among(found)
    if not tars and not inside:
        raise _no_tar(pattern, found)
    yield from inside


def _in_folder(folder: Path) -> list[Path]:
    files = list(_walk(folder))
    tars = _tars_among(files)
    if not tars:
        raise _no_tar(str(folder), files)
    return tars


def _no_tar(where: str, files: list[Path]) -> CapfiltError:
    """Say what is there instead; a folder of URL lists gets the command that downloads it."""
    lists = [file for file in files if is_list_name(file)]
    command = download_command(lists[0]) if lists else None
    if command is not None:
        return _url_list(f"{where} holds lists of URLs, not tars: {lists[0]}", command)
    if not files:
        return CapfiltError(f"there is no file in {where}", fix=_ACCEPTED)
    counts: dict[str, int] = {}
    for file in files:
        counts[file.suffix.lower() or "no ending"] = counts.get(file.suffix.lower() or "no ending", 0) + 1
    commonest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:4]
    instead = ", ".join(f"{count} x {suffix}" for suffix, count in commonest)
    return CapfiltError(f"there is no tar in {where}, but {instead}", fix=_ACCEPTED)


def _walk(folder: Path) -> Iterator[Path]:
    """Every visible file below a folder; linked folders are followed, each once."""
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            # Names that start with a dot are temporaries, and what macOS adds to a folder.
            yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def _unreadable(error: OSError) -> None:
    raise CapfiltError(
        f"folder {error.filename} cannot be read: {error.strerror}",
        fix="make it readable (chmod +rx), or give the shards one by one",
    ) from error


def _tars_among(files: list[Path]) -> list[Path]:
    """The files named .tar; a compressed one among them is an error, since it would be missed in silence."""
    tars = []
    for file in files:
        if file.suffix.lower() == ".tar" or _COMPRESSED_NAME.search(file.name):
            tars += _one_file(file)
    return tars


def _one_file(file: Path) -> list[Path]:
    if not file.is_file():
        raise CapfiltError(f"{file} is neither a file nor a folder", fix=_ACCEPTED)
    try:
        with file.open("rb") as opened:
            head = opened.read(512)
    except OSError as error:
        raise CapfiltError(
            f"{file} cannot be read: {error.strerror}", fix="make it readable (chmod +r) and try again"
        ) from error
    is_tar = head[257:262] == b"ustar"
    is_named_tar = file.suffix.lower() == ".tar"
    program = next((name for magic, name in _DECOMPRESSORS.items() if head.startswith(magic)), None)
    if not is_tar and (_COMPRESSED_NAME.search(file.name) or (is_named_tar and program)):
        raise _compressed(file, program or "gzip")
    if is_tar or is_named_tar:
        return [file]
    command = download_command(file)
    if command is not None:
        raise _url_list(f"{file} is a list of URLs; the pictures are not there yet", command)
    raise CapfiltError(f"{file} is not a tar", fix=_ACCEPTED)


def _compressed(file: Path, program: str) -> CapfiltError:
    stem = _COMPRESSED_NAME.sub("", file.name)
    plain = file.with_name(f"{stem}.tar" if stem != file.name else f"{file.stem}-plain.tar")
    command = f"{program} -d < {shell_word(file)} > {shell_word(plain)}"
    return CapfiltError(
        f"{file} is compressed; pictures are found again by their place in the tar, so it must be plain",
        fix=f"decompress it, and keep the compressed one elsewhere:\n  {command}",
    )


def _url_list(what: str, command: str) -> CapfiltError:
    return CapfiltError(
        what,
        fix=f"download it first (pip install 'capfilt[download]'), then give the new folder:\n  {command}",
    )
