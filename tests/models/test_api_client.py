from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import hypothesis.strategies as st
import pytest
from hypothesis import given

from capfilt.errors import CapfiltError
from capfilt.models.api_client import address, in_threads, one_line, redacted, retry_after_s


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        (" https://host/v1/ ", "https://host/v1"),
        ("http:/127.0.0.1:80/v1", "http://127.0.0.1:80/v1"),
        ("HTTP://[::1]:8000", "http://[::1]:8000"),
        ("http://host/deep/er/v1//", "http://host/deep/er/v1"),
    ],
)
def test_an_address_has_one_form(source: str, found: str) -> None:
    assert address(source) == found
    assert address(found) == found


@pytest.mark.parametrize(
    "source",
    [
        "",
        "http://",
        "http:///v1",
        "ftp://host/v1",
        "host:80/v1",
        "http://host:99999/v1",
        "http://host:x/v1",
        "http://a..b/v1",
        "http://ho st/v1",
        "http://host/v\n1",
        "http://[::1/v1",
        "http://höst/v1",
    ],
)
def test_what_is_no_address_is_refused_with_one_that_is(source: str) -> None:
    with pytest.raises(CapfiltError, match="is no address") as refused:
        address(source)
    assert "http://localhost:8000/v1" in refused.value.fix


@pytest.mark.parametrize(
    "source",
    [
        "http://user:hunter2@host/v1",
        "http:/user:hunter2@host/v1",
        "http://user:hun/hunter2@host/v1",
        "http://user:h#hunter2@host/v1",
        "http://user:h?hunter2@host/v1",
        "http://user:h@hunter2@host/v1",
        "http://host/v1?key=hunter2",
        "http://host/v1#hunter2",
        "http://user:hunter2@ho st/v1",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_shown(source: str) -> None:
    with pytest.raises(CapfiltError) as refused:
        address(source)
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in redacted(source)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("12", 12),
        (" 1.5 ", 1.5),
        ("-3", 0),
        ("nan", 0),
        ("inf", 0),
        ("soon", 0),
        ("1" * 400, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_a_retry_after_is_a_number_of_seconds_or_nothing(header: str | None, seconds: float) -> None:
    assert retry_after_s(header) == seconds


def test_a_retry_after_may_be_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=90)
    assert 80 < retry_after_s(format_datetime(soon, usegmt=True)) <= 90


@given(st.text(alphabet=st.characters(), max_size=60))
def test_a_line_can_be_written_anywhere_and_keeps_every_word(text: str) -> None:
    line = one_line(text)
    line.encode("utf-8")
    assert line.splitlines() in ([], [line])
    assert one_line(line) == line
    assert all(word in text for word in line.split(" "))


def test_results_come_in_the_order_of_the_items() -> None:
    def later_first(number: int) -> int:
        time.sleep(0.002 * (20 - number))
        return number * number

    found = in_threads(later_first, list(range(20)), 5, threading.Event())
    assert found == [number * number for number in range(20)]


def test_the_first_failure_is_raised_while_others_hang() -> None:
    stop, released = threading.Event(), threading.Event()
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise KeyError("the second")
        released.wait(20)

    began = time.monotonic()
    with pytest.raises(KeyError, match="the second"):
        in_threads(work, range(50), 3, stop)
    assert time.monotonic() - began < 10
    assert stop.is_set()
    released.set()
    time.sleep(0.05)
    assert len(begun) <= 4
