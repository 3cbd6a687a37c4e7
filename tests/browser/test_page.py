"""What a person does on the page, done by a real browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hostile import KEYS, TEXTS
from serving import served

from capfilt.browser.view import RunView
from capfilt.provenance.labels import Verdict, draw_sample, read_labels
from capfilt.provenance.policy import newest_policy
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from serving import Served

    from capfilt.browser.cards import Facets
    from capfilt.provenance.rundir import RunDir

AXE = Path(__file__).parent / "axe" / "axe.min.js"
WORST = ("serious", "critical")


def kept(tab: Page) -> int:
    """The number that stands on the page."""
    return int(re.match(r"[\d,]+", tab.locator(".headline").inner_text()).group().replace(",", ""))  # type: ignore[union-attr]


def slide(tab: Page, name: str, value: float) -> None:
    """Move a slider as a hand does, and wait for what follows."""
    before = tab.locator("#deed").inner_text()
    tab.locator(f"#slider-{name}").evaluate(
        "(slider, value) => { slider.value = value;"
        " slider.dispatchEvent(new Event('input', {bubbles: true})); }",
        str(value),
    )
    tab.wait_for_function("before => document.getElementById('deed').innerText !== before", arg=before)


def begin_to_label(tab: Page, page_server: Served, *, size: int = 20) -> None:
    tab.goto(page_server.address_to_write)
    tab.get_by_role("link", name="Label").click()
    tab.get_by_label("Your name").fill("Anna <b>")
    tab.get_by_label("Pairs to label").fill(str(size))
    tab.get_by_role("button", name="Begin").click()
    tab.wait_for_url("**/label?who=*")


def test_open_filter_slide_label_apply_reload(tab: Page, page_server: Served) -> None:
    tab.goto(page_server.address_to_write)
    assert "token" not in tab.url
    assert kept(tab) > 0
    everything = tab.locator(".found").inner_text()

    tab.get_by_label("Words in the text").fill("square on grey")
    tab.wait_for_function("before => document.querySelector('.found').innerText !== before", arg=everything)
    assert tab.locator(".card").count() == 24
    assert "24 pictures" in tab.locator(".found").inner_text()
    assert "words=square" in tab.url

    before = kept(tab)
    slide(tab, "itm", float(tab.locator("#slider-itm").get_attribute("max") or 1))
    assert kept(tab) < before
    assert "Draft." in tab.locator("#deed").inner_text()
    slide(tab, "itm", 0.25)
    draft = kept(tab)
    command = tab.locator("#deed .command").inner_text()
    assert command == f"capfilt judge {page_server.run.path} --itm 0.25"
    link = tab.url
    assert "judge.itm=0.25" in link

    tab.get_by_role("button", name="Apply").click()
    tab.locator("#notice .done").wait_for()
    assert "Policy 2 is in force" in tab.locator("#notice").inner_text()
    newest = newest_policy(page_server.run)
    assert newest is not None
    assert (newest[0], newest[1].words) == (2, "ITM of at least 0.25")
    tab.wait_for_function("() => !location.search.includes('judge.')")

    tab.reload()
    assert kept(tab) == draft
    assert tab.locator("#number-itm").input_value() == "0.25"
    assert tab.get_by_label("Words in the text").input_value() == "square on grey"
    assert "Policy 2, in force" in tab.locator("#deed").inner_text()


def test_counts_and_sliders_follow_once_all_scores_are_read(
    tab: Page, looked_at: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, looks = RunView.facets, []

    def facets(view: RunView) -> Facets:
        looks.append(view)
        return replace(whole(view), is_complete=len(looks) > 1)

    monkeypatch.setattr(RunView, "facets", facets)
    tab.goto(looked_at.address)
    tab.locator("#slider-itm").wait_for()
    assert kept(tab) > 0
    slide(tab, "itm", 0.25)
    assert "judge.itm=0.25" in tab.url


def test_a_link_shows_the_same_again(tab: Page, looked_at: Served) -> None:
    tab.goto(looked_at.address + "?source=web&order=itm&judge.itm=0.25&judge.per_image=1")
    shown = tab.locator("#view").inner_text()
    assert tab.get_by_label("Source").input_value() == "web"
    assert tab.get_by_label("Texts a picture").input_value() == "1"
    tab.get_by_role("link", name="Progress").click()
    tab.go_back()
    assert tab.locator("#view").inner_text() == shown


def test_ten_labels_by_keys_are_rows_and_figures(tab: Page, page_server: Served) -> None:
    begin_to_label(tab, page_server)
    keys = ["m", "x", "u", "m", "m", "x", "m", "m", "m", "x"]
    for number, key in enumerate(keys, 1):
        tab.get_by_text(f"Pair {number} of 20").wait_for()
        tab.keyboard.press(key)
    tab.get_by_text("Pair 11 of 20").wait_for()
    said = read_labels(page_server.run)
    assert [label.verdict for label in sorted(said, key=lambda label: label.when)] == [
        {"m": Verdict.MATCH, "x": Verdict.MISMATCH, "u": Verdict.UNSURE}[key] for key in keys
    ]
    assert {label.who for label in said} == {"Anna <b>"}
    tab.locator("#figures", has_text="9 labelled pairs, 1 more unsure").wait_for()

    tab.keyboard.press("ArrowLeft")
    tab.get_by_text("Pair 10 of 20").wait_for()
    assert tab.locator("#mismatch").get_attribute("aria-pressed") == "true"
    tab.keyboard.press("ArrowLeft")
    tab.get_by_text("Pair 9 of 20").wait_for()
    tab.keyboard.press("z")
    tab.get_by_text("Pair 10 of 20").wait_for()
    tab.get_by_text("9 labelled by you").wait_for()
    assert tab.locator("#mismatch").get_attribute("aria-pressed") == "false"
    assert len(read_labels(page_server.run)) == 9

    tab.reload()
    tab.get_by_text("9 labelled by you").wait_for()
    tab.get_by_text("Pair 10 of 20").wait_for()
    tab.goto(page_server.address + "?label=mismatch")
    assert tab.locator(".found").inner_text().startswith("2 pictures") or tab.locator(".card").count() == 1
    assert "labels" in tab.locator(".counts").inner_text()


def test_keys_can_be_turned_off(tab: Page, page_server: Served) -> None:
    begin_to_label(tab, page_server)
    tab.get_by_text("Pair 1 of 20").wait_for()
    tab.get_by_label("Listen to these keys").uncheck()
    tab.keyboard.press("m")
    tab.get_by_label("Listen to these keys").check()
    tab.keyboard.press("ArrowRight")
    tab.get_by_text("Pair 2 of 20").wait_for()
    assert read_labels(page_server.run) == []


def test_who_labels_sees_neither_score_nor_verdict_nor_source(tab: Page, page_server: Served) -> None:
    begin_to_label(tab, page_server)
    asked = tab.locator("#question").inner_html()
    for told in ("ITM", "ITC", "kept", "threshold", "Synthetic", "Web"):
        assert told not in asked


def test_without_the_token_a_tab_looks_and_does_not_write(
    tab: Page, page_server: Served, allowed: list[str]
) -> None:
    allowed.append("403")
    tab.goto(page_server.address + "?judge.itm=0.25")
    assert tab.locator("#deed .read-only").is_visible()
    tab.get_by_role("button", name="Apply").click()
    tab.locator("#notice .wrong").wait_for()
    assert "token" in tab.locator("#notice").inner_text()
    newest = newest_policy(page_server.run)
    assert newest is not None
    assert newest[0] == 1


def test_hostile_texts_do_nothing_but_show(tab: Page, looked_at: Served) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    for path in ("", "?offset=24", "?judge.itm=0.25", "live"):
        tab.goto(looked_at.address + path)
        tab.wait_for_load_state("networkidle")
    for key in (*TEXTS, *KEYS):
        tab.goto(looked_at.ask_address("/picture", shard="00000", key=key))
        text = TEXTS.get(key, f"a text of {key}")
        if key == "longer":
            assert "a web text that is too long" in tab.locator(".facts").first.inner_text()
        else:
            assert visible(text, 5000).split() == tab.locator("td.text bdi").first.inner_text().split(), key
        assert tab.locator("h1").inner_text() == f"Picture {visible(key)}"
    assert tab.evaluate("window.owned") is None
    assert all(url.startswith(looked_at.address) for url in asked)
    tab.goto(looked_at.address)
    slide(tab, "itm", 0.3)
    tab.locator("#view .card").first.hover()
    assert tab.evaluate("window.owned") is None
    assert (
        tab.locator("#view script, #view style, #view svg:not(.bar), #view [onload], #view [hx-get]").count()
        == 0
    )


def test_hostile_texts_do_nothing_while_labelling(tab: Page, looked_at: Served) -> None:
    drawn = draw_sample(looked_at.run, 1000, 0).pairs
    places = {pair.key: place for place, pair in enumerate(drawn, 1) if pair.source == "web"}
    for key in ("script", "handler", "quotes", "style", "htmx", "oob", "turned"):
        tab.goto(looked_at.ask_address("/label", who="anna", size=1000, seed=0, n=places[key]))
        assert tab.locator("blockquote").inner_text() == visible(TEXTS[key])
        # What htmx brings is shown the same as what came with the page.
        tab.keyboard.press("ArrowRight")
        tab.get_by_text(f"Pair {places[key] + 1} of").wait_for()
        tab.keyboard.press("ArrowLeft")
        tab.get_by_text(f"Pair {places[key]} of").wait_for()
        assert tab.locator("blockquote").inner_text() == visible(TEXTS[key])
        assert tab.evaluate("window.owned") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/?judge.itm=0.3&order=random&reason=kept",
        "/?words=nothing+has+these+words",
        "/picture?shard=00000&key=script",
        "/label",
        "/label?who=anna&size=20&seed=0",
        "/live",
        "/?source=mars",
        "/nothing",
    ],
)
def test_axe_finds_no_serious_fault(
    tab: Page, looked_at: Served, allowed: list[str], path: str, scheme: str
) -> None:
    allowed += ["400", "404"]
    tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for width in (1440, 390):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.goto(looked_at.address.rstrip("/") + path)
        tab.wait_for_load_state("networkidle")
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        tab.evaluate(AXE.read_text(encoding="utf-8"))
        found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
        worst = [
            (one["id"], one["impact"], [node["html"][:200] for node in one["nodes"]][:3])
            for one in found["violations"]
            if one["impact"] in WORST
        ]
        assert worst == [], json.dumps(worst, indent=1)
        assert found["passes"] == [] or len(found["passes"]) > 5


def test_the_page_can_be_walked_by_keys_alone(tab: Page, looked_at: Served) -> None:
    tab.goto(looked_at.address_to_write)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "words"
    tab.locator("#slider-itm").focus()
    deed = tab.locator("#deed").inner_text()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("before => document.getElementById('deed').innerText !== before", arg=deed)
    assert tab.evaluate("document.activeElement.id") == "slider-itm"
    assert (
        tab.locator("#slider-itm").get_attribute("aria-valuetext") == tab.locator("#number-itm").input_value()
    )


def test_nothing_is_wider_than_a_phone(tab: Page, looked_at: Served) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    for path in ("/", "/?judge.itm=0.3", "/picture?shard=00000&key=long", "/label?who=anna&size=20", "/live"):
        tab.goto(looked_at.address.rstrip("/") + path)
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert tab.evaluate("document.documentElement.scrollWidth") == 390, path


def test_a_server_that_ended_is_told_of(tab: Page, run: RunDir, allowed: list[str]) -> None:
    allowed += ["net::ERR", "htmx:error"]
    with served(run) as page:
        tab.goto(page.address)
    tab.get_by_label("Words in the text").fill("red")
    tab.locator("#notice .wrong").wait_for()
    assert "does not answer" in tab.locator("#notice").inner_text()
