from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from made_run import CAPTIONER, FILTER, HOSTILE, SCORES, SHARD, made_run, started_run

from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.commit import commit_scores
from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.rundir import RunDir, StageRecord, save_stage
from capfilt.provenance.statistics.distributions import BINS
from capfilt.reports.show import show
from capfilt.reports.summary import summarise
from capfilt.reports.text import terminal

if TYPE_CHECKING:
    from pathlib import Path


def test_every_sample_is_accounted_for(tmp_path: Path) -> None:
    samples = summarise(made_run(tmp_path / "run"))["samples"]
    assert samples == {
        "in": 4,
        "shards": 1,
        "rows": 4,
        "ok": 3,
        "refused": 1,
        "refused_by_reason": {"unreadable_image": 1},
        "texts_missing_by_reason": {"missing_text": 1},
    }


def test_verdicts_are_counted_by_source_and_reason(tmp_path: Path) -> None:
    verdicts = summarise(made_run(tmp_path / "run"))["verdicts"]
    # By hand: at least 0.5 are the cat's two texts and the dog's synthetic one.
    assert [tuple(row.values()) for row in verdicts] == [
        ("web", True, "kept", 1),
        ("web", False, "below_threshold", 1),
        ("synthetic", True, "kept", 2),
        ("synthetic", False, "below_threshold", 1),
    ]


def test_texts_are_counted_and_the_most_repeated_named(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "run"))
    synthetic = next(row for row in summary["texts"] if row["source"] == "synthetic")
    assert (synthetic["captions"], synthetic["distinct"], synthetic["words_p50"]) == (3, 2, 5)
    assert summary["repeated"] == [{"source": "synthetic", "text": "a dog on a log", "pairs": 2}]


def test_score_quantiles_and_histograms_hold_every_scored_text(tmp_path: Path) -> None:
    rows = {(row["score"], row["source"]): row for row in summarise(made_run(tmp_path / "run"))["scores"]}
    assert list(rows) == [("itm", "web"), ("itm", "synthetic"), ("itc", "web"), ("itc", "synthetic")]
    for (score, source), row in rows.items():
        place = ("itm", "itc").index(score)
        values = sorted(pair[place] for (_, of), pair in SCORES.items() if of == source)
        assert (row["least"], row["most"], row["pairs"]) == (values[0], values[-1], len(values))
        assert len(row["bars"]) == BINS
        assert sum(row["bars"]) == len(values)
    median = rows["itm", "synthetic"]["p50"]
    assert median == 0.7
    assert rows["itm", "web"]["bars"] == [0, 0, 1] + [0] * 15 + [1, 0]
    # A cosine is drawn from the least to the most of both sources.
    assert (rows["itc", "web"]["low"], rows["itc", "synthetic"]["high"]) == (-0.2, 0.4)


def test_scores_that_are_all_equal_fill_one_bar(tmp_path: Path) -> None:
    import made_run as made

    run = started_run(tmp_path / "run")
    captions = [made.caption_row("cat", "web")]
    made.commit_shard(
        run,
        made.SHARD,
        fingerprint="print",
        samples=made.sample_rows(),
        captions=captions,
        scores=made.score_rows(captions[0]),
        samples_in=4,
    )
    for row in summarise(run)["scores"]:
        assert sum(row["bars"]) == 1


def test_examples_are_the_same_at_every_look_and_hold_kept_and_dropped(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    first, second = summarise(run)["examples"], summarise(run)["examples"]
    assert first == second
    assert [(row["source"], row["keep"]) for row in first] == [
        ("web", True),
        ("synthetic", True),
        ("synthetic", True),
        ("web", False),
        ("synthetic", False),
    ]
    kept = [row["pair_id"] for row in first if row["keep"] and row["source"] == "synthetic"]
    assert kept == sorted(kept)
    assert first[0]["text"] == HOSTILE


def test_a_summary_is_json_without_loss(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "run"))
    assert json.loads(json.dumps(summary)) == summary


def test_a_run_that_did_nothing_is_summed_up_and_goes_on_with_its_own_command(tmp_path: Path) -> None:
    summary = summarise(started_run(tmp_path / "run"))
    assert summary["samples"]["in"] == summary["samples"]["rows"] == 0
    assert summary["policy"] is None
    assert not summary["scores"]
    assert not summary["examples"]
    assert summary["next_command"] == "capfilt bootstrap 'my web' --out run"


def test_a_run_that_was_stopped_goes_on_with_its_own_command(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    save_stage(run, StageRecord("judge", 2, started=200.0))
    assert summarise(run)["next_command"] == "capfilt bootstrap 'my web' --out run"


def test_a_run_without_a_captioner_has_web_texts_alone(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "run", captioner=False))
    assert {row["source"] for row in summary["verdicts"]} == {"web"}
    assert not summary["repeated"]
    assert [row["kind"] for row in summary["models"]] == ["filter"]


def test_a_run_without_a_filter_has_no_scores_and_keeps_every_text(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "run", scores=False))
    assert not summary["scores"]
    assert all(row["keep"] for row in summary["verdicts"])
    assert summary["advice"] == []


def test_a_run_that_nobody_judged_is_to_be_judged(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", policy=False)
    summary = summarise(run)
    assert [row["keep"] for row in summary["verdicts"]] == [None, None]
    assert summary["next_command"] == f"capfilt judge {run.path} --itm 0.5"


def test_a_filter_that_nobody_calibrated_is_named(tmp_path: Path) -> None:
    assert summarise(made_run(tmp_path / "a", calibrated=False))["uncalibrated"] == [FILTER]
    assert summarise(made_run(tmp_path / "b"))["uncalibrated"] == []


def test_where_itm_is_weak_and_itc_is_not_the_policy_to_type_comes_next(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", weak=("itm",))
    summary = summarise(run)
    assert summary["next_command"] == f"capfilt judge {run.path} --itc auto:recall=0.85"
    assert any("--itc auto:recall=0.85" in line for line in summary["advice"])
    write_policy(run, Policy((AtLeast("itc", 0.2),), FILTER))
    assert summarise(run)["next_command"] == f"capfilt export {run.path} --to {run.export}"


def test_what_was_exported_is_looked_at_next(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    policy = Policy((AtLeast("itm", 0.5),), FILTER)
    run.export.mkdir()
    (run.export / "manifest.json").write_text(
        json.dumps({"shards": [], "facts": {"policy": {"digest": policy.digest}}})
    )
    assert summarise(run)["next_command"].startswith(f"capfilt sql {run.path} ")
    write_policy(run, Policy((AtLeast("itm", 0.6),), FILTER))
    assert summarise(run)["next_command"].startswith(f"capfilt export {run.path} ")


def test_rounds_are_told_side_by_side_and_the_last_one_is_looked_at_next(tmp_path: Path) -> None:
    run = made_run(tmp_path / "my run")
    assert summarise(run)["rounds"] == []
    second = made_run(run.round(2).path)
    write_policy(second, Policy((AtLeast("itm", 0.75),), FILTER))

    summary = summarise(run)

    # By hand: of five texts three reach 0.5, and two 0.75.
    columns = ("round", "captions", "kept", "filter", "captioner")
    assert [tuple(row[name] for name in columns) for row in summary["rounds"]] == [
        (1, 5, 3, FILTER, CAPTIONER),
        (2, 5, 2, FILTER, CAPTIONER),
    ]
    assert summary["next_command"] == f"capfilt inspect '{second.path}'"
    # The page of a run is that of its first round, as before.
    assert sum(row["pairs"] for row in summary["verdicts"]) == 5
    assert summarise(second)["rounds"] == []


def test_a_run_that_was_stopped_between_rounds_goes_on_first(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    made_run(run.round(2).path)
    save_stage(run, StageRecord("pretrain_next", 2, started=200.0))

    assert summarise(run)["next_command"] == "capfilt bootstrap 'my web' --out run"


def test_a_further_filters_scores_are_summed_up_beside_the_first_ones(tmp_path: Path) -> None:
    run, digest = made_run(tmp_path / "run"), "1a2b3c4d" * 8
    with open_catalog(run) as catalog:
        pairs = catalog.execute("SELECT pair_id FROM pairs ORDER BY 1").fetchall()
    rows = [
        {"pair_id": pair, "filter": digest, "score": "vqa", "value": number / 10}
        for number, (pair,) in enumerate(pairs)
    ]
    commit_scores(run, SHARD, filter_digest=digest, fingerprint="more", scores=rows)

    summary = summarise(run)

    names = [(row["score"], row["filter"], row["source"]) for row in summary["scores"]]
    assert names[:4] == [(s, None, of) for s in ("itm", "itc") for of in ("web", "synthetic")]
    assert names[4:] == [("vqa", "1a2b3c4d", "web"), ("vqa", "1a2b3c4d", "synthetic")]
    further = summary["scores"][4:]
    assert sum(row["pairs"] for row in further) == sum(sum(row["bars"]) for row in further) == len(rows)
    assert {(row["low"], row["high"]) for row in further} == {(0, 1)}
    assert all("vqa_1a2b3c4d" in example["scores"] for example in summary["examples"])
    text = io.StringIO()
    show(summary, terminal(text, width=110))
    assert "VQA by filter 1a2b3c4d web        0.00 |" in text.getvalue()
    assert "ITM 0.900, ITC 0.400, VQA by filter 1a2b3c4d 0." in text.getvalue()


def test_against_another_run_what_changed_its_mind_is_in_the_summary(tmp_path: Path) -> None:
    run, other = made_run(tmp_path / "run"), made_run(tmp_path / "other")
    write_policy(other, Policy((AtLeast("itm", 0.75),), FILTER))
    against = summarise(run, against=other)["against"]
    # By hand: the dog's synthetic text alone lies between 0.5 and 0.75.
    assert (against["judged"], against["changed"]) == (5, 1)
    assert [(row["key"], row["reason"], row["reason_there"]) for row in against["examples"]] == [
        ("dog", "kept", "below_threshold")
    ]
    assert summarise(run)["against"] is None


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    with pytest.raises(CapfiltError, match="is the run itself"):
        summarise(run, against=RunDir(tmp_path / "elsewhere" / ".." / "run"))


def test_a_price_an_hour_says_what_the_stages_cost(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "run"), price_per_hour=36.0)
    # By hand: two seconds at a hundredth a second, for three images.
    assert summary["stages"][0]["cost"] == pytest.approx(0.02)
    assert summary["spent"]["cost_per_million_images"] == pytest.approx(0.02 / 3 * 1e6)
    assert summarise(made_run(tmp_path / "free"))["spent"]["cost"] is None
