from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# What these tests share lies beside them, small runs and rows made by hand beside the tests of other rooms.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))
sys.path.insert(0, str(Path(__file__).parents[1] / "reports"))
sys.path.insert(0, str(Path(__file__).parents[1] / "provenance"))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

import world
from hostile import write_hostile_tar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page
    from serving import Served

    from capfilt.provenance.rundir import RunDir


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that is done, over pictures with hostile texts; not to be changed: `run` is."""
    folder = tmp_path_factory.mktemp("hostile")
    web = write_hostile_tar(folder / "web" / "00000.tar")
    return world.run(folder / "hostile-run", web, world.bundles(folder / "bundles")).run


@pytest.fixture
def run(hostile_run: RunDir, tmp_path: Path) -> RunDir:
    """A copy of the hostile run."""
    return world.copied(hostile_run, tmp_path / "run")


@pytest.fixture
def page_server(run: RunDir) -> Iterator[Served]:
    """The page of a run that may be written to."""
    from serving import served

    with served(run) as found:
        yield found


@pytest.fixture(scope="module")
def looked_at(hostile_run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of a run that a sample to label was drawn from, and that is only looked at from now on."""
    from serving import served

    with served(world.copied(hostile_run, tmp_path_factory.mktemp("looked_at") / "a-private-run")) as found:
        found.write("/label/draw", {"who": "anna", "size": 20, "seed": 0})
        yield found


@pytest.fixture
def allowed() -> list[str]:
    """Words of what a test lets stand on the console, such as the 404 that it asks for."""
    return []


@pytest.fixture
def tab(chromium: Browser, allowed: list[str]) -> Iterator[Page]:
    """A tab of its own; whatever goes wrong in it, or stands on its console, fails the test."""
    context = chromium.new_context(viewport={"width": 1440, "height": 1000}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    yield page
    context.close()
    assert [said for said in wrong if not any(words in said for words in allowed)] == []
