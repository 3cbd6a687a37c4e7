"""Who may ask the page for what: checks before any route, and the headers of every answer.

The page shows a private data set on a port that every process, and every website in the user's browser, can
reach. So a request must name a loopback host (a website that rebinds its own name to 127.0.0.1 has another),
must not come from a document of another origin, and must bring the token that was printed at start before
anything is written.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from capfilt.browser.headers import HEADERS, PRIVATE
from capfilt.browser.problems import problem

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_HEADER = "x-capfilt-token"
"""Header that a request which writes must bring; a form of another site can send no header of its own."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names under which the page may be asked for."""


class Guard:
    """ASGI middleware: refuse what must not be answered, and add the headers of every answer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from starlette.datastructures import Headers

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with_ours(message["headers"])
            await send(message)

        refused = self._refusal(scope["method"], Headers(scope=scope))
        app = self._app if refused is None else problem(*refused)
        await app(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str, str] | None:
        """Return status, what is wrong and its mend, of a request that is not to be answered."""
        if not _is_loopback(headers.getlist("host")):
            return (
                421,
                "this page answers on this machine alone",
                "open the address that was printed at start",
            )
        if method in ("GET", "HEAD"):
            return None if _is_own_or_opened(headers) else _FOREIGN
        if method != "POST":
            return 405, "the page is read with GET and written with POST", "open the address that was printed"
        if headers.get("origin") != f"http://{headers['host']}" or not _is_own_or_opened(headers):
            return _FOREIGN
        if not hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), self._token.encode()):
            return (
                403,
                "this tab may look and not write: it lacks the token of this start",
                "open the address that `capfilt browse` printed, with all that stands behind #",
            )
        return None


_FOREIGN = (403, "another site asked for this page", "open the address that was printed at start")


def _is_loopback(hosts: list[str]) -> bool:
    """Return whether a request names this machine.

    Any port will do: behind `ssh -L 9000:127.0.0.1:8000` a browser names 9000, and what was rebound is known
    by its name.
    """
    try:
        return len(hosts) == 1 and urlsplit(f"//{hosts[0]}").hostname in LOOPBACK
    except ValueError:
        return False


def _is_own_or_opened(headers: Headers) -> bool:
    """Return whether a request comes from our own page, the address bar, or a link that was followed.

    Browsers say where a request comes from; programs, which are no danger to a browser's user, say nothing.
    """
    site = headers.get("sec-fetch-site", "none")
    if site in ("none", "same-origin"):
        return True
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _with_ours(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return an answer's headers with ours; where it says that it may be kept, its word stands."""
    may_be_kept = any(name.lower() == b"cache-control" for name, _ in headers)
    ours = HEADERS if may_be_kept else HEADERS | PRIVATE
    return [*headers, *((name.encode(), value.encode()) for name, value in ours.items())]
