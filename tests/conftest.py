"""What tests share: no network, this checkout in child processes too, tars made by hand, real files.

torch is not imported here: a test of the data rooms starts in a blink.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent

for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
    os.environ.pop(name, None)  # typer colours its help for each of them, whatever its value
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or albumentations asks the network for its version at import
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# As a worker of a run has it, and read when torch is imported, in child processes too. Threads of models as
# small as these mostly wait for one another, and burn a core each while they do.
os.environ["OMP_NUM_THREADS"] = "1"

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile(
    "unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")
# A test that starts Python means the code beside it, not a capfilt that is installed somewhere.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

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

TarOf = Callable[[Mapping[str, Mapping[str, bytes | str]], Path], Path]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no accelerator on this machine")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A real browser, one for all tests, since playwright runs once in a process.

    Without one the tests are skipped, or fail where CAPFILT_REQUIRE_BROWSER=1.
    """

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


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of golden and real files that lies beside the checkout; they are too large to live in it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("there is no folder ../shared beside the checkout")
    return folder


@pytest.fixture(scope="session")
def tar_of() -> TarOf:
    """Write a WebDataset tar: `tar_of({"0001": {"jpg": b"...", "txt": "a cat"}}, path)` returns the path.

    Members stand in the order given, as KEY.EXTENSION; text is written as UTF-8. The same samples give
    the same bytes.
    """
    return _write_tar


def _write_tar(samples: Mapping[str, Mapping[str, bytes | str]], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for key, members in samples.items():
            for extension, content in members.items():
                data = content.encode("utf-8") if isinstance(content, str) else content
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path
