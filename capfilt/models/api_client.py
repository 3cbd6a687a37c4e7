"""JSON asked of a server over HTTP, several requests at a time, again where that may help.

What fails is told apart once, here: what may pass (no connection, too busy, a broken answer) is asked again
and in the end is a run that failed; what the server refuses is an error of the user, with the server's words.
The standard library's client is enough: an answer takes seconds, a new connection none of them.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import threading
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from capfilt.draws import uniforms
from capfilt.errors import CapfiltError, RunFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ANSWER_BYTES = 4 << 20
"""Longest answer that is read. A caption takes some hundred bytes, a list of all models of a large service
less than a megabyte."""
LONGEST_BACKOFF_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0
"""A server that asks for more than this has no intention to answer this run."""
_PASSES = frozenset({408, 425, 429})
"""Client errors that may pass: a time-out, too early, too many requests. So may all from 500 on."""
_TOLD_CHARACTERS = 400
Item = TypeVar("Item")
Result = TypeVar("Result")


class RefusedRequestError(CapfiltError):
    """The server refuses a request and would refuse it again."""

    status = 0
    """Status code of HTTP."""


class StoppedError(Exception):
    """The work that a request belonged to has ended without it."""


class _Passing(Exception):
    """One try failed for a reason that may pass."""

    def __init__(self, what: str, retry_after_s: float = 0.0) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive without its body, and the key at whatever host the answer names."""

    def redirect_request(self, *_given: Any, **_named: Any) -> None:
        return None


def address(source: str) -> str:
    """Return the address of a server as it is used and recorded: no slash at its end, no user, no password.

    One slash after the scheme is read as two: that is what becomes of an address in a `Path`. Raises
    CapfiltError for what is none, and for one that holds a password, which would end up in records.
    """
    text = re.sub(r"^(https?):/{1,2}", lambda match: f"{match[1].lower()}://", source.strip(), flags=re.I)
    try:
        parts = urllib.parse.urlsplit(text)
        host, _port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as error:
        raise _no_address(source) from error
    is_plain = text.isascii() and text.isprintable() and " " not in text
    if parts.scheme not in ("http", "https") or not host or not is_plain:
        raise _no_address(source)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise CapfiltError(
            f"{redacted(source)} holds more than a server's address",
            fix="give it up to its path, as http://HOST:PORT/v1; a key goes into the environment variable "
            "that server.api_key_env names",
        )
    return text.rstrip("/ ")


def redacted(source: str) -> str:
    """Return an address without user, password, query and fragment, to be shown."""
    without = re.sub(r":/+.*@", "://", source, flags=re.S)
    return re.split(r"[?#]", without, maxsplit=1)[0]


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], threads: int, stop: threading.Event
) -> list[Result]:
    """Return the results of `items` in their order, so many of them worked on at once.

    The first failure is raised at once and sets `stop`; what is on its way is not waited for, since a server
    may hang, and its threads do not keep the process from ending.
    """
    todo: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, Result | None, BaseException | None]] = SimpleQueue()
    for number in range(len(items)):
        todo.put(number)

    def some() -> None:
        while not stop.is_set():
            try:
                number = todo.get_nowait()
            except Empty:
                return
            try:
                done.put((number, work(items[number]), None))
            except StoppedError:
                return
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised in the caller
                done.put((number, None, error))
                return

    for _ in range(min(threads, len(items))):
        threading.Thread(target=some, daemon=True, name="server").start()
    results: dict[int, Any] = {}
    try:
        while len(results) < len(items):
            number, result, error = done.get()
            if error is not None:
                raise error
            results[number] = result
    except BaseException:
        stop.set()
        raise
    return [results[number] for number in range(len(items))]


@dataclass(frozen=True)
class Client:
    """A server, and how patiently it is asked."""

    url: str
    """As `address` returns it."""
    key: str = field(default="", repr=False)
    """Sent as a bearer token where it is not empty."""
    timeout_s: float = 300.0
    retries: int = 5
    backoff_s: float = 1.0
    mends: Mapping[int, str] = field(default_factory=dict)
    """What a user may do about a status; 0 for any other."""
    stop: threading.Event = field(default_factory=threading.Event, repr=False)
    """Set when nobody waits for answers any longer."""

    def ask(
        self,
        path: str,
        read: Callable[[Any], Result],
        body: Mapping[str, Any] | None = None,
        *,
        key: tuple[str | int, ...] = (),
    ) -> Result:
        """Return what `read` makes of the JSON that a path answers to a GET, or to a POST of `body`.

        Waits between tries double, shortened by up to half by a number drawn by `key`, so that requests that
        failed together do not come again together; a server's Retry-After is waited for besides. An answer in
        which `read` does not find what it looks for counts as none. Raises
        RefusedRequestError for what the server refuses, RunFailedError after the last try, StoppedError when
        `stop` was set meanwhile.
        """
        for attempt in range(self.retries + 1):
            if self.stop.is_set():
                raise StoppedError
            try:
                answer = self._once(path, body)
            except _Passing as failure:
                last = failure
            else:
                try:
                    return read(answer)
                except (LookupError, TypeError, AttributeError, ValueError):
                    last = _Passing("its answer is not of the form that OpenAI's API gives it")
            if attempt == self.retries or last.retry_after_s > LONGEST_RETRY_AFTER_S:
                break
            longest = min(LONGEST_BACKOFF_S, self.backoff_s * 2 ** min(attempt, 30))
            drawn = float(uniforms(1, "retry", *key, attempt)[0])
            self.stop.wait(last.retry_after_s + longest * (1 - drawn / 2))
        tries = "" if attempt == 0 else f", tried {attempt + 1} times"
        raise RunFailedError(
            f"{self.url}{path} failed{tries}: {last}",
            fix="see to the server, then give the same command again: it goes on where it stopped",
        )

    def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"Accept": "application/json", "User-Agent": "capfilt"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = json.dumps(body).encode("ascii") if body is not None else None
        request = urllib.request.Request(self.url + path, data, headers)
        until = time.monotonic() + self.timeout_s
        try:
            with _opener(self.url).open(request, timeout=self.timeout_s) as response:
                return json.loads(_read(response, until))
        except urllib.error.HTTPError as error:
            raise self._of_status(error, until) from None
        except urllib.error.URLError as error:
            raise _Passing(self._shown(str(error.reason)) or type(error.reason).__name__) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(self._shown(str(error)) or type(error).__name__) from error
        except (ValueError, RecursionError) as error:
            raise _Passing("its answer is not JSON") from error

    def _of_status(self, error: urllib.error.HTTPError, until: float) -> Exception:
        """Return what an answer with a status of an error means."""
        try:
            with error:
                said = _message(_read(error, until))
        except (OSError, http.client.HTTPException, _Passing):
            said = ""
        told = f"{error.code} {error.reason or ''}".strip() + (f": {said}" if said else "")
        if error.code in _PASSES or error.code >= 500:
            return _Passing(self._shown(told), retry_after_s(error.headers.get("Retry-After")))
        if 300 <= error.code < 400 and (to := error.headers.get("Location")):
            told += f", to {redacted(to)}"
        refused = RefusedRequestError(
            f"{self.url} refuses the request: {self._shown(told)}",
            fix=self.mends.get(error.code) or self.mends.get(0) or "see what the server says",
        )
        refused.status = error.code
        return refused

    def _shown(self, text: str) -> str:
        """Return a server's words, fit to be shown: one line, not too long, and without the key."""
        line = one_line(text.replace(self.key, "***") if self.key else text)
        return line if len(line) <= _TOLD_CHARACTERS else line[:_TOLD_CHARACTERS] + "…"


def one_line(text: str) -> str:
    """Return a text with every run of white space and of control characters as one space.

    Lone surrogates, which JSON can hold and UTF-8 cannot, go with them.
    """
    return " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text).split())


def retry_after_s(header: str | None) -> float:
    """Return how many seconds a Retry-After header asks to wait; 0 for none, or an unreadable one.

    Source: RFC 9110, section 10.2.3: a number of seconds, or a date.
    """
    if header is None:
        return 0.0
    if re.fullmatch(r"\s*\d{1,9}(\.\d*)?\s*", header):
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    there = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (there - datetime.now(UTC)).total_seconds())


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Return what opens the address: by the environment's proxies, unless it is this machine's own."""
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if _is_loopback(urllib.parse.urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        there = ipaddress.ip_address(host)
    except ValueError:
        return False
    return there.is_loopback or there.is_unspecified


def _read(response: Any, until: float) -> bytes:
    """Return the body of an answer, refused where it is too long or comes too slowly."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > ANSWER_BYTES:
            raise _Passing(f"its answer is longer than {ANSWER_BYTES >> 20} MiB")
        if time.monotonic() > until:
            raise _Passing("its answer takes longer than server.timeout_s")
    return b"".join(parts)


def _message(body: bytes) -> str:
    """Return what an answer says of an error, as OpenAI's API, FastAPI and others have it, or its text."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and name in said:
            said = said[name]
    return said if isinstance(said, str) else json.dumps(said)


def _no_address(source: str) -> CapfiltError:
    return CapfiltError(
        f"{redacted(source)!r} is no address of a server",
        fix="give one such as http://localhost:8000/v1, or https://HOST/v1",
    )
