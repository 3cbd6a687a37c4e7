"""The few files that the page is made of, read once and served from memory.

A request never becomes a path: what is not in the table does not exist.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "htmx.LICENSE.txt": "text/plain; charset=utf-8",
    "icon.png": "image/png",
}
"""Every file that is served, with its type."""


@cache
def version() -> str:
    """Return a digest of the files, which stands in their addresses: so a browser may keep them for ever."""
    return hashlib.sha256(b"".join(_content(name) for name in sorted(_TYPES))).hexdigest()[:12]


async def static_file(request: Request) -> Response:
    """Answer with one of the files."""
    from starlette.exceptions import HTTPException
    from starlette.responses import Response

    name = request.path_params["name"]
    if name not in _TYPES:
        raise HTTPException(404)
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(_content(name), media_type=_TYPES[name], headers=headers)


@cache
def _content(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()
