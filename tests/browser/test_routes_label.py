from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from serving import served
from small_run import make_run

from capfilt.provenance.labels import Label, Verdict, add_labels, draw_sample, read_labels, text_digest

if TYPE_CHECKING:
    from pathlib import Path

    from serving import Answer


def _shown(answer: Answer) -> dict[str, str]:
    """What the question's form would send with a verdict."""
    assert answer.status == 200
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', answer.text))


def test_what_is_said_last_counts_though_a_clock_was_ahead_when_it_was_said_before(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=1)
    draw = draw_sample(run, 3)
    first = draw.pairs[0].pair_id
    tomorrow = time.time() + 86400
    add_labels(run, [Label(first, Verdict.MISMATCH, "anna", tomorrow, draw=draw.name)])
    asking = {"who": "anna", "size": 3, "seed": 0}
    with served(run) as page:
        asked = _shown(page.ask("/label?who=anna&size=3&n=1"))
        page.write("/label/add", {**asked, "verdict": "match"})
        [said] = [label for label in read_labels(run) if label.pair_id == first]
        assert said.verdict is Verdict.MATCH
        assert said.text_sha256 == asked["text_sha256"]
        page.write("/label/undo", asking)
    assert read_labels(run) == []


def test_a_label_of_what_is_no_pair_of_the_run_leaves_the_page_as_it_is(tmp_path: Path) -> None:
    """A file of labels may have been copied from another run, or be damaged by hand."""
    run, _ = make_run(tmp_path / "run", shards=1)
    strange = ("f" * 64, "no pair at all", "0x" + "1" * 30, "1_" * 16)
    digest = text_digest("a text")
    add_labels(run, [Label(name, Verdict.MATCH, "anna", 1.0, text_sha256=digest) for name in strange])
    with served(run) as page:
        assert page.ask("/?label=match").status == 200
        assert page.ask("/").status == 200


def test_a_pair_that_a_shard_done_anew_lacks_is_told_and_another_sample_proposed(tmp_path: Path) -> None:
    run, [made] = make_run(tmp_path / "run", shards=1)
    with served(run) as page:
        first = draw_sample(run, 3).pairs[0]
        assert page.ask("/label?who=anna&size=3&n=1").status == 200
        for rows in (made.captions, made.scores):
            rows[:] = [row for row in rows if row["pair_id"] != first.pair_id]
        made.commit(run, seed=1)
        told = page.ask("/label?who=anna&size=3&n=1")
    assert told.status == 400
    assert first.pair_id in told.text
    assert "another seed" in told.text
