"""The report of the comparison on the drawn world, on results that are made up: nothing is trained."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import capfilt_gain
import pytest
from provenance_rows import FILTER, caption, sample, score, shard

from capfilt.provenance.commit import commit_shard
from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.rundir import RunDir, record_run
from capfilt.records import Source

if TYPE_CHECKING:
    from pathlib import Path

RED, TWO = [["red", "circle"]], [["blue", "square"], ["red", "star"]]


def figures(recall: float, cider: float, when: str, step: int) -> list[dict[str, Any]]:
    places = [
        ("image to text", "ITC, then ITM", "R@1", recall),
        ("text to image", "ITC, then ITM", "R@1", recall / 2),
        ("text to image", "ITC", "R@1", recall / 4),
        ("text to image", "ITC, then ITM", "R@5", 0.99),
        ("nearness to the references", "model", "CIDEr-D", cider),
        ("nearness to the references", "constant", "CIDEr-D", 9.0),
    ]
    names = ("table", "row", "measure", "value")
    return [{"when": when, "step": step, **dict(zip(names, place, strict=True))} for place in places]


def result(world: Path, arm: str, seed: int, recall: float, cider: float) -> None:
    """Write what an arm leaves: a first look where nothing is right, and an end where one of two is."""
    world.mkdir(parents=True, exist_ok=True)
    truth = [{"key": "a", "items": RED}, {"key": "b", "items": TWO}]
    (world / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in truth))
    rows = figures(0.0, 0.0, "pre-trained", 500) + figures(recall, cider, "pre-trained", 1000)
    rows += figures(recall * 1.5, cider / 2, "fine-tuned", 1000)
    captions = [
        {"when": when, "step": step, "key": key, "caption": text}
        for when, step, both in (
            ("pre-trained", 500, ("a", "a green circle")),
            ("pre-trained", 1000, ("a red circle", "there is a red star here")),
            ("fine-tuned", 1000, ("a red circle", "a red star and a blue square")),
        )
        for key, text in zip("ab", both, strict=True)
    ]
    file = world / "run" / "gain" / f"{arm.replace('+', '')}-{seed}" / "result.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"rows": rows, "captions": captions}))


def lines(report: str, title: str) -> list[list[str]]:
    """The cells of the table under a title."""
    after = report.split(f"**{title}**\n\n")[1].split("\n\n")[0]
    table = [line for line in after.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [row for row in rows if not row[0].startswith("---")]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    result(tmp_path / "seed-0", "none", 0, 0.20, 0.85)
    result(tmp_path / "seed-1", "none", 1, 0.30, 0.95)
    result(tmp_path / "seed-0", "C+F", 0, 0.60, 2.0)
    return tmp_path


def test_shares_are_in_percent_and_cider_is_not_whatever_their_size(out: Path) -> None:
    report = capfilt_gain.report(out, [0, 1])

    head, none, both = lines(report, "pre-trained")
    assert head == [
        "texts",
        "seeds",
        "text R@1, %",
        "image R@1, %",
        "image R@1, ITC, %",
        "captions right, %",
        "CIDEr-D",
    ]
    # Student's t of two values 10 apart is 12.7062 times 5; below 1 a CIDEr-D is a CIDEr-D all the same.
    assert none == [
        "none",
        "2",
        "25.0 (-38.5 to 88.5)",
        "12.5 (-19.3 to 44.3)",
        "6.2 (-9.6 to 22.1)",
        "50.0 (50.0 to 50.0)",
        "0.90 (0.26 to 1.54)",
    ]
    assert both == ["C+F", "1", "60.0", "30.0", "15.0", "50.0", "2.00"]
    tuned = lines(report, "fine-tuned")
    assert tuned[2] == ["C+F", "1", "90.0", "45.0", "22.5", "100.0", "1.00"]


def test_a_share_of_all_is_100_percent(tmp_path: Path) -> None:
    result(tmp_path / "seed-0", "none", 0, 1.0, 12.5)
    [_, none] = lines(capfilt_gain.report(tmp_path, [0]), "pre-trained")
    assert (none[2], none[-1]) == ("100.0", "12.50")


def test_the_way_of_a_training_is_told_step_by_step(out: Path) -> None:
    title = "along the pre-training: image R@1 (ITC, then ITM) / captions right, in %"
    assert lines(capfilt_gain.report(out, [0, 1]), title) == [
        ["texts", "500 steps", "1000 steps"],
        ["none", "0 / 0", "12 / 50"],
        ["C+F", "0 / 0", "30 / 50"],
    ]


def test_what_did_not_fit_is_named_as_not_run(out: Path) -> None:
    said = capfilt_gain.report(out, [0, 1]).splitlines()[-1]
    missing = said.removeprefix("not run: ").split(", ")
    assert len(missing) == 7 * 2 - 3
    assert "run C+F seed 1" in missing
    assert "beam C+F seed 0" in missing
    assert "run none seed 0" not in missing


def test_verdicts_are_judged_by_what_was_drawn(tmp_path: Path) -> None:
    world = tmp_path / "seed-0"
    run = RunDir.create(world / "run")
    record_run(run, {"seed": 0})
    (world / "truth.jsonl").write_text(
        "".join(json.dumps({"key": key, "items": items}) + "\n" for key, items in (("a", RED), ("b", TWO)))
    )
    of = shard()
    texts = {
        ("a", Source.WEB): ("a red circle", 0.9),
        ("b", Source.WEB): ("IMG_0001.JPG", 0.1),
        ("a", Source.SYNTHETIC): ("a green circle", 0.8),
        ("b", Source.SYNTHETIC): ("a red star and a blue square", 0.7),
    }
    captions = [caption(of, key, source, text=text) for (key, source), (text, _) in texts.items()]
    scores = [
        score(row["pair_id"], "itm", itm) for row, (_, itm) in zip(captions, texts.values(), strict=True)
    ]
    commit_shard(
        run,
        of,
        fingerprint="print",
        samples=[sample(of, key) for key in "ab"],
        captions=captions,
        scores=scores,
        samples_in=2,
    )
    write_policy(run, Policy((AtLeast("itm", 0.75),), FILTER))

    assert capfilt_gain.verdicts(world, "run") == {
        "web dropped": 0.5,
        "web right": 0.5,
        "web right of kept": 1.0,
        "wrong web dropped": 1.0,
        "synthetic dropped": 0.5,
        "synthetic right": 0.5,
        "synthetic right of kept": 0.0,
        "wrong synthetic dropped": 0.0,
    }
    assert lines(capfilt_gain.report(tmp_path, [0]), "verdicts, in %") == [], "a run without an export"
    (run.path / "export").mkdir()
    head, cells = lines(capfilt_gain.report(tmp_path, [0]), "verdicts, in %")
    assert dict(zip(head, cells, strict=True))["web right of kept"] == "100.0"
