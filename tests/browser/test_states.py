"""The page of runs that lack something: it says what, and what to do."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from made_run import FILTER, made_run, started_run
from provenance_rows import commit, shard
from serving import served

from capfilt.browser.view import RunView
from capfilt.provenance.policy import AtLeast, PerImage, Policy, newest_policy, write_policy
from capfilt.provenance.rundir import StageRecord, lock, save_stage

if TYPE_CHECKING:
    from pathlib import Path

    from serving import Answer, Served


def seen(answer: Answer) -> str:
    """The words of a page, as a reader has them."""
    assert answer.status == 200
    bare = re.sub(r"<(script|title).*?</\1>|<[^>]*>", " ", answer.text, flags=re.DOTALL)
    return " ".join(html.unescape(bare).split())


def test_a_run_that_has_done_nothing_says_so_everywhere(tmp_path: Path) -> None:
    with served(started_run(tmp_path / "run")) as page:
        assert "Nothing stands in this run yet" in seen(page.ask("/"))
        assert "Nothing was begun yet" in seen(page.ask("/live"))
        assert "Label pairs" in seen(page.ask("/label"))
        drawn = page.write("/label/draw", {"who": "anna", "size": 20, "seed": 0})
        assert drawn.headers["hx-redirect"] == "/label?who=anna&size=20&seed=0"
        assert "no pair with words yet" in seen(page.ask("/label?who=anna&size=20"))
        assert "Nothing yet" in seen(page.ask("/label/figures"))


def test_a_run_without_scores_has_no_sliders_and_says_why(tmp_path: Path) -> None:
    with served(made_run(tmp_path / "run", scores=False)) as page:
        answer = page.ask("/")
        assert "holds no scores" in seen(answer)
        assert 'type="range"' not in answer.text
        assert "a cat on a mat" in seen(answer)
        refused = page.ask("/?judge.itm=0.5", part="1")
        assert refused.status == 400
        assert "holds no scores, so no rule can be applied" in refused.text
        assert "capfilt score" in refused.text


def test_a_run_without_a_policy_shows_its_pictures_and_what_a_draft_would_keep(tmp_path: Path) -> None:
    with served(made_run(tmp_path / "run", policy=False)) as page:
        assert "Nothing was judged yet" in seen(page.ask("/"))
        assert "a cat on a mat" in seen(page.ask("/"))
        assert "3 of 5 texts kept" in seen(page.ask("/?judge.itm=0.5"))
        assert page.write("/apply", {"form": "1", "judge.itm": "0.5"}).status == 200
        assert "Policy 1 is in force" in seen(page.ask("/"))


def test_a_refused_sample_is_shown_with_its_reason(tmp_path: Path) -> None:
    with served(made_run(tmp_path / "run")) as page:
        shown = seen(page.ask("/?reason=unreadable_image"))
        assert "Refused: an unreadable picture" in shown
        assert "1 picture" in shown
        one = seen(page.ask("/picture?shard=00000&key=hole"))
        assert "Refused an unreadable picture" in one


def test_a_page_beyond_the_last_leads_back(tmp_path: Path) -> None:
    with served(made_run(tmp_path / "run")) as page:
        shown = seen(page.ask("/?offset=24"))
        assert "The list ends before this page" in shown
        assert "No picture fits" in seen(page.ask("/?words=nothing+like+this"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/?source=mars", "source is 'mars'"),
        ("/?judge.itm=2", "ITM is a probability"),
        ("/?judge.fraction=much", "is no number"),
        ("/?order=itc_01234567", ""),
        ("/?shard=nowhere", ""),
        ("/picture?shard=00000&key=nobody", "nobody"),
        ("/picture", ""),
        ("/label?who=anna&size=20&seed=0&n=1", "Label pairs"),
    ],
)
def test_an_address_that_asks_for_what_is_not_there_says_what_and_how_to_mend_it(
    tmp_path: Path, path: str, words: str
) -> None:
    with served(made_run(tmp_path / "run")) as page:
        answer = page.ask(path)
        assert answer.status in (200, 400)
        assert words in html.unescape(answer.text)
        if answer.status == 400:
            part = page.ask(path, part="1")
            assert (part.status, part.headers["hx-retarget"]) == (400, "#notice")
            assert part.text.count("<p>") == 2


def test_a_running_run_is_shown_as_it_grows(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    save_stage(run, StageRecord("recaption_and_score", 2, started=200.0))
    with lock(run), served(run) as page:
        before = seen(page.ask("/live", part="1"))
        assert "recaption and score : running" in before
        assert "a dog on a log" in before
        assert "No process works on this run now" not in before
        commit(run, shard(1), 5)
        after = seen(page.ask("/live", part="1"))
        assert "synthetic text 0 of 000010000" in after
        assert "Samples 10" in after
        assert "web text 0 of 000010000" in seen(page.ask("/"))
    with served(run) as page:
        assert "No process works on this run now" in seen(page.ask("/live"))


def test_a_policy_that_was_written_elsewhere_is_in_force_at_the_next_look(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    with served(run) as page:
        assert "3 of 5 texts kept" in seen(page.ask("/"))
        write_policy(run, Policy((AtLeast("itm", 0.75), PerImage(1)), FILTER))
        answer = page.ask("/")
        assert "1 of 5 texts kept" in seen(answer)
        assert 'value="0.75"' in answer.text
        assert '<option value="1" selected>' in answer.text


def test_pictures_are_shown_before_all_scores_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RunView.facets
    monkeypatch.setattr(RunView, "facets", lambda view: replace(whole(view), is_complete=False))
    with served(made_run(tmp_path / "run")) as page:
        first = page.ask("/?judge.itm=0.75&source=web")
        assert "Scores are being read" in seen(first)
        assert "5 texts; what is kept of them is being counted" in seen(first)
        assert "IMG_0042.JPG" in seen(first)
        rest = html.unescape(re.findall(r'hx-get="([^"]*)" hx-trigger="load"', first.text)[0])
        assert rest == "/?source=web&judge.itm=0.75"
        counted = page.ask(rest, hx_request="true", hx_request_type="full")
        assert "2 of 5 texts kept" in seen(counted)
        assert 'id="workbench"' in counted.text
        assert "being read" not in seen(counted)


def moved(page: Served, **fields: str) -> Answer:
    query = "&".join(f"judge.{name}={value}" for name, value in fields.items())
    return page.ask(f"/?form=1&{query}", part="1")


def test_a_link_to_what_is_in_force_is_no_draft(tmp_path: Path) -> None:
    with served(made_run(tmp_path / "run")) as page:
        assert "A draft" in seen(page.ask("/?judge.itm=0.75"))
        assert page.write("/apply", {"judge.itm": "0.75"}).status == 200
        shown = seen(page.ask("/?judge.itm=0.75"))
        assert "A draft" not in shown
        assert "Policy 2 is in force" in shown


def test_a_part_says_where_it_stands_in_the_fewest_words(tmp_path: Path) -> None:
    with served(made_run(tmp_path / "run")) as page:
        assert moved(page, itm="0.5", itc="", per_image="").headers["hx-replace-url"] == "/"
        slid = moved(page, itm="0.75", itc="", per_image="")
        assert slid.headers["hx-replace-url"] == "/?judge.itm=0.75"
        assert "2 of 5 texts kept" in seen(slid)
        assert "\N{MINUS SIGN}1 texts" in seen(slid)
        assert "<html" not in slid.text
        everything = moved(page, itm="", itc="", per_image="")
        assert everything.headers["hx-replace-url"] == "/?judge.itm=0"
        assert "5 of 5 texts kept" in seen(everything)


def test_what_is_applied_is_the_policy_that_the_command_line_writes(tmp_path: Path) -> None:
    by_page, by_hand = made_run(tmp_path / "one"), made_run(tmp_path / "two")
    with served(by_page) as page:
        answer = page.write("/apply", {"form": "1", "judge.itm": "0.75", "judge.per_image": "1"})
    assert answer.headers["hx-trigger"] == "applied"
    assert f"capfilt judge {by_page.path} --itm 0.75 --per-image 1" in seen(answer)
    from typed_commands import typed

    typed("judge", by_hand.path, "--itm", "0.75", "--per-image", "1")
    assert newest_policy(by_page) == newest_policy(by_hand)
    assert newest_policy(by_page) is not None
