from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# The runs that are looked at are made by modules beside these tests, one folder up, and of the other rooms.
for room in (".", "..", "../../stages", "../../cli", "../../browser"):
    sys.path.insert(0, str((Path(__file__).parent / room).resolve()))

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from capfilt.provenance.rundir import RunDir

CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of 48 pictures that lie in a shard, and three samples whose shard is gone; it is only read."""
    from noise_run import noise_run

    return noise_run(tmp_path_factory.mktemp("pictured") / "run")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A real browser. Without one the tests are skipped, or fail where CAPFILT_REQUIRE_BROWSER=1."""

    def missing(what: str) -> None:
        if os.environ.get("CAPFILT_REQUIRE_BROWSER") == "1":
            pytest.fail(what)
        pytest.skip(what)

    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        missing("no chromium on this machine: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()
