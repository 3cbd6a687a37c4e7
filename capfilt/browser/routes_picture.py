"""One picture: its thumbnail, and what every round wrote and decided of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from capfilt.browser.site import site_of, whole_number

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response

SIZES = (320, 480, 960)
"""Longest sides of thumbnails in pixels: few, so that they are remembered."""
_KEPT_S = 600


def thumbnail_file(request: Request) -> Response:
    """Answer with a small picture of one sample, as a JPEG of our own making, whatever the shard holds.

    The sample is named by its row, shard and key, which are looked for in the record and are part of no path.
    """
    from starlette.responses import Response

    site, query = site_of(request), request.query_params
    wanted = whole_number(query.get("px", ""), low=1, high=SIZES[-1], otherwise=SIZES[0])
    px = next(size for size in SIZES if size >= wanted)
    found = site.view.thumbnail(query.get("shard", ""), query.get("key", ""), px)
    headers = {"cache-control": f"private, max-age={_KEPT_S}"} if found.is_lasting else None
    return Response(found.jpeg, media_type="image/jpeg", headers=headers)


def picture_page(request: Request) -> HTMLResponse:
    """Answer with one sample's whole history."""
    site, query = site_of(request), request.query_params
    site.view.refresh()
    history = site.view.history(query.get("shard", ""), query.get("key", ""))
    columns = list(dict.fromkeys(name for one in history.tellings for name in one.scores))
    return site.page("picture.html", "/", history=history, columns=columns, metadata=_lines(history.metadata))


def _lines(metadata: str) -> list[tuple[str, str]]:
    """Return the metadata of a sample as names and values, each as text."""
    try:
        known = json.loads(metadata)
    except ValueError:
        return [("metadata", metadata)]
    if not isinstance(known, dict):
        return [("metadata", metadata)]
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in known.items()
    ]
