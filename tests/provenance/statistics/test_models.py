from __future__ import annotations

from typing import TYPE_CHECKING, Any

from provenance_rows import FILTER, commit, shard

from capfilt.provenance.commit import record_calibration, record_model
from capfilt.provenance.statistics.models import calibrations, models_used, uncalibrated
from capfilt.provenance.statistics.reading import open_figures

if TYPE_CHECKING:
    from capfilt.provenance.rundir import RunDir


def _model(kind: str, digest: str, **changes: Any) -> dict[str, Any]:
    plain = {"path": f"models/{kind}", "parent": None, "data": None, "settings": "{}", "versions": "{}"}
    return {"model": digest, "kind": kind, **plain, **changes}


def _row(score: str, negatives: str) -> dict[str, Any]:
    return {
        "model": FILTER,
        "score": score,
        "negatives": negatives,
        "positives": 10,
        "negatives_count": 40,
        "auroc": 0.75,
        "auroc_low": 0.5,
        "auroc_high": 0.9,
        "precision_at_half": None,
        "recall_at_half": 0.25,
        "weak": True if negatives == "shuffled" else None,
    }


def test_models_are_told_with_what_they_were_started_from(run: RunDir) -> None:
    record_model(run, _model("filter", FILTER, parent="0" * 64))
    record_model(run, _model("captioner", "c" * 64, data="d" * 64))
    with open_figures(run) as catalog:
        found = models_used(catalog)
    assert [(one.kind, one.model[:2], one.parent, one.data) for one in found] == [
        ("captioner", "cc", None, "d" * 64),
        ("filter", "ff", "0" * 64, None),
    ]


def test_calibrations_come_with_shuffled_captions_first(run: RunDir) -> None:
    record_calibration(
        run, FILTER, [_row(score, kind) for score in ("itc", "itm") for kind in ("hard", "shuffled")]
    )
    with open_figures(run) as catalog:
        found = calibrations(catalog)
    assert [(one.score, one.negatives, one.weak) for one in found] == [
        ("itm", "shuffled", True),
        ("itm", "hard", None),
        ("itc", "shuffled", True),
        ("itc", "hard", None),
    ]
    assert (found[0].auroc, found[0].precision_at_half, found[0].recall_at_half) == (0.75, None, 0.25)


def test_a_filter_that_scored_and_was_not_measured_is_uncalibrated(run: RunDir) -> None:
    commit(run, shard())
    with open_figures(run) as catalog:
        assert uncalibrated(catalog) == [FILTER]
    record_calibration(run, FILTER, [_row("itm", "shuffled")])
    with open_figures(run) as catalog:
        assert uncalibrated(catalog) == []
