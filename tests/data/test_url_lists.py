"""A list of URLs is known by what it holds, and its command can be typed as it stands."""

from __future__ import annotations

import gzip
import json
import shlex
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.data.url_lists import download_command

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://example.org/a.jpg"


def options(file: Path) -> dict[str, str]:
    command = download_command(file)
    assert command is not None
    program, *words = shlex.split(command)
    assert program == "img2dataset"
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize(
    ("name", "content", "form", "url", "caption"),
    [
        ("a.csv", f"url,caption\n{URL},a cat\n", "csv", "url", "caption"),
        ("a.csv", f"ID,URL,TEXT\n1,{URL},a cat\n", "csv", "URL", "TEXT"),
        ("a.tsv", f"Alt_text\timage_url\na cat\t{URL}\n", "tsv", "image_url", "Alt_text"),
        ("a.csv", f"where,caption\n{URL},a cat\n", "csv", "where", "caption"),
        ("a.csv", f"where\n{URL}\n", "csv", "where", None),
        ("a.txt", f"\n{URL}\n{URL}\n", "txt", None, None),
        ("a.jsonl", json.dumps({"url": URL, "text": "a cat"}) + "\n", "jsonl", "url", "text"),
        ("a.json", json.dumps([{"caption": "a cat", "url": URL}] * 5000), "json", "url", "caption"),
    ],
)
@pytest.mark.parametrize("is_compressed", [False, True])
def test_the_columns_are_read_from_the_list(tmp_path, name, content, form, url, caption, is_compressed):
    file = tmp_path / (name + ".gz" if is_compressed else name)
    file.write_bytes(gzip.compress(content.encode()) if is_compressed else content.encode())

    given = options(file)

    assert given["--url_list"] == str(file)
    assert given["--input_format"] == form + (".gz" if is_compressed else "")
    assert given.get("--url_col") == url
    assert given.get("--caption_col") == caption
    assert given["--output_format"] == "webdataset"
    assert given["--output_folder"] == str(tmp_path / "a-shards")
    assert json.loads(given["--disallowed_header_directives"]) == [
        "noai",
        "noimageai",
        "noindex",
        "noimageindex",
    ]


def test_a_parquet_is_a_list_if_it_has_a_column_of_urls(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"TEXT": ["a cat"], "URL": [URL]}), tmp_path / "laion.parquet")
    pq.write_table(pa.table({"key": ["1"]}), tmp_path / "00000.parquet")

    given = options(tmp_path / "laion.parquet")
    assert (given["--input_format"], given["--url_col"], given["--caption_col"]) == ("parquet", "URL", "TEXT")
    assert download_command(tmp_path / "00000.parquet") is None


def test_a_path_with_blanks_and_quotes_can_be_typed(tmp_path):
    file = tmp_path / "my 'own' list; rm -rf.txt"
    file.write_text(URL)

    assert options(file)["--url_list"] == str(file)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.txt", "Some words about https://example.org\n"),
        ("00000_stats.json", '{"count": 10, "successes": 7}'),
        ("scores.csv", "key,score\n1,0.5\n"),
        ("empty.csv", ""),
        ("empty.txt", ""),
        ("empty.jsonl", ""),
        ("deep.json", "[" * 60_000),
        ("deep.jsonl", '{"a":' * 12_000),
        ("broken.csv.gz", "not gzip"),
        ("broken.parquet", "PAR1"),
        ("image.jpg", URL),
    ],
)
def test_other_files_are_no_lists(tmp_path, name, content):
    (tmp_path / name).write_text(content)

    assert download_command(tmp_path / name) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lists")


@given(
    st.binary(max_size=300),
    st.sampled_from(["txt", "csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "json.gz"]),
)
def test_any_bytes_under_any_name_give_an_answer(folder, data, extension):
    file = folder / f"a.{extension}"
    file.write_bytes(data)

    command = download_command(file)

    assert command is None or command.startswith("img2dataset")
