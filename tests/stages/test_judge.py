from __future__ import annotations

import math
import shlex
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import world

from capfilt.errors import CapfiltError
from capfilt.provenance.policy import AtLeast, PerImage, Policy, Rescue, TopFraction, policies
from capfilt.records import Measure
from capfilt.settings import Export, Judge
from capfilt.stages.export import ExportPairs, export_run
from capfilt.stages.judge import (
    JudgePairs,
    advice,
    filters_of,
    judge_run,
    mend_command,
    policy_of,
    shared_blind_spot,
    signal_beside,
    warnings_of,
    weak_scores_of,
)
from capfilt.stages.process import RecaptionAndScore

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir

STRONG, WEAK = 0.8, 0.4


def _pairs(run: RunDir) -> list[dict[str, Any]]:
    names = ("pair_id", "shard", "key", "source", "itc", "itm", "keep", "reason")
    return [
        dict(zip(names, row, strict=True)) for row in world.sql(run, f"SELECT {', '.join(names)} FROM pairs")
    ]


def _kept(run: RunDir) -> set[str]:
    return {pair["pair_id"] for pair in _pairs(run) if pair["keep"]}


def _with_calibration(run: RunDir, bundles: dict[str, Path], *, itm: float, itc: float) -> RunDir:
    """The run, with a calibration of its filter beside its models."""
    world.calibrated(bundles["filter"], run.model("filter"), itm=itm, itc=itc)
    return run


# -- which policy


def test_without_a_rule_itm_must_be_one_half(finished: RunDir) -> None:
    [digest] = filters_of(finished)

    assert policy_of(finished, Judge()) == Policy((AtLeast("itm", 0.5),), digest)
    assert policies(finished) == [(1, policy_of(finished, Judge()))]
    for pair in _pairs(finished):
        assert pair["keep"] == (pair["itm"] >= 0.5)
    assert 0 < len(_kept(finished)) < 48


def test_thresholds_fraction_rescue_and_number_come_in_this_order(finished: RunDir) -> None:
    judge = Judge(per_image=2, rescue=True, fraction=0.3, by="itc", itc="-0.1", itm="0.6")

    policy = policy_of(finished, judge)

    assert policy.rules == (
        AtLeast("itm", 0.6),
        AtLeast("itc", -0.1),
        TopFraction(0.3, "itc"),
        Rescue("itc"),
        PerImage(2, "itc"),
    )


def test_a_fraction_or_itc_takes_the_place_of_the_default_threshold(finished: RunDir) -> None:
    assert policy_of(finished, Judge(fraction=0.4)).rules == (TopFraction(0.4, "itm"),)
    assert policy_of(finished, Judge(itc="0.1")).rules == (AtLeast("itc", 0.1),)
    assert policy_of(finished, Judge(per_image=1)).rules == (AtLeast("itm", 0.5), PerImage(1, "itm"))
    assert policy_of(finished, Judge(rescue=True)).rules == (AtLeast("itm", 0.5), Rescue("itm"))


def test_a_fraction_keeps_the_best_of_all_captions(fresh: RunDir) -> None:
    judge_run(fresh, Judge(fraction=0.3, by="itc"))

    best = sorted(_pairs(fresh), key=lambda pair: (-pair["itc"], pair["pair_id"]))
    assert _kept(fresh) == {pair["pair_id"] for pair in best[: math.floor(0.3 * 48)]}


def test_a_synthetic_text_rescues_where_the_web_text_fails(fresh: RunDir) -> None:
    # A threshold that some synthetic text passes and its web text does not, whatever these models say.
    (threshold,) = world.sql(
        fresh,
        "SELECT min(s.itm) FROM pairs AS s JOIN pairs AS w USING (shard, key) "
        "WHERE s.source = 'synthetic' AND w.source = 'web' AND w.itm < s.itm",
    )[0]
    judge_run(fresh, Judge(itm=repr(threshold), rescue=True))

    by_key: dict[str, dict[str, dict[str, Any]]] = {}
    for pair in _pairs(fresh):
        by_key.setdefault(pair["key"], {})[pair["source"]] = pair
    rescued = 0
    for pair in by_key.values():
        web, synthetic = pair["web"], pair["synthetic"]
        assert web["keep"] == (web["itm"] >= threshold)
        assert synthetic["keep"] == (synthetic["itm"] >= threshold and not web["keep"])
        rescued += synthetic["keep"]
    assert rescued > 0, "nothing was rescued, so nothing was tested"


def test_one_text_an_image_is_the_best_that_passes(fresh: RunDir) -> None:
    judge_run(fresh, Judge(itm="0.2", per_image=1))

    pairs = _pairs(fresh)
    for key in {pair["key"] for pair in pairs}:
        passing = [pair for pair in pairs if pair["key"] == key and pair["itm"] >= 0.2]
        best = max(passing, key=lambda pair: pair["itm"], default=None)
        kept = [pair for pair in pairs if pair["key"] == key and pair["keep"]]
        assert kept == ([best] if best else [])


def test_the_stage_counts_its_verdicts(fresh: RunDir, bundles: dict[str, Path]) -> None:
    finished = world.run(
        fresh.path, world.REAL / "noisy.tar", bundles, stages=(JudgePairs(),), judge={"itm": "0.7"}
    )

    [(name, outcome)] = finished.outcomes
    kept = len(_kept(fresh))
    assert (name, outcome.status, outcome.count) == ("judge", "done", 48)
    assert outcome.detail == f"policy 2: ITM of at least 0.7; kept {kept} of 48 captions"
    assert [number for number, _ in policies(fresh)] == [1, 2]


def test_a_run_without_scores_keeps_every_caption_and_takes_no_rule(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    run = world.run(
        tmp_path / "run",
        world.REAL / "photos.tar",
        bundles,
        stages=(RecaptionAndScore(recaption=True, score=False), JudgePairs()),
        score=False,
    ).run

    assert len(_kept(run)) == 10
    assert weak_scores_of(run, Policy()) == set()
    assert advice(run) == []
    with pytest.raises(CapfiltError, match="holds no scores") as caught:
        judge_run(run, Judge(itm="0.5"))
    assert "capfilt score" in caught.value.fix


def test_what_a_pipeline_chose_for_its_filter_is_left_aside_where_there_is_none(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """A pipeline's own threshold must not end a run that was asked for captions alone."""
    finished = world.run(
        tmp_path / "run", world.REAL / "photos.tar", bundles, score=False, judge={"itm": "auto:recall=0.85"}
    )

    assert [outcome.status for _, outcome in finished.outcomes] == ["done"] * 3
    assert len(_kept(finished.run)) == 10


def test_a_web_without_a_single_usable_picture_is_judged_too(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    web = world.write_tar(tmp_path / "web.tar", [("a.jpg", b"junk"), ("a.txt", "a text")])

    finished = world.run(tmp_path / "run", web, bundles, judge={"itm": "auto:recall=0.85"})

    assert [outcome.status for _, outcome in finished.outcomes] == ["done", "done", "withheld"]
    assert finished.outcomes[-1][1].detail.startswith("the policy keeps no caption")
    assert world.sql(finished.run, "SELECT status, reason FROM samples") == [("refused", "unreadable_image")]


# -- wishes


def test_wishes_become_numbers_by_the_filters_calibration(fresh: RunDir, bundles: dict[str, Path]) -> None:
    _with_calibration(fresh, bundles, itm=STRONG, itc=STRONG)

    recall = policy_of(fresh, Judge(itm="auto:recall=0.85")).rules[0]
    precision = policy_of(fresh, Judge(itm="auto:precision=0.75", noise_rate=0.4)).rules[0]

    # Right pairs score 0, 0.05, ... 0.95: seventeen of twenty reach 0.15.
    assert isinstance(recall, AtLeast)
    assert recall.threshold == 0.15
    # Wrong pairs score half as much. At 0.3, 0.7 of the right and 0.4 of the wrong ones pass: 0.42 to 0.16
    # is 0.724. At 0.35 it is 0.39 to 0.12 (six of twenty are left): 0.765.
    assert isinstance(precision, AtLeast)
    assert precision.threshold == 0.35
    assert precision.chosen.startswith("auto:precision=0.75 at noise rate 0.4")


def test_an_uncalibrated_filter_exports_and_takes_no_wish(fresh: RunDir, bundles: dict[str, Path]) -> None:
    assert advice(fresh) == [
        "uncalibrated filter: nobody measured how its scores tell right pairs from wrong ones"
    ]
    with pytest.raises(CapfiltError, match="uncalibrated") as caught:
        judge_run(fresh, Judge(itm="auto:precision=0.95"))
    assert "--itm 0.5" in caught.value.fix
    assert len(policies(fresh)) == 1

    outcome = _exported(fresh, bundles)

    assert (outcome.status, outcome.next_command) == ("done", "")
    assert (fresh.export / "README.md").exists()


# -- weak filters


def _exported(run: RunDir, bundles: dict[str, Path], **export: Any) -> Any:
    finished = world.run(run.path, world.REAL / "noisy.tar", bundles, stages=(ExportPairs(),), export=export)
    assert finished.next_command == finished.outcomes[0][1].next_command
    return finished.outcomes[0][1]


def test_a_policy_by_a_weak_score_keeps_its_verdicts_and_exports_nothing(
    fresh: RunDir, bundles: dict[str, Path]
) -> None:
    _with_calibration(fresh, bundles, itm=WEAK, itc=WEAK)

    outcome = _exported(fresh, bundles)

    assert outcome.status == "withheld"
    assert "ITM" in outcome.detail
    assert outcome.next_command == f"capfilt export {fresh.path} --accept-weak-filter"
    assert not fresh.export.exists()
    assert world.sql(fresh, "SELECT count(*) FROM pairs WHERE keep") == [(len(_kept(fresh)),)]
    assert world.sql(fresh, "SELECT status FROM stages ORDER BY start DESC LIMIT 1") == [("withheld",)]
    with pytest.raises(CapfiltError, match="nothing is exported") as caught:
        export_run(fresh, fresh.path.parent / "to", Export())
    assert "--accept-weak-filter" in caught.value.fix
    assert not (fresh.path.parent / "to").exists()


def test_a_weak_filter_that_is_accepted_exports_and_its_card_says_so(
    fresh: RunDir, bundles: dict[str, Path]
) -> None:
    _with_calibration(fresh, bundles, itm=WEAK, itc=WEAK)

    outcome = _exported(fresh, bundles, accept_weak_filter=True)

    assert outcome.status == "done"
    card = (fresh.export / "README.md").read_text()
    assert "**Weak filter.** The policy reads ITM" in card


def test_accepting_a_weak_filter_is_allowed_where_none_is(fresh: RunDir, bundles: dict[str, Path]) -> None:
    _with_calibration(fresh, bundles, itm=STRONG, itc=STRONG)

    outcome = _exported(fresh, bundles, accept_weak_filter=True)

    assert outcome.status == "done"
    assert "Weak filter" not in (fresh.export / "README.md").read_text()


def test_itc_that_carries_a_signal_beside_a_weak_itm_is_told_and_exports(
    fresh: RunDir, bundles: dict[str, Path]
) -> None:
    _with_calibration(fresh, bundles, itm=WEAK, itc=STRONG)
    withheld = _exported(fresh, bundles)

    assert withheld.status == "withheld"
    assert withheld.next_command == f"capfilt judge {fresh.path} --itc auto:recall=0.85"
    told = advice(fresh)
    assert any("ITM does not tell" in line for line in told)
    assert any(f"`{withheld.next_command}`" in line and "ITC carries a signal" in line for line in told)

    _, policy = judge_run(fresh, Judge(itc="auto:recall=0.85"))

    assert policy.measures == (Measure("itc"),)
    assert weak_scores_of(fresh, policy) == set()
    assert _exported(fresh, bundles).status == "done"


def test_a_policy_that_reads_both_scores_is_as_weak_as_the_weaker(
    fresh: RunDir, bundles: dict[str, Path]
) -> None:
    _with_calibration(fresh, bundles, itm=STRONG, itc=WEAK)

    assert _exported(fresh, bundles).status == "done"
    judge_run(fresh, Judge(itm="0.5", fraction=0.5, by="itc"))

    outcome = _exported(fresh, bundles)
    assert outcome.status == "withheld"
    assert "ITC" in outcome.detail
    assert outcome.next_command.endswith("--accept-weak-filter"), "ITM is strong: --itc is no way on"


@pytest.mark.parametrize("change", ["elsewhere", "gone"])
def test_a_weak_filter_stays_weak_from_another_folder_and_without_its_bundle(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    weak = world.calibrated(bundles["filter"], tmp_path / "weak", itm=WEAK, itc=STRONG)
    monkeypatch.chdir(tmp_path)
    given = {**bundles, "filter": weak.relative_to(tmp_path)}
    run = world.run(tmp_path / "run", world.REAL / "photos.tar", given).run
    monkeypatch.chdir("/")
    if change == "gone":
        shutil.rmtree(run.model("filter"))

    with pytest.raises(CapfiltError, match="nothing is exported"):
        export_run(run, tmp_path / "to", Export())

    assert weak_scores_of(run, policy_of(run, Judge())) == {Measure("itm")}
    assert any("ITC carries a signal" in line for line in advice(run))
    if change == "gone":
        with pytest.raises(CapfiltError, match="holds no calibration of ITC") as caught:
            judge_run(run, Judge(itc="auto:recall=0.85"))
        assert "bundle back" in caught.value.fix


def test_the_edge_of_one_half_is_weak(bundles: dict[str, Path], fresh: RunDir) -> None:
    _with_calibration(fresh, bundles, itm=0.5, itc=math.nextafter(0.5, 1))

    assert weak_scores_of(fresh, policy_of(fresh, Judge())) == {Measure("itm")}
    assert weak_scores_of(fresh, policy_of(fresh, Judge(itc="0"))) == set()


def test_what_is_said_of_a_filter_follows_from_its_calibration() -> None:
    def rows(**lows: float | None) -> dict[str, Any]:
        return {
            "rows": [
                {
                    "score": score,
                    "negatives": "shuffled",
                    "positives": 9,
                    "auroc": None if low is None else 0.7,
                    "auroc_low": low or 0.0,
                    "auroc_high": 1.0,
                    "weak": (low or 0.0) <= 0.5,
                }
                for score, low in lows.items()
            ]
        }

    assert warnings_of(None)[0].startswith("uncalibrated")
    assert warnings_of(rows(itm=0.6, itc=0.7)) == []
    [weak] = warnings_of(rows(itm=0.5, itc=0.7))
    assert "ITM" in weak
    assert "9 pairs" in weak
    assert "not measured" in warnings_of(rows(itm=None))[0]
    assert signal_beside(rows(itm=0.4, itc=0.6)) is not None
    assert signal_beside(rows(itm=0.6, itc=0.6)) is None
    assert signal_beside(rows(itm=0.4, itc=0.4)) is None
    assert signal_beside(rows(itm=0.4)) is None
    assert signal_beside(None) is None


def test_the_way_on_can_be_typed_whatever_the_folder_is_called(
    fresh: RunDir, bundles: dict[str, Path]
) -> None:
    strange = fresh.path.with_name("a run; with 'quotes'")
    fresh.path.rename(strange)
    run = type(fresh)(strange)
    _with_calibration(run, bundles, itm=WEAK, itc=STRONG)

    words = shlex.split(mend_command(run))

    assert words == ["capfilt", "judge", str(strange), "--itc", "auto:recall=0.85"]


@pytest.mark.parametrize(
    ("wishes", "score"),
    [({"itc": "-1"}, "itc"), ({"itm": "0"}, "itm"), ({"itm": "0", "itc": "-1"}, "itm"), ({}, "itm")],
)
def test_texts_are_ranked_by_the_score_that_has_the_threshold(
    fresh: RunDir, wishes: dict[str, str], score: str
) -> None:
    ranked = policy_of(fresh, Judge(**wishes, per_image=1, rescue=True)).rules[-2:]

    assert [getattr(rule, "by", None) for rule in ranked] == [score, score]


def test_synthetic_texts_that_pass_more_often_than_clean_ones_are_told(fresh: RunDir) -> None:
    [digest] = filters_of(fresh)
    (least,) = world.sql(fresh, "SELECT min(itm) FROM pairs WHERE source = 'synthetic'")[0]
    half_pass = {"rows": [], "values": {"itm": {"right": [0.0] * 10 + [1.0] * 10}}}
    nearly_all_pass = {"rows": [], "values": {"itm": {"right": [0.0] + [1.0] * 19}}}
    all_synthetic = Policy((AtLeast("itm", least),), digest)
    no_synthetic = Policy((AtLeast("itm", 1.0),), digest)

    told = shared_blind_spot(fresh, all_synthetic, half_pass)

    assert "100% of the synthetic texts pass ITM" in told
    assert "only 50% of held-out clean captions" in told
    # 95% of twenty is within two standard errors of all.
    assert shared_blind_spot(fresh, all_synthetic, nearly_all_pass) == ""
    assert shared_blind_spot(fresh, no_synthetic, half_pass) == ""
    assert shared_blind_spot(fresh, Policy((TopFraction(1.0),)), half_pass) == ""
    assert shared_blind_spot(fresh, all_synthetic, None) == ""
