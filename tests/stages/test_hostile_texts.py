"""Texts, URLs and keys of a stranger who means harm, through a whole run: nothing but shown."""

from __future__ import annotations

import html.parser
import io
import json
import os
import pty
import re
import subprocess
import sys
import tarfile
import unicodedata
from typing import TYPE_CHECKING

import pytest
import world
from PIL import Image
from typer.testing import CliRunner

from capfilt.cli.main import app

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir

TEXTS = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "link": '<a href="javascript:alert(3)">x</a> [y](javascript:alert(4)) ![z](http://evil.example/z.png)',
    "attribute": '" onmouseover="alert(5)" x=\'',
    "ends": "</textarea></style></title>--><!--<svg onload=alert(6)>]]>",
    "template": "{{7*7}} {% raw %} ${x} `whoami` $(id) %s {0.__class__}",
    "escapes": "a cat\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b2J\x1b]52;c;ZXZpbA==\x07",
    "hyperlink": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "markup": "[red]loud[/red] [link=http://evil.example]x[/link] [/] :smile:",
    "turned": "\u202edrowkcab\u202c \u2066x\u2069 \u200f\u061c",
    "null": "a\0b\0",
    "long": "w" * 100_000,
    "longer than allowed": "long " * 100_000,
    "formula": '=HYPERLINK("http://evil.example","x")',
    "command": "@SUM(1+1)*cmd|' /C calc'!A0",
    "statement": "'; DROP TABLE pairs; -- \" $rule_1_threshold ?",
    "lines": "one\ntwo\r\nthree\u2028four\x85five\n## heading\n| a | b |",
    "tower": "e" + "\u0301" * 200,
    "unseen": "\U000e0041\U000e0042 \ufeff\u200b\u00ad",
}
KEYS = ("../../evil", "a'b\"c", "<b>k", "key\x1b[2J", "=1+1", "\u202ekey", "/etc/passwd", "a\nb")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (number * 13 % 255, number * 29 % 255, 77)).save(file, "JPEG")
    return file.getvalue()


def hostile_shard(folder: Path) -> Path:
    members: list[tuple[str, bytes | str]] = []
    for number, (key, text) in enumerate(TEXTS.items()):
        metadata = {"url": f"http://evil.example/{text[:500]}", "license": text[:200], text[:50]: text[:50]}
        members += [
            (f"{key}.jpg", picture(number)),
            (f"{key}.txt", text),
            (f"{key}.json", json.dumps(metadata)),
        ]
    for key in KEYS:
        members += [(f"{key}.jpg", picture(99)), (f"{key}.txt", f"text of {key}")]
    members.append(("broken<script>\x1b[2J.jpg", b"no picture"))
    return world.write_tar(folder / "web <b>[red]x[red]\x1b[31m; .tar", members)


@pytest.fixture(scope="module")
def hostile(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run over the hostile shard whose policy keeps the web text of every picture that has one."""
    folder = tmp_path_factory.mktemp("hostile")
    hostile_shard(folder / "web")
    return world.run(folder / "run", folder / "web", bundles, judge={"itm": 0.0}, export={"texts": "all"}).run


def obeyed(shown: str) -> set[str]:
    """What a terminal would obey rather than show."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {f"U+{ord(c):04X}" for c in shown if c != "\n" and unicodedata.category(c) in kinds}


def commands(run: RunDir) -> list[list[str]]:
    path = str(run.path)
    return [
        ["inspect", path],
        ["inspect", path, "--json"],
        ["judge", path, "--itm", "0.0"],
        ["judge", path],
        ["sql", path, "select * from samples"],
        ["sql", path, "select * from captions"],
        ["sql", path, "select * from shards"],
        ["sql", path, "select [text] a, {'b': text} b, map([text], [text]) c, text::json d from pairs"],
        ["sql", path, "select text, url from captions join samples using (shard, key)", "--format", "json"],
        ["sql", path, 'select text as "[red]\x1b[2J\u202e" from pairs'],
        ["sql", path, "select error(text) from pairs where key = 'escapes'"],
        ["sql", path, "select text::integer from pairs where key = 'escapes'"],
        ["sql", path, 'select "\x1b[2J\u202e" from pairs'],
        ["labels", "draw", path],
        ["labels", "draw", path, "--json"],
        ["labels", "measure", path],
    ]


def test_no_command_gives_a_pipe_what_a_terminal_would_obey(hostile: RunDir) -> None:
    for words in commands(hostile):
        ended = CliRunner().invoke(app, words, prog_name="capfilt")
        assert ended.exit_code in (0, 2), (words, ended.output)
        assert ended.output
        assert obeyed(ended.output) == set(), words


@pytest.mark.parametrize("words", ["inspect", "sql", "labels"])
def test_a_terminal_is_given_our_colours_and_no_other_order(hostile: RunDir, words: str) -> None:
    queries = {"sql": ["sql", str(hostile.path), "select * from captions"]}
    queries |= {"inspect": ["inspect", str(hostile.path)], "labels": ["labels", "draw", str(hostile.path)]}
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-m", "capfilt", *queries[words]]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while block := _read(ours):
        shown += block
    os.close(ours)
    assert process.wait() == 0
    text = COLOURS.sub("", shown.decode("utf-8")).replace("\r\n", "\n")
    assert obeyed(text) == set()
    assert len(text) > 500


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # The other side of a terminal was closed.
        return b""


def test_every_text_is_kept_as_it_was_and_the_long_ones_are_refused_by_name(hostile: RunDir) -> None:
    found = dict(world.sql(hostile, "SELECT key, web_text FROM samples WHERE web_text IS NOT NULL"))
    reasons = dict(world.sql(hostile, "SELECT key, reason FROM samples WHERE reason IS NOT NULL"))
    for key, text in TEXTS.items():
        assert found.get(key) == text or reasons[key] == "text_too_long", key
    assert "longer than allowed" in reasons


def test_the_export_names_no_file_after_a_stranger_and_holds_texts_as_they_are(hostile: RunDir) -> None:
    [shard] = hostile.export.glob("*.tar")
    with tarfile.open(shard) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert all(member.isreg() for member in tar)
    assert [name for name in files if not re.fullmatch(r"\d{9}\.(jpg|txt|json)", name)] == []
    texts = {
        caption["text"]
        for name, data in files.items()
        if name.endswith(".json")
        for caption in json.loads(data)["capfilt"]["captions"]
    }
    kept = {text for (text,) in world.sql(hostile, "SELECT text FROM pairs WHERE keep")}
    assert texts == kept
    assert TEXTS["script"] in texts
    assert sorted(path.name for path in hostile.path.parent.iterdir()) == ["run", "web"]


def test_the_card_of_the_export_shows_licences_as_text(hostile: RunDir) -> None:
    card = (hostile.export / "README.md").read_text()
    assert obeyed(card) == set()
    assert re.search(r"(?<!\\)<", card.partition("Licences found")[2]) is None
    assert re.search(r"(?<!\\)\]\(", card.partition("Licences found")[2]) is None
    assert "\n## heading" not in card
    for name in ("manifest.json", "policy.json"):
        assert obeyed((hostile.export / name).read_text()) == set()


class Elements(html.parser.HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


def test_the_report_holds_no_element_and_no_link_of_a_stranger(hostile: RunDir, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    ended = CliRunner().invoke(app, ["report", str(hostile.path), "--out", str(file)], prog_name="capfilt")
    assert ended.exit_code == 0, ended.output
    page = file.read_text()
    assert obeyed(page) == set()
    elements = Elements(page).found
    assert len(elements) > 50
    for tag, attributes in elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form"), attributes
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name, value)
            assert "javascript:" not in value.lower() or name in ("alt", "title", "aria-label"), (tag, name)
            if name in ("href", "src"):
                assert not value.startswith("http"), (tag, name, value)
    assert "&lt;script&gt;alert(1)" in page  # it is there, as text
