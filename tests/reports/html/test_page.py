from __future__ import annotations

import base64
import hashlib
import io
import re
from typing import TYPE_CHECKING

import PIL.Image
import pytest
from made_run import HOSTILE, made_run, started_run
from noise_run import THRESHOLD, noise_run
from read_page import Page, number, read_page

from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.policy import Policy, TopFraction, write_policy
from capfilt.records import Source
from capfilt.reports.html.page import MOST_BYTES, cell, render, write_report
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from capfilt.provenance.rundir import RunDir


ACTIVE = {
    "script",
    "iframe",
    "object",
    "embed",
    "form",
    "input",
    "button",
    "base",
    "template",
    "foreignobject",
}
"""Elements that could do something, none of which is on the page."""


@pytest.fixture(scope="module")
def html(run: RunDir) -> str:
    return render(run, seed=3)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return read_page(html)


def sql(run: RunDir, query: str, *values: object) -> list[tuple[Any, ...]]:
    with open_catalog(run) as catalog:
        return catalog.execute(query, list(values) or None).fetchall()


# -- what it says is what the catalog says


def test_the_funnel_counts_what_the_catalog_counts(run: RunDir, page: Page) -> None:
    [(read, used)] = sql(run, "SELECT sum(samples_in), sum(samples_ok) FROM shards")
    by_source = dict(sql(run, "SELECT source, count(*) FROM pairs GROUP BY source"))
    kept = dict(sql(run, "SELECT source, count(*) FROM pairs WHERE keep GROUP BY source"))
    [(images,)] = sql(run, "SELECT count(DISTINCT (shard, key)) FROM pairs WHERE keep")
    rows = {
        row[0]: [number(value) for value in row[1:]]
        for row in page.tables["Samples and texts after each step"][1:]
    }
    assert rows == {
        "samples read": [0, 0, read],
        "samples with a picture that can be used": [0, 0, used],
        "texts": [by_source["web"], by_source["synthetic"], sum(by_source.values())],
        "texts kept": [kept["web"], kept["synthetic"], sum(kept.values())],
        "samples with a kept text": [0, 0, images],
    }


def test_a_histogram_counts_every_scored_pair_in_its_bar(run: RunDir, page: Page) -> None:
    for score, caption in (
        ("itm", "ITM of web and synthetic texts"),
        ("itc", "ITC of web and synthetic texts"),
    ):
        head, *rows = page.tables[caption]
        assert head[1:] == ["web texts", "synthetic texts"]
        for column, source in ((1, "web"), (2, "synthetic")):
            [(pairs,)] = sql(run, f"SELECT count({score}) FROM pairs WHERE source = ?", source)
            assert sum(number(row[column]) for row in rows) == pairs
    low, high = (float(edge) for edge in page.tables["ITM of web and synthetic texts"][5][0].split(" to "))
    found = sql(
        run, "SELECT source, count(*) FROM pairs WHERE itm >= ? AND itm < ? GROUP BY source", low, high
    )
    row = page.tables["ITM of web and synthetic texts"][5]
    assert {
        source: count for source, count in (("web", number(row[1])), ("synthetic", number(row[2]))) if count
    } == dict(found)


def test_the_chart_of_a_score_says_where_the_threshold_is_and_who_reaches_it(run: RunDir, page: Page) -> None:
    [alt] = [
        svg.attributes["aria-label"] or ""
        for svg in page.all("svg")
        if (svg.attributes["aria-label"] or "").startswith("ITM of web")
    ]
    assert f"The threshold is {THRESHOLD}" in alt
    for source in ("web", "synthetic"):
        [(reaching, pairs)] = sql(
            run,
            "SELECT count(*) FILTER (WHERE itm >= ?), count(itm) FROM pairs WHERE source = ?",
            THRESHOLD,
            source,
        )
        assert f"{source} texts: {100 * reaching / pairs:.0f}% of {pairs} reach it" in alt


def test_two_scores_against_each_other_count_every_pair_once(run: RunDir, page: Page) -> None:
    for source in ("web", "synthetic"):
        _, *rows = page.tables[f"ITC against ITM, {source} texts"]
        [(pairs,)] = sql(run, "SELECT count(*) FROM pairs WHERE itm IS NOT NULL AND source = ?", source)
        assert sum(number(value) for row in rows for value in row[1:]) == pairs
        [(high,)] = sql(run, "SELECT count(*) FROM pairs WHERE itm >= 0.875 AND source = ?", source)
        assert sum(number(value) for value in rows[0][1:]) == high


def test_the_numbers_at_the_head_are_those_of_the_verdicts(run: RunDir, page: Page) -> None:
    [(kept, every)] = sql(run, "SELECT count(*) FILTER (WHERE keep), count(*) FROM pairs")
    assert f"{every} texts, of which {kept} ({100 * kept / every:.0f}%) are kept by policy 1" in page.text


def test_calibration_stands_as_it_was_recorded(page: Page) -> None:
    _, *rows = page.tables["AUROC, with its 95% interval"]
    assert rows == [
        ["ITM, shuffled", "40", "0.900", "0.800", "0.950"],
        ["ITC, shuffled", "40", "0.900", "0.800", "0.950"],
    ]
    # Of the four right pairs 0.2, 0.6, 0.7 and 0.9 three reach 0.45; of the shuffled ones none does.
    assert "pass 75% of right captions; 0% of shuffled captions" in page.text
    assert "precision 1.00, recall 0.75" in page.text


# -- what it shows


def _cards(html: str, gallery: str) -> list[str]:
    section = html.split(f'<section id="{gallery}"')[1].split("</section>")[0]
    return section.split('<li class="card">')[1:]


def test_side_by_side_shows_samples_by_what_became_of_their_texts(run: RunDir, html: str) -> None:
    section = html.split('<section id="side-by-side"')[1].split("</section>")[0]
    verdicts = {
        key: (web, synthetic)
        for key, web, synthetic in sql(
            run,
            "SELECT key, bool_or(keep) FILTER (WHERE source = 'web'), bool_or(keep) FILTER (WHERE source = "
            "'synthetic') FROM pairs GROUP BY shard, key HAVING count(DISTINCT source) = 2",
        )
    }
    rows = dict(re.findall(r"<h3>(.*?) <span.*?</h3>(.*?)</ul>\s*(?=<h3>|$)", section, re.DOTALL))
    wanted = {
        "The web text is dropped, a synthetic one is kept": (False, True),
        "The web text is kept, synthetic ones are dropped": (True, False),
        "Both are kept": (True, True),
        "Both are dropped": (False, False),
    }
    assert set(rows) == {title for title, verdict in wanted.items() if verdict in verdicts.values()}
    for title, cards in rows.items():
        keys = re.findall(r"/ <bdi>(.*?)</bdi>", cards)
        assert 1 <= len(keys) <= 4
        assert {verdicts[key] for key in keys} == {wanted[title]}


def test_borderline_shows_the_pairs_nearest_to_the_threshold(run: RunDir, html: str) -> None:
    nearest = [
        row
        for verdict, order in (("keep", "itm"), ("NOT keep", "itm DESC"))
        for source in ("web", "synthetic")
        for row in sql(
            run, f"SELECT key, itm FROM pairs WHERE {verdict} AND source = ? ORDER BY {order} LIMIT 2", source
        )
    ]
    for card, (key, itm) in zip(_cards(html, "borderline"), nearest, strict=True):
        [meant] = re.findall(r'<li class="(?:kept|dropped) meant">(.*?)</li>', card, re.DOTALL)
        assert f"<bdi>{key}</bdi>" in card
        assert f"ITM {cell(itm)}" in meant


def test_most_confident_shows_the_ends_of_the_scores(run: RunDir, html: str) -> None:
    ends = [
        key
        for order in ("itm DESC", "itm")
        for source in ("web", "synthetic")
        for (key,) in sql(run, f"SELECT key FROM pairs WHERE source = ? ORDER BY {order} LIMIT 2", source)
    ]
    assert [re.findall(r"/ <bdi>(.*?)</bdi>", card)[0] for card in _cards(html, "confident")] == ends


def test_a_verdict_is_told_by_a_word_and_a_mark_and_not_by_colour_alone(html: str) -> None:
    for verdict, mark in (("kept", "✓"), ("dropped", "✗")):
        texts = re.findall(rf'<li class="{verdict}(?: meant)?">(.*?)</li>', html, re.DOTALL)
        assert texts
        assert all(f'<span aria-hidden="true">{mark}</span> {verdict}</b>' in text for text in texts)


def test_pictures_are_small_jpegs_of_what_lies_in_the_shard(page: Page) -> None:
    images = page.all("img")
    assert images
    for image in images:
        source = image.attributes["src"] or ""
        assert source.startswith("data:image/jpeg;base64,")
        with PIL.Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            assert picture.size == (120, 90)
        assert image.attributes["alt"]


def test_a_sample_whose_shard_is_gone_says_so(tmp_path: Path) -> None:
    page = read_page(render(made_run(tmp_path / "run")))
    assert page.all("img") == []
    assert "No picture its shard is gone (web/00000.tar)" in page.text


def test_the_draw_is_that_of_the_recorded_seed(run: RunDir, html: str) -> None:
    assert render(run, seed=3) == html
    other = render(run, seed=4)

    def keys(of: str) -> list[str]:
        return [re.findall(r"/ <bdi>(.*?)</bdi>", card)[0] for card in _cards(of, "random")]

    assert len(keys(html)) == 12
    assert keys(other) != keys(html)
    assert "drawn with seed 4" in read_page(other).text
    assert "--seed 4" in read_page(other).text


def test_a_fraction_has_a_border_too(tmp_path: Path) -> None:
    run = noise_run(tmp_path / "run", samples=20)
    write_policy(run, Policy((TopFraction(0.5, "itm"),), "f" * 64))
    html = render(run)
    best_dropped = sql(
        run, "SELECT key FROM pairs WHERE NOT keep AND source = 'web' ORDER BY itm DESC LIMIT 1"
    )
    cards = _cards(html, "borderline")
    assert f"<bdi>{best_dropped[0][0]}</bdi>" in cards[4]
    assert "The policy has no threshold on a score." in read_page(html).text


def test_captions_that_come_again_and_again_are_counted(tmp_path: Path) -> None:
    def text(source: Source, number: int) -> str:
        if source is Source.WEB:
            return f"text {number}"
        return "a dog a dog a dog a dog" if number % 2 else "a cat"

    page = read_page(render(noise_run(tmp_path / "run", samples=20, text=text)))
    times = "\N{MULTIPLICATION SIGN}"
    assert f"10 {times} a cat" in page.text
    assert f"10 {times} a dog a dog a dog a dog" in page.text
    assert ["a loop, synthetic", "10"] in page.tables["Texts that went wrong"]


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ({"captioner": False}, "Scores"),
        ({"scores": False}, "Nothing in this run was scored"),
        ({"policy": False}, "no policy has judged them yet"),
        ({"calibrated": False}, "Nobody measured how the scores of this run"),
        ({"weak": ["itm"]}, "weak filter: ITM does not tell"),
    ],
)
def test_a_run_that_lacks_something_is_shown_as_it_stands(
    tmp_path: Path, left_out: dict[str, Any], said: str
) -> None:
    assert said in read_page(render(made_run(tmp_path / "run", **left_out))).text


def test_a_run_that_has_done_nothing_is_shown_as_it_stands(tmp_path: Path) -> None:
    assert "This run holds no text yet" in read_page(render(started_run(tmp_path / "run"))).text


def test_provenance_names_the_command_the_models_and_the_policy(run: RunDir, page: Page) -> None:
    [(policy,)] = sql(run, "SELECT digest FROM policies")
    for words in ("capfilt bootstrap 'my web' --out run", "f" * 64, "c" * 64, policy, str(run.path)):
        assert words in page.text


# -- it asks for nothing, runs nothing, and stays small


def test_nothing_on_the_page_leads_out_of_it(page: Page) -> None:
    ids = {element.attributes["id"] for element in page.elements if "id" in element.attributes}
    for element in page.elements:
        for name, value in element.attributes.items():
            if name in ("href", "src", "action", "srcset", "poster", "data", "xlink:href"):
                value = value or ""
                inside = value.startswith("#") and value[1:] in ids
                assert inside or value.startswith("data:image/jpeg;base64,") or value == "data:,", value
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_the_policy_of_the_page_allows_its_own_style_and_pictures_alone(page: Page) -> None:
    [policy] = [
        element.attributes["content"] or ""
        for element in page.all("meta")
        if element.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_every_colour_that_is_drawn_has_one_for_dark_screens(html: str, page: Page) -> None:
    drawn = set(re.findall(r'(?:fill|stroke)="(#[0-9a-f]{6})"', html))
    assert drawn
    for colour in drawn:
        assert re.search(rf'\[(fill|stroke)="{colour}"\]', page.style), colour
    dark = page.style.split("prefers-color-scheme: dark")[1].split("}")[0]
    for name in re.findall(
        r'\[(?:fill|stroke)="#[0-9a-f]{6}"\] \{ (?:fill|stroke): var\((--[\w-]+)\)', page.style
    ):
        assert f"{name}:" in dark, name


def test_ids_are_unique(page: Page) -> None:
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))


def test_a_page_of_large_noisy_pictures_and_endless_words_stays_below_its_limit(tmp_path: Path) -> None:
    def text(source: Source, number: int) -> str:
        return f"{source}{number} " + "longword" * 12_500

    run = noise_run(tmp_path / "run", samples=60, size=(320, 240), text=text)
    written = write_report(run, tmp_path / "report.html")
    assert written.bytes == (tmp_path / "report.html").stat().st_size
    assert written.bytes < MOST_BYTES
    page = read_page((tmp_path / "report.html").read_text("utf-8"))
    assert len(page.all("img")) > 30
    assert "(100,005 characters)" in page.text


def test_strangers_words_are_shown_and_are_no_markup(tmp_path: Path) -> None:
    texts = (
        HOSTILE,
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</style><style>*{display:none}</style>",
        "{{ 7 * 7 }}{% for %}",
        "javascript:alert(1)",
        "a null \x00 byte, a lone \x85 and \u2066turned\u2069 words",
        '=HYPERLINK("https://example.org","a")',
    )
    run = noise_run(tmp_path / "run", samples=24, text=lambda _, number: texts[number % len(texts)])
    html = render(run)
    page = read_page(html)
    assert {element.tag for element in page.elements} & ACTIVE == set()
    for element in page.elements:
        assert not [name for name in element.attributes if name.startswith("on") or name == "style"]
    shown = " ".join(page.words)
    for text in texts:
        assert visible(text, 240) in shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)


def test_a_folder_is_no_place_for_a_page(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="is a folder"):
        write_report(run, tmp_path)
