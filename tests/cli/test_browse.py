from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from made_run import made_run

from capfilt.browser import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typed_commands import Capfilt


@contextmanager
def browsing(*words: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command as a shell would, and give the first line that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "capfilt", "browse", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_the_first_line_is_the_address_and_ctrl_c_ends_quietly(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    with browsing(run.path, "--no-open") as (process, line):
        address = urlsplit(line.strip())
        assert (address.scheme, address.hostname, address.path) == ("http", "127.0.0.1", "/")
        name, _, token = address.fragment.partition("=")
        assert name == "token"
        assert len(token) >= 24
        with urllib.request.urlopen(line.strip()) as answer:
            text = answer.read().decode()
        assert token not in text
        assert "IMG_0042.JPG" in text
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out == ""
        assert err == "open this address in a browser on this machine; Ctrl-C ends it\n"


@pytest.mark.parametrize("wait_s", [0, 0.05, 0.2])
def test_ctrl_c_ends_it_quietly_while_it_still_reads_the_run(tmp_path: Path, wait_s: float) -> None:
    run = made_run(tmp_path / "run")
    with browsing(run.path, "--no-open") as (process, _):
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert err == "open this address in a browser on this machine; Ctrl-C ends it\n"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="this system does not list its sockets")
def test_it_listens_on_loopback_alone(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    with browsing(run.path, "--no-open") as (process, line):
        port = urlsplit(line.strip()).port
        assert port
        listening = [
            row.split()[1]
            for table in ("tcp", "tcp6")
            for row in Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines()[1:]
            if row.split()[3] == "0A" and row.split()[1].endswith(f":{port:04X}")
        ]
        assert listening == [f"0100007F:{port:04X}"]


def test_two_starts_have_two_tokens_and_two_ports(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    with browsing(run.path, "--no-open") as (_, one), browsing(run.path, "--no-open") as (_, other):
        assert urlsplit(one).port != urlsplit(other).port
        assert urlsplit(one).fragment != urlsplit(other).fragment


def test_the_users_browser_is_opened_where_there_is_a_display(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    opened = tmp_path / "opened"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > "{opened}.part" && mv "{opened}.part" "{opened}"\n')
    program.chmod(0o755)
    with browsing(run.path, DISPLAY=":0", BROWSER=f"{program} %s") as (process, line):
        assert process.stderr is not None
        assert process.stderr.readline().startswith("it was opened in your browser")
        while not opened.exists():
            assert process.poll() is None
        assert opened.read_text() == line.strip()


@pytest.mark.parametrize(("display", "words"), [("", ()), (":0", ("--no-open",))])
def test_no_browser_is_opened_without_a_display_or_a_wish(
    tmp_path: Path, display: str, words: tuple[str, ...]
) -> None:
    run = made_run(tmp_path / "run")
    opened = tmp_path / "opened"
    quiet = {"DISPLAY": display, "WAYLAND_DISPLAY": "", "BROWSER": f"touch {opened} %s"}
    with browsing(run.path, *words, **quiet) as (process, _):
        assert process.stderr is not None
        assert process.stderr.readline().startswith("open this address")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert not opened.exists()


def test_a_port_that_is_taken_is_named_with_the_mend(capfilt: Capfilt, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = capfilt("browse", run.path, "--port", port, "--no-open")
    assert ended.exit_code == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in ended.stderr
    assert "--port" in ended.stderr.splitlines()[-1]
    assert ended.stdout == ""


def test_a_port_that_was_asked_for_is_used(tmp_path: Path) -> None:
    with serve.listening(0) as free:
        port = free.getsockname()[1]
    run = made_run(tmp_path / "run")
    with browsing(run.path, "--no-open", "--port", port) as (_, line):
        assert urlsplit(line.strip()).port == port


def test_a_folder_that_is_no_run_is_refused_before_anything_listens(capfilt: Capfilt, tmp_path: Path) -> None:
    ended = capfilt("browse", tmp_path, "--no-open")
    assert ended.exit_code == 2
    assert "is no run" in ended.stderr
    assert ended.stdout == ""


def test_a_run_that_is_damaged_is_refused_before_anything_listens(capfilt: Capfilt, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    next(run.captions.glob("*.parquet")).write_bytes(b"damaged")
    ended = capfilt("browse", run.path, "--no-open")
    assert ended.exit_code == 2
    assert "damaged" in ended.stderr
    assert ended.stdout == ""
