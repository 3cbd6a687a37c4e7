"""Recognise a list of image URLs, and say how to download it.

A list is the commonest thing a newcomer gives in place of tars. The command is made from the list's own
columns, so that it can be typed as it stands.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from typing import TYPE_CHECKING, Any

from capfilt.shell import shell_line

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FORMATS = ("txt", "csv", "tsv", "json", "jsonl", "parquet")
_NAME = re.compile(rf"\.({'|'.join(_FORMATS)})(\.gz)?$", re.IGNORECASE)
_URL = re.compile(r"\s*(https?|ftp|s3|gs)://\S", re.IGNORECASE)
_HEAD_BYTES = 1 << 16
_URL_COLUMNS = ("url", "image_url", "img_url", "imageurl", "src", "link", "uri", "urls")
_CAPTION_COLUMNS = ("caption", "text", "alt", "alt_text", "alttext", "title", "description", "top_caption")


def is_list_name(file: Path) -> bool:
    """Whether a file is named as lists of URLs are."""
    return _NAME.search(file.name) is not None


def download_command(file: Path) -> str | None:
    """Return the img2dataset command for a list of URLs, or None if the file is no such list.

    Columns are those of its header that are named or filled like URLs and captions.
    """
    named = _NAME.search(file.name)
    if named is None:
        return None
    kind, compressed = named[1].lower(), named[2] is not None
    try:
        columns = _columns(file, kind, compressed)
    except (OSError, EOFError, zlib.error, ValueError, csv.Error, RecursionError):
        # Not readable as what its name says: whatever it is, it is no list.
        return None
    if columns is None:
        return None
    url, caption = columns
    words = ["img2dataset", "--url_list", str(file)]
    words += ["--input_format", kind + (".gz" if compressed and kind != "parquet" else "")]
    words += ["--url_col", url] if url else []
    words += ["--caption_col", caption] if caption else []
    words += ["--output_format", "webdataset", "--output_folder", f"{_stem(file)}-shards"]
    words += ["--image_size", "512", "--resize_mode", "keep_ratio_largest", "--resize_only_if_bigger", "True"]
    words += ["--thread_count", "32", "--user_agent_token", "img2dataset"]
    words += ["--disallowed_header_directives", '["noai","noimageai","noindex","noimageindex"]']
    return shell_line(words)


def _stem(file: Path) -> str:
    return str(file)[: -len(_NAME.search(file.name)[0])] if _NAME.search(file.name) else str(file)  # type: ignore[index]


def _columns(file: Path, kind: str, compressed: bool) -> tuple[str, str] | None:
    """Return the names of the URL and caption columns, "" where there is none; None if no URL is found."""
    if kind == "parquet":
        return _named_columns(_parquet_names(file))
    text = _head(file, compressed)
    if kind == "txt":
        lines = [line for line in text.splitlines() if line.strip()]
        return ("", "") if lines and _URL.match(lines[0]) else None
    if kind in ("csv", "tsv"):
        rows = list(csv.DictReader(io.StringIO(text), delimiter="," if kind == "csv" else "\t"))[:5]
        header = csv.reader(io.StringIO(text), delimiter="," if kind == "csv" else "\t")
        return _guess(next(header, []), rows)
    first = _first_record(text, kind)
    return _guess(list(first), [first]) if first else None


def _head(file: Path, compressed: bool) -> str:
    with gzip.open(file, "rb") if compressed else file.open("rb") as opened:
        return opened.read(_HEAD_BYTES).decode("utf-8-sig", "replace")


def _first_record(text: str, kind: str) -> dict[str, Any]:
    """Return the first object of a JSON list or of JSON lines; the text may be cut off behind it."""
    start = text.find("{")
    if start < 0 or (kind == "json" and not text.lstrip().startswith(("[", "{"))):
        return {}
    value, _ = json.JSONDecoder().raw_decode(text, start)
    return value if isinstance(value, dict) else {}


def _parquet_names(file: Path) -> list[str]:
    import pyarrow.parquet as pq

    # pyarrow's errors are ValueError (ArrowInvalid) and OSError.
    return list(pq.read_schema(file).names)


def _guess(names: Iterable[Any], rows: list[dict[Any, Any]]) -> tuple[str, str] | None:
    """By name first, then by what the first rows hold."""
    texts = [name for name in names if isinstance(name, str)]
    by_name = _named_columns(texts)
    if by_name is not None:
        return by_name
    for name in texts:
        values = [row.get(name) for row in rows]
        if values and all(isinstance(value, str) and _URL.match(value) for value in values):
            return name, _called(texts, _CAPTION_COLUMNS)
    return None


def _named_columns(names: list[str]) -> tuple[str, str] | None:
    url = _called(names, _URL_COLUMNS)
    return (url, _called(names, _CAPTION_COLUMNS)) if url else None


def _called(names: list[str], wanted: tuple[str, ...]) -> str:
    """Return the first wanted name there is, in the file's own spelling; "" if there is none."""
    spelling = {name.strip().lower(): name for name in reversed(names)}
    return next((spelling[name] for name in wanted if name in spelling), "")
