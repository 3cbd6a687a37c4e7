"""Where a run stands, while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.browser.site import site_of, wants_part

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import HTMLResponse


def live_page(request: Request) -> HTMLResponse:
    """Answer with the stage, its progress, the newest captions and what was refused."""
    site = site_of(request)
    site.view.refresh()
    name = "live_part.html" if wants_part(request) else "live.html"
    return site.page(name, "/live", live=site.view.live())
