"""A real server on this machine that speaks OpenAI's chat completions, and fails as real ones do."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

VLLM = {"id": "acme/seer-7b", "object": "model", "owned_by": "vllm", "root": "acme/seer-7b"}


@dataclass(frozen=True)
class Asked:
    """A request that arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    at: float

    @property
    def picture(self) -> Image.Image:
        """The picture in it, decoded."""
        kind, _, data = self.url.partition(",")
        assert kind.endswith(";base64")
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()
            return image

    @property
    def url(self) -> str:
        (url,) = [
            part["image_url"]["url"] for part in self.body["messages"][0]["content"] if "image_url" in part
        ]
        return url

    @property
    def prompt(self) -> str:
        (text,) = [part["text"] for part in self.body["messages"][0]["content"] if part["type"] == "text"]
        return text


@dataclass(frozen=True)
class Reply:
    """What the server sends instead of a caption."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    """Hang up without an answer."""
    wait_s: float = 0.0
    """Say nothing for so long."""
    drip_s: float = 0.0
    """Send a byte at a time, with so long between two."""


def caption(text: Any, **choice: Any) -> Reply:
    """Return an answer whose message has this content."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop", **choice}]
    return Reply(body=json.dumps({"object": "chat.completion", "choices": choices}).encode())


def failure(status: int, message: str, **headers: str) -> Reply:
    """Return an error as OpenAI's API words it."""
    return Reply(status, json.dumps({"error": {"message": message}}).encode(), headers)


def seen(asked: Asked) -> Reply:
    """Say which picture and which seed came: an answer that depends on what a caption depends on."""
    red, green, blue = asked.picture.convert("RGB").resize((1, 1)).getpixel((0, 0))
    return caption(f"a picture of {red} {green} {blue} by {asked.body.get('seed')}")


class ChatServer(ThreadingHTTPServer):
    """Lists `models`, answers each request by the first of `next_replies`, else by `answer`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: Any = [dict(VLLM)]
        self.answer: Callable[[Asked], Reply] = seen
        self.next_replies: list[Reply] = []
        self.requests: list[Asked] = []
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def chats(self) -> list[Asked]:
        """Requests for captions that arrived."""
        return [asked for asked in self.requests if asked.path.endswith("/chat/completions")]

    def reply(self, asked: Asked) -> Reply:
        if asked.path.endswith("/models"):
            if isinstance(self.models, Reply):
                return self.models
            return Reply(body=json.dumps({"object": "list", "data": self.models}).encode())
        with self.lock:
            if self.next_replies:
                return self.next_replies.pop(0)
        return self.answer(asked)

    def kill(self) -> None:
        """End as a killed process does: nobody listens, and every connection is gone."""
        self.shutdown()
        self.server_close()
        with self.lock:
            for connection in self.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_about: Any) -> None:
        """A client that hangs up is none of this server's errors."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections.add(self.connection)

    def finish(self) -> None:
        with self.server.lock:
            self.server.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        asked = Asked(self.command, self.path, dict(self.headers.items()), body, time.monotonic())
        server = self.server
        with server.lock:
            server.requests.append(asked)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            reply = server.reply(asked)
            time.sleep(reply.wait_s)
        finally:
            with server.lock:  # before the answer: its client may ask again as soon as it has it
                server.at_once -= 1
        if reply.drop:
            return
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if not reply.drip_s:
            self.wfile.write(reply.body)
            return
        for byte in reply.body:
            self.wfile.write(bytes([byte]))
            time.sleep(reply.drip_s)

    def log_message(self, *_about: Any) -> None:
        """Nobody reads it."""


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Serve until the end of the block."""
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.kill()
        thread.join()
