from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import world
from serving import TOKEN

from capfilt.provenance.policy import newest_policy

if TYPE_CHECKING:
    from serving import Served

PAGES = ("/", "/live", "/label", "/label/figures", "/nothing", "/static/0/style.css", "/static/0/nothing.css")
SLIDE = {"form": "1", "judge.itm": "0.25"}


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.2", "[::2]:80", "", "a:b:c"],
)
def test_a_name_that_was_rebound_to_this_machine_is_told_nothing(looked_at: Served, host: str) -> None:
    answer = looked_at.ask("/", host=host)
    assert answer.status == 421
    assert "a-private-run" not in answer.text
    assert "plain000" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "[::1]:{port}"])
def test_this_machine_is_answered_under_its_own_names(looked_at: Served, host: str) -> None:
    answer = looked_at.ask("/", host=host.format(port=looked_at.port))
    assert answer.status == 200
    assert "a-private-run" in answer.text
    assert "plain000" in answer.text


def test_a_tunnel_may_use_another_port(looked_at: Served) -> None:
    assert looked_at.ask("/", host="localhost:9000").status == 200
    moved = {"host": "localhost:9000", "origin": "http://localhost:9000"}
    assert looked_at.write("/apply", SLIDE, **moved).status == 200


@pytest.mark.parametrize("path", PAGES)
def test_every_answer_carries_the_headers_that_forbid(looked_at: Served, path: str) -> None:
    answer = looked_at.ask(path)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["img-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers
    is_file = path == "/static/0/style.css"
    assert answer.headers["cache-control"] == (
        "public, max-age=31536000, immutable" if is_file else "no-store"
    )


def test_a_refusal_carries_them_too(looked_at: Served) -> None:
    answer = looked_at.ask("/", host="evil.example")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "headers",
    [
        {"x_capfilt_token": None},
        {"x_capfilt_token": ""},
        {"x_capfilt_token": TOKEN[:-1]},
        {"x_capfilt_token": TOKEN + "x"},
        {"x_capfilt_token": "t\u00f6ken"},
        {"origin": None},
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:1"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"host": "evil.example"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/apply", "/label/draw", "/label/add", "/label/undo"])
def test_nothing_is_written_without_the_token_or_for_another_site(
    looked_at: Served, path: str, headers: dict[str, str | None]
) -> None:
    before = world.digests(looked_at.run.path)
    answer = looked_at.write(path, {**SLIDE, "who": "mallory", "judge.itm": "0.9"}, **headers)
    assert answer.status in (403, 421)
    assert world.digests(looked_at.run.path) == before


def test_with_token_and_origin_it_is_written(looked_at: Served) -> None:
    assert looked_at.write("/apply", {**SLIDE, "judge.itm": "0.125"}).status == 200
    newest = newest_policy(looked_at.run)
    assert newest is not None
    assert newest[1].words.startswith("ITM of at least 0.125")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(looked_at: Served, method: str) -> None:
    assert looked_at.ask("/", method=method).status == 405


def test_reading_never_writes(looked_at: Served) -> None:
    before = world.digests(looked_at.run.path)
    for path in (*PAGES, "/?judge.itm=0.9", "/label?who=anna&size=20&seed=1", "/?source=web"):
        looked_at.ask(path)
        looked_at.ask(path, part="1")
    assert looked_at.ask("/apply").status == 405
    assert world.digests(looked_at.run.path) == before


@pytest.mark.parametrize(
    ("site", "mode", "destination", "status"),
    [
        ("cross-site", "navigate", "document", 200),
        ("cross-site", "navigate", "iframe", 403),
        ("cross-site", "no-cors", "image", 403),
        ("cross-site", "cors", "empty", 403),
        ("same-site", "no-cors", "script", 403),
        ("same-origin", "cors", "empty", 200),
        ("none", "navigate", "document", 200),
    ],
)
def test_a_link_from_elsewhere_may_be_followed_and_nothing_be_embedded(
    looked_at: Served, site: str, mode: str, destination: str, status: int
) -> None:
    answer = looked_at.ask("/", sec_fetch_site=site, sec_fetch_mode=mode, sec_fetch_dest=destination)
    assert answer.status == status


@pytest.mark.parametrize(
    "path",
    [
        "/static/0/../app.py",
        "/static/0/..%2fapp.py",
        "/static/0/%2e%2e/app.py",
        "/static/..%2f..%2fapp.py",
        "/static/0//etc/passwd",
        "/static/0/looked_at.js%00.css",
        "/static/0/",
        "/run.json",
        "/../run.json",
        "/provenance/policies/0001.json",
    ],
)
def test_no_file_is_served_by_its_name(looked_at: Served, path: str) -> None:
    answer = looked_at.ask(path)
    assert answer.status == 404
    assert "import" not in answer.text


def test_a_thumbnail_is_a_jpeg_of_our_own_whatever_is_asked_for(looked_at: Served) -> None:
    for query in ("shard=00000&key=script", "shard=00000&key=drawing", "shard=00000&key=broken&px=99999999"):
        answer = looked_at.ask(f"/thumbnail?{query}")
        assert answer.status == 200
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.body.startswith(b"\xff\xd8\xff")
    for query in ("", "shard=..%2f..&key=x", "shard=/etc&key=passwd", "shard=00000&key=script%00", "key=%F0"):
        answer = looked_at.ask(f"/thumbnail?{query}")
        assert answer.status == 400
        assert answer.headers["content-type"].startswith("text/html")


def test_what_is_too_large_or_no_form_is_refused_with_its_mend(looked_at: Served) -> None:
    before = world.digests(looked_at.run.path)
    large = looked_at.write("/apply", {"words": "x" * 70_000})
    assert large.status == 400
    assert "more was sent than a form holds" in large.text
    other = looked_at.write("/apply", SLIDE, content_type="application/json")
    assert other.status == 400
    assert "no form" in other.text
    assert world.digests(looked_at.run.path) == before
