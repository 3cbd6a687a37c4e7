"""Serve the page on this machine until it is stopped.

It listens on the loopback interface alone: what it shows is private, and whoever looks from another machine
brings a tunnel (`ssh -L`).
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import uvicorn
    from starlette.types import ASGIApp

    from capfilt.provenance.rundir import RunDir

ADDRESS = "127.0.0.1"
_WAITING = 64
"""Connections that may wait to be answered."""
_LEAVING_S = 1
"""Seconds that requests in progress have left when the page is stopped."""


def serve(run: RunDir, *, port: int, is_listening: Callable[[str], None]) -> None:
    """Serve the page of a run until SIGINT or SIGTERM.

    Port 0 is a free one. `is_listening` is told the address, with the token that writing needs behind its #,
    where a browser sends it to nobody: it stands in no log, and the page takes it out of the address bar.
    CapfiltError where the run cannot be opened or the port is taken.
    """
    from capfilt.browser.app import create_app

    token = secrets.token_urlsafe(24)
    with _interrupts() as interrupts:
        app = create_app(run, token)
        try:
            with listening(port) as listener:
                is_listening(f"http://{ADDRESS}:{listener.getsockname()[1]}/#token={token}")
                interrupts.end(server := server_of(app))
                server.run(sockets=[listener])
        finally:
            app.state.site.view.close()


class _Interrupts:
    """Ctrl-C, which ends a page by its server's end and never in the middle of something.

    A run's rows are read by threads, and Python hangs or aborts where it ends while they import a library. So
    an interrupt is remembered until there is a server to end; whoever insists is heard at once.
    """

    def __init__(self) -> None:
        self._server: uvicorn.Server | None = None
        self._is_interrupted = False

    def end(self, server: uvicorn.Server) -> None:
        """Have an interrupt, one that came before too, end this server."""
        self._server = server
        server.should_exit = self._is_interrupted

    def hear(self, _number: int, _frame: object) -> None:
        """Take a signal."""
        if self._is_interrupted:
            raise KeyboardInterrupt
        self._is_interrupted = True
        if self._server is not None:
            self._server.should_exit = True


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    """Take Ctrl-C in our own way, and end quietly by it."""
    interrupts = _Interrupts()
    before = signal.signal(signal.SIGINT, interrupts.hear)
    try:
        yield interrupts
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGINT, before)


def server_of(app: ASGIApp) -> uvicorn.Server:
    """Return what serves the page: HTTP alone, defects alone logged, no word of a proxy believed."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="on",
            http="h11",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_LEAVING_S,
        )
    )


def open_browser(address: str) -> bool:
    """Show an address in the user's browser; False where nobody would see it."""
    import webbrowser

    if not has_display():
        return False
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    return True


def has_display() -> bool:
    """Return whether a window can be shown here; without one, a browser in the terminal would be started."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def listening(port: int) -> socket.socket:
    """Return a socket that takes connections already, so that an address that was printed is answered."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # A port that was in use a moment ago is taken again; one in use is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS, port))
        listener.listen(_WAITING)
    except OSError as error:
        listener.close()
        raise CapfiltError(
            f"port {port} of {ADDRESS} cannot be used: {os.strerror(error.errno or 0)}",
            fix="give another --port, or none: a free one is found",
        ) from error
    return listener
