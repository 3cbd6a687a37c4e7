"""The page: what a run came to, in one file that loads nothing, runs nothing and fits into a letter.

Charts are drawn here and stand in the page as SVG. A chart library in the page would weigh a megabyte, need
scripts to be allowed in a page that shows strangers' words, and print whatever it happened to be showing;
SVG is sharp on paper, takes the reader's light or dark colours from the style sheet, and its words can be
searched. The page has no date, so that the same run gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError
from capfilt.files import write_whole
from capfilt.reports.html.contents import contents
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from capfilt.provenance.rundir import RunDir

MOST_BYTES = 3_000_000
"""What a page may weigh."""
REPORT_FILE = "report.html"
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Written:
    """A report that was written."""

    path: Path
    bytes: int
    seed: int


def write_report(run: RunDir, out: Path, *, seed: int = 0) -> Written:
    """Write the report of a run to `out`, all or nothing; `seed` draws the samples that are shown."""
    if out.is_dir():
        raise CapfiltError(f"{out} is a folder", fix=f"give a file, e.g. --out {out / REPORT_FILE}")
    page = render(run, seed=seed).encode("utf-8")
    write_whole(out, page)
    return Written(out, len(page), seed)


def render(run: RunDir, *, seed: int = 0) -> str:
    """Return the page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cut": visible, "cell": cell, "count": "{:,}".format, "reason": _reason}
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    # The style is ours, and the browser hashes it as it stands.
    return environment.get_template("page.html.j2").render(
        style=Markup(style), style_hash=Markup(f"sha256-{digest}"), **contents(run, seed)
    )


def shown(value: object) -> object:
    """Return what the template puts out: every text with nothing in it that cannot be seen.

    It is escaped after this, by the template engine. Drawings, which are Markup, are left alone.
    """
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def cell(value: str | float | None) -> str:
    """Return a value as a table shows it: thousands apart, three decimals, a dash where there is none."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, str):
        return visible(value, 200)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "\N{EN DASH}"
    text = (
        f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.2g}"
    )
    return text.replace("-", "\N{MINUS SIGN}")


def _reason(name: str | None) -> str:
    return (name or "").replace("_", " ")
