"""A page that is served to a test, and requests to it as a browser, or anybody else, would send them."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from capfilt.browser.app import create_app
from capfilt.browser.pages import address
from capfilt.browser.serve import listening, server_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from capfilt.provenance.rundir import RunDir

TOKEN = "the-token-of-this-test"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Served:
    """A page that runs, and what to ask it with."""

    run: RunDir
    port: int

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"http://{self.host}/"

    @property
    def address_to_write(self) -> str:
        return f"{self.address}#token={TOKEN}"

    def ask_address(self, path: str, **query: object) -> str:
        """The whole address of a path with a query."""
        return f"{self.address.rstrip('/')}{address(path, **query)}"

    def ask(
        self, path: str, *, method: str = "GET", body: str | bytes | None = None, **headers: str | None
    ) -> Answer:
        """Send a request; `host="evil.example"` names another host, `part="1"` asks as htmx does."""
        sent = {"Host": self.host}
        if headers.pop("part", None):
            sent |= {"HX-Request": "true", "HX-Request-Type": "partial"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
        sent = {name.title() if name != "host" else "Host": value for name, value in sent.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            data = body.encode() if isinstance(body, str) else body
            if data is not None:
                sent["Content-Length"] = str(len(data))
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(data)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())
        finally:
            connection.close()

    def write(self, path: str, fields: Mapping[str, object] | None = None, **headers: str | None) -> Answer:
        """Send a form as the page's own script does; `headers` that are None are left out."""
        own = {
            "origin": f"http://{self.host}",
            "x_capfilt_token": TOKEN,
            "content_type": "application/x-www-form-urlencoded",
            "part": "1",
        }
        return self.ask(path, method="POST", body=urlencode(fields or {}), **{**own, **headers})


@contextmanager
def served(run: RunDir) -> Iterator[Served]:
    """Serve the page of a run in a thread, on a free port."""
    app = create_app(run, TOKEN)
    # What a page shows must not depend on how fast this machine reads; tests that look before say so.
    app.state.site.view.store.wait()
    server = server_of(app)
    with listening(0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield Served(run, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
