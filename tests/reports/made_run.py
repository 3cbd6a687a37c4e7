"""A run made by hand, so that reports and commands are tested without training a model.

Three samples can be used: a web text that scores well, one that scores badly, one that is missing; each
has a synthetic text. A fourth was refused. One web text is as hostile as a web text can be.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json
from capfilt.models.cards import CALIBRATION_FILE, CARD_FILE, Card
from capfilt.provenance.commit import commit_shard, record_calibration, record_model
from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.rundir import RunDir, StageRecord, record_run, save_stage
from capfilt.records import Refusal, Shard, Source, Status, pair_id
from capfilt.settings import Model

if TYPE_CHECKING:
    from collections.abc import Sequence

FILTER, CAPTIONER = "f" * 64, "c" * 64
HOSTILE = "a cat\x1b]0;owned\x07\x1b[2J \u202edrowkcab\u202c [red]loud[/red] \n=cmd|' /C calc'!A0"
SHARD = Shard("00000", Path("web/00000.tar"), 0, 4096, "quick")
SCORES: dict[tuple[str, str], tuple[float, float]] = {
    ("cat", "web"): (0.9, 0.4),
    ("cat", "synthetic"): (0.8, 0.3),
    ("dog", "web"): (0.1, -0.2),
    ("dog", "synthetic"): (0.7, 0.25),
    ("fox", "synthetic"): (0.2, 0.0),
}
"""ITM and ITC, by key and source."""
TEXTS = {
    ("cat", "web"): HOSTILE,
    ("cat", "synthetic"): "a cat on a mat",
    ("dog", "web"): "IMG_0042.JPG",
    ("dog", "synthetic"): "a dog on a log",
    ("fox", "synthetic"): "a dog on a log",
}


def started_run(folder: Path) -> RunDir:
    """A run that was started and has done nothing."""
    run = RunDir.create(folder)
    record_run(run, {"seed": 0}, command=["capfilt", "bootstrap", "my web", "--out", "run"])
    return run


def made_run(
    folder: Path,
    *,
    captioner: bool = True,
    scores: bool = True,
    policy: bool = True,
    calibrated: bool = True,
    weak: Sequence[str] = (),
) -> RunDir:
    """A run of one shard; what is left out is as if that part had not been asked for."""
    run = started_run(folder)
    sources = [source for source in Source if captioner or source is Source.WEB]
    captions = [caption_row(key, source) for key, source in TEXTS if Source(source) in sources]
    commit_shard(
        run,
        SHARD,
        fingerprint="print",
        samples=sample_rows(),
        captions=captions,
        scores=[row for caption in captions for row in score_rows(caption)] if scores else [],
        samples_in=4,
    )
    if scores:
        record_model(run, _model("filter", FILTER))
        _write_filter(run, _calibration(weak) if calibrated else None)
    if captioner:
        record_model(run, _model("captioner", CAPTIONER))
    if policy:
        rules = (AtLeast("itm", 0.5),) if scores else ()
        write_policy(run, Policy(rules, FILTER if scores else None))
    save_stage(
        run, StageRecord("recaption_and_score", 1, started=100.0).finished("done", ended=102.0, count=3)
    )
    return run


def _write_filter(run: RunDir, rows: list[dict[str, Any]] | None) -> None:
    """Record a calibration, and write what a bundle says of itself; its weights are never asked for."""
    bundle = run.model("filter")
    bundle.mkdir(parents=True)
    card = Card(kind="filter", objectives=("itc", "itm"), weights=FILTER, model=Model(), vocabulary=100)
    (bundle / CARD_FILE).write_text(canonical_json(card.model_dump(mode="json")))
    if rows is not None:
        record_calibration(run, FILTER, [{"model": FILTER, **row} for row in rows])
        right = {"right": [0.2, 0.6, 0.7, 0.9], "shuffled": [0.1, 0.1, 0.2, 0.3], "hard": []}
        calibration = {"rows": rows, "values": {"itm": right, "itc": right}}
        (bundle / CALIBRATION_FILE).write_text(canonical_json(calibration))


def sample_rows() -> list[dict[str, Any]]:
    rows = []
    for key, web_text, reason in (
        ("cat", HOSTILE, None),
        ("dog", "IMG_0042.JPG", None),
        ("fox", None, Refusal.MISSING_TEXT),
        ("hole", "a hole", Refusal.UNREADABLE_IMAGE),
    ):
        is_refused = reason is Refusal.UNREADABLE_IMAGE
        rows.append(
            {
                "shard": SHARD.name,
                "key": key,
                "image_sha256": "0" * 64,
                "url": None,
                "web_text": web_text,
                "width": None if is_refused else 4,
                "height": None if is_refused else 3,
                "status": Status.REFUSED if is_refused else Status.OK,
                "reason": reason,
                "member": f"{key}.jpg",
                "image_offset": 512,
                "image_size": 100,
                "metadata": "{}",
                "round": 1,
            }
        )
    return rows


def caption_row(key: str, source: str) -> dict[str, Any]:
    is_synthetic = source == Source.SYNTHETIC
    return {
        "pair_id": pair_id(shard=SHARD.name, key=key, source=Source(source), candidate=0, round_number=1),
        "shard": SHARD.name,
        "key": key,
        "image_sha256": "0" * 64,
        "source": source,
        "candidate": 0,
        "text": TEXTS[key, source],
        "captioner": CAPTIONER if is_synthetic else None,
        "decoding": "{}" if is_synthetic else None,
        "prompt": "" if is_synthetic else None,
        "unfinished": None,
        "seed": 0 if is_synthetic else None,
        "round": 1,
    }


def score_rows(caption: dict[str, Any]) -> list[dict[str, Any]]:
    values = zip(("itm", "itc"), SCORES[caption["key"], caption["source"]], strict=True)
    return [
        {"pair_id": caption["pair_id"], "filter": FILTER, "score": name, "value": value}
        for name, value in values
    ]


def _model(kind: str, digest: str) -> dict[str, Any]:
    return {
        "model": digest,
        "kind": kind,
        "path": f"run/models/{kind}",
        "parent": None,
        "data": None,
        "settings": "{}",
        "versions": "{}",
    }


def _calibration(weak: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for score in ("itm", "itc"):
        low, auroc, high = (0.4, 0.52, 0.64) if score in weak else (0.8, 0.9, 0.95)
        rows.append(
            {
                "score": score,
                "negatives": "shuffled",
                "positives": 40,
                "negatives_count": 160,
                "auroc": auroc,
                "auroc_low": low,
                "auroc_high": high,
                "precision_at_half": 0.8 if score == "itm" else None,
                "recall_at_half": 0.7 if score == "itm" else None,
                "weak": score in weak,
            }
        )
    return rows
