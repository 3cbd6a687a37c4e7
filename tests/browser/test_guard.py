from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import world
from serving import TOKEN, served

from capfilt.provenance.policy import newest_policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from serving import Served

    from capfilt.provenance.rundir import RunDir

PAGES = ("/", "/live", "/label", "/label/figures", "/nothing", "/static/0/style.css", "/static/0/nothing.css")
SLIDE = {"form": "1", "judge.itm": "0.25"}


@pytest.fixture(scope="module")
def page(hostile_run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(world.copied(hostile_run, tmp_path_factory.mktemp("guarded") / "run")) as found:
        yield found


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.2", "[::2]:80", "", "a:b:c"],
)
def test_a_name_that_was_rebound_to_this_machine_is_told_nothing(page: Served, host: str) -> None:
    answer = page.ask("/", host=host)
    assert answer.status == 421
    assert page.run.path.name not in answer.text.replace(host, "")
    assert "plain000" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "[::1]:{port}"])
def test_this_machine_is_answered_under_its_own_names(page: Served, host: str) -> None:
    assert page.ask("/", host=host.format(port=page.port)).status == 200


def test_a_tunnel_may_use_another_port(page: Served) -> None:
    assert page.ask("/", host="localhost:9000").status == 200
    moved = {"host": "localhost:9000", "origin": "http://localhost:9000"}
    assert page.write("/apply", SLIDE, **moved).status == 200


@pytest.mark.parametrize("path", PAGES)
def test_every_answer_carries_the_headers_that_forbid(page: Served, path: str) -> None:
    answer = page.ask(path)
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


def test_a_refusal_carries_them_too(page: Served) -> None:
    answer = page.ask("/", host="evil.example")
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
    page: Served, path: str, headers: dict[str, str | None]
) -> None:
    before = world.digests(page.run.path)
    answer = page.write(path, {**SLIDE, "who": "mallory", "judge.itm": "0.9"}, **headers)
    assert answer.status in (403, 421)
    assert world.digests(page.run.path) == before


def test_with_token_and_origin_it_is_written(page: Served) -> None:
    assert page.write("/apply", {**SLIDE, "judge.itm": "0.125"}).status == 200
    newest = newest_policy(page.run)
    assert newest is not None
    assert newest[1].words.startswith("ITM of at least 0.125")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(page: Served, method: str) -> None:
    assert page.ask("/", method=method).status == 405


def test_reading_never_writes(page: Served) -> None:
    before = world.digests(page.run.path)
    for path in (*PAGES, "/?judge.itm=0.9", "/label?who=anna&size=20&seed=1", "/?source=web"):
        page.ask(path)
        page.ask(path, part="1")
    assert page.ask("/apply").status == 405
    assert world.digests(page.run.path) == before


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
    page: Served, site: str, mode: str, destination: str, status: int
) -> None:
    answer = page.ask("/", sec_fetch_site=site, sec_fetch_mode=mode, sec_fetch_dest=destination)
    assert answer.status == status


@pytest.mark.parametrize(
    "path",
    [
        "/static/0/../app.py",
        "/static/0/..%2fapp.py",
        "/static/0/%2e%2e/app.py",
        "/static/..%2f..%2fapp.py",
        "/static/0//etc/passwd",
        "/static/0/page.js%00.css",
        "/static/0/",
        "/run.json",
        "/../run.json",
        "/provenance/policies/0001.json",
    ],
)
def test_no_file_is_served_by_its_name(page: Served, path: str) -> None:
    answer = page.ask(path)
    assert answer.status == 404
    assert "import" not in answer.text


def test_a_thumbnail_is_a_jpeg_of_our_own_whatever_is_asked_for(page: Served) -> None:
    for query in ("shard=00000&key=script", "shard=00000&key=drawing", "shard=00000&key=broken&px=99999999"):
        answer = page.ask(f"/thumbnail?{query}")
        assert answer.status == 200
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.body.startswith(b"\xff\xd8\xff")
    for query in ("", "shard=..%2f..&key=x", "shard=/etc&key=passwd", "shard=00000&key=script%00", "key=%F0"):
        answer = page.ask(f"/thumbnail?{query}")
        assert answer.status == 400
        assert answer.headers["content-type"].startswith("text/html")


def test_what_is_too_large_or_no_form_is_refused_with_its_mend(page: Served) -> None:
    before = world.digests(page.run.path)
    large = page.write("/apply", {"words": "x" * 70_000})
    assert large.status == 400
    assert "more was sent than a form holds" in large.text
    other = page.write("/apply", SLIDE, content_type="application/json")
    assert other.status == 400
    assert "no form" in other.text
    assert world.digests(page.run.path) == before
