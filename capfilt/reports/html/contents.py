"""Everything that stands on the page, by the names that its template has for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt import __version__
from capfilt.provenance.lineage import rounds_of
from capfilt.provenance.policy import AtLeast, newest_policy
from capfilt.provenance.rundir import read_json
from capfilt.provenance.statistics.counts import funnel
from capfilt.provenance.statistics.distributions import distributions, score_grids, thresholds_of
from capfilt.provenance.statistics.models import calibrations, models_used
from capfilt.provenance.statistics.reading import open_figures, rows
from capfilt.provenance.statistics.timings import timings
from capfilt.provenance.statistics.wording import degenerate, diversity, lengths, repeated
from capfilt.records import Measure
from capfilt.reports.html.calibration import Calibrated, passing_chart, precision_chart
from capfilt.reports.html.charts import funnel_chart, histogram_chart, joint_chart
from capfilt.reports.html.galleries import galleries
from capfilt.reports.html.losses import loss_chart, losses
from capfilt.reports.html.panels import Number, Panel, Table, percent
from capfilt.shell import shell_line
from capfilt.stages.judge import advice, calibration_of, filter_in_force

if TYPE_CHECKING:
    import duckdb

    from capfilt.provenance.policy import Policy
    from capfilt.provenance.rundir import RunDir
    from capfilt.provenance.statistics.counts import Funnel
    from capfilt.provenance.statistics.distributions import Distribution

BARS, CELLS = 40, 32
"""Bars of a histogram, and cells along a side where two scores are drawn against each other."""
_REPEATED = 8
_MOST_STAGES = 60
"""Stages that are listed, the newest ones: a run may have been started a thousand times."""
_MOST_LINES = 500
_DONE = "restore run.json from a copy, or start a new run elsewhere"
_KINDS_OF_WRONG = {"empty": "no word", "loop": "a loop", "prompt_echo": "its prompt"}


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the head of the page."""

    what: str
    value: str
    note: str
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Titled:
    """A table that stands open."""

    title: str
    table: Table


def contents(run: RunDir, seed: int) -> dict[str, Any]:
    """Return what the template is given: read from the run's provenance, and pictures from its shards."""
    newest = newest_policy(run)
    policy = newest[1] if newest is not None else None
    catalog = open_figures(run)
    try:
        counted = funnel(catalog, run)
        page = {
            "name": run.path.absolute().name,
            "lead": _lead(counted, newest),
            "tiles": _tiles(counted),
            "advice": advice(run, kept=counted.kept),
            "funnel": funnel_chart(counted),
            "where_lost": _where_lost(counted),
            **_scores(catalog, run),
            **_calibration(catalog, run, policy),
            "galleries": galleries(catalog, run, policy, seed),
            **_texts(catalog),
            "losses": [loss_chart(curve) for curve in losses(catalog)],
            **_provenance(catalog, run, newest, seed),
        }
    finally:
        catalog.close()
    return {**page, "sections": _sections(page), "version": __version__}


def _sections(page: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("funnel", "Funnel"),
        ("scores", "Scores"),
        ("calibration", "Calibration"),
        *((gallery.name, gallery.title) for gallery in page["galleries"]),
        ("texts", "Degenerate captions"),
        ("training", "Training"),
        ("provenance", "Provenance"),
    ]


# -- the head


def _lead(counted: Funnel, newest: tuple[int, Policy] | None) -> str:
    texts = sum(counted.captions.values())
    if newest is None:
        return f"{counted.samples:,} samples gave {texts:,} texts; no policy has judged them yet."
    number, policy = newest
    return (
        f"{counted.samples:,} samples gave {texts:,} texts, of which {counted.kept or 0:,} "
        f"({percent(counted.kept or 0, texts)}) are kept by policy {number}: {policy.words}."
    )


def _tiles(counted: Funnel) -> list[Tile]:
    tiles = [
        Tile(
            "samples read", f"{counted.samples:,}", f"{counted.refused:,} refused, {counted.shards:,} shards"
        )
    ]
    for source, texts in counted.captions.items():
        if counted.kept is None:
            tiles.append(Tile(f"{source} texts", f"{texts:,}", "not judged", source))
        else:
            kept = sum(one.pairs for one in counted.verdicts if one.source == source and one.keep)
            share = percent(kept, texts)
            tiles.append(Tile(f"of the {source} texts kept", share, f"{kept:,} of {texts:,}", source))
    if counted.exported is not None:
        done = "by the policy in force" if counted.exported.is_current else "by another policy"
        tiles.append(Tile("samples exported", f"{counted.exported.samples:,}", done))
    elif counted.images_kept is not None:
        tiles.append(Tile("samples with a kept text", f"{counted.images_kept:,}", "nothing exported yet"))
    return tiles


# -- counts and scores


def _where_lost(counted: Funnel) -> list[Titled]:
    """Return what was refused and dropped, and why."""
    samples = [(f"refused: {_plain(reason)}", count) for reason, count in counted.refused_by_reason.items()]
    samples += [
        (f"no web text: {_plain(reason)}", count) for reason, count in counted.texts_missing_by_reason.items()
    ]
    sources = list(counted.captions)
    verdicts: dict[str, dict[str, int]] = {}
    for one in counted.verdicts:
        verdicts.setdefault(_plain(one.reason or "not judged"), {})[one.source] = one.pairs
    listed = [(why, *(by.get(source) for source in sources)) for why, by in verdicts.items()]
    return [
        Titled("Texts by verdict", Table(("verdict", *(f"{source} texts" for source in sources)), listed)),
        *([Titled("Samples by what they lack", Table(("why", "samples"), samples))] if samples else []),
    ]


def _scores(catalog: duckdb.DuckDBPyConnection, run: RunDir) -> dict[str, Any]:
    found = distributions(catalog, run, bins=BARS)
    thresholds = thresholds_of(run)
    by_column: dict[str, list[Distribution]] = {}
    for one in found:
        by_column.setdefault(one.measure.column, []).append(one)
    names = [(Measure.of_column(column).words, value) for column, value in thresholds.items()]
    two = ["itm", "itc"] if {"itm", "itc"} <= set(by_column) else list(by_column)[:2]
    grids = score_grids(catalog, two[1], two[0], bins=CELLS) if len(two) == 2 else []
    return {
        "histograms": [histogram_chart(each) for each in by_column.values()],
        "thresholds": "The policy asks for "
        + " and ".join(f"{name} of at least {value:.6g}" for name, value in names)
        + "."
        if names
        else "The policy has no threshold on a score.",
        "quantiles": Table(
            ("score and source", "10%", "median", "90%"),
            [(f"{one.measure.words}, {one.source}", one.p10, one.p50, one.p90) for one in found],
        ),
        "joint": [joint_chart(grid, thresholds) for grid in grids],
        "joint_title": " against ".join(Measure.of_column(column).words for column in reversed(two)),
        "score_command": shell_line(["capfilt", "score", str(run.path), "--filter", "MODEL"]),
    }


def _calibration(catalog: duckdb.DuckDBPyConnection, run: RunDir, policy: Policy | None) -> dict[str, Any]:
    """Return the calibration of what the policy reads; of the filter's scores where it reads none."""
    panels: list[Panel] = []
    rules = {
        rule.measure: rule for rule in reversed(policy.rules if policy else ()) if isinstance(rule, AtLeast)
    }
    own = filter_in_force(run)
    for measure in reversed(rules) if rules else (Measure("itm"),):
        digest = measure.filter or own
        values = (calibration_of(run, digest) or {}).get("values", {}) if digest is not None else {}
        if values.get(measure.score, {}).get("right"):
            rule = rules.get(measure)
            threshold, chosen = (rule.threshold, rule.chosen) if rule is not None else (None, "")
            one = Calibrated.of(measure, values[measure.score], threshold, chosen)
            panels += [passing_chart(one), *([precision_chart(one)] if one.values.get("shuffled") else [])]
    return {
        "calibrations": panels,
        "calibration_rows": Table(
            ("score, against", "pairs", "AUROC", "from", "to"),
            [
                (
                    f"{one.score.upper()}, {one.negatives}" + (": weak" if one.weak else ""),
                    one.positives,
                    one.auroc,
                    one.auroc_low,
                    one.auroc_high,
                )
                for one in calibrations(catalog)
            ],
        ),
    }


# -- texts


def _texts(catalog: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    different = diversity(catalog)
    wrong = degenerate(catalog, examples=5)
    by_source: dict[str, list[Any]] = {}
    for one in repeated(catalog, most=_REPEATED):
        by_source.setdefault(one.source, []).append(one)
    sources = list(dict.fromkeys(one.source for one in different))
    return {
        "lengths": Table(
            ("source", "texts", "different", "median words", "most words"),
            [
                (one.source, one.captions, one.distinct, one.words_p50, one.words_most)
                for one in lengths(catalog)
            ],
        ),
        "diversity": Table(
            ("sequences of", *(f"{source} texts" for source in sources)),
            [
                (f"{n} word{'s' * (n > 1)}", *(one.share for one in different if one.n == n))
                for n in sorted({one.n for one in different})
            ],
        ),
        "diversity_words": f"Share of different n-grams, {different[0].captions:,} texts of each source"
        if different
        else "Share of different n-grams",
        "degenerate": Table(
            ("what is wrong", "texts"),
            [(f"{_KINDS_OF_WRONG.get(one.kind, one.kind)}, {one.source}", one.captions) for one in wrong]
            or [("nothing was found", 0)],
        ),
        "wrong": [
            {
                "kind": _KINDS_OF_WRONG.get(one.kind, one.kind),
                "source": one.source,
                "text": each.text,
                "shard": each.shard,
                "key": each.key,
            }
            for one in wrong
            for each in one.examples
            if one.kind != "empty"
        ],
        "repeated": by_source,
    }


# -- provenance


def _provenance(
    catalog: duckdb.DuckDBPyConnection, run: RunDir, newest: tuple[int, Policy] | None, seed: int
) -> dict[str, Any]:
    record = read_json(run.run_file, mend=_DONE)
    stages, spent = timings(catalog)
    [shards] = rows(
        catalog, "SELECT count(*) AS shards, coalesce(sum(bytes), 0)::BIGINT AS bytes FROM shards"
    )
    facts = [
        ("Command", shell_line(record.get("command") or ())),
        ("Folder", str(run.path.absolute())),
        ("Input", f"{shards['shards']:,} shards, {shards['bytes']:,} bytes"),
        ("Fingerprint", str(record.get("fingerprint", ""))),
        ("Seed of the run", str(record.get("facts", {}).get("seed", "not recorded"))),
        ("Policy", f"{newest[0]}: {newest[1].words}" if newest is not None else "none yet"),
    ]
    if newest is not None:
        facts.append(("Digest of the policy", newest[1].digest))
    if spent.images_per_s is not None:
        facts.append(("Speed", f"{spent.images_per_s:,.1f} images/s captioned or scored"))
    facts.append(("Seed of the draws", str(seed)))
    if len(rounds := rounds_of(run)) > 1:
        facts += [(f"Round {number}", str(one.path)) for number, one in rounds[1:]]
    documents = [
        ("Settings of the first start", record.get("settings")),
        ("What the rows depend on", record.get("facts")),
    ]
    return {
        "facts": facts,
        "models": models_used(catalog),
        "stages": Table(
            ("stage", "start", "status", "seconds", "count", "a second", "what came of it"),
            [
                (
                    one.stage,
                    one.start,
                    one.status,
                    _short(one.seconds),
                    one.count,
                    _short(one.per_second),
                    one.detail,
                )
                for one in stages[-_MOST_STAGES:]
            ],
        ),
        "versions": Table(("library", "version"), sorted(_versions(catalog).items())),
        "documents": [(title, _lines(value)) for title, value in documents if value],
        "again": shell_line(["capfilt", "report", str(run.path), "--seed", str(seed)]),
    }


def _versions(catalog: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Return the versions that the stages recorded, the newest of each library first where they differ."""
    found: dict[str, list[str]] = {}
    for row in rows(catalog, "SELECT versions FROM stages ORDER BY start DESC, started DESC"):
        for name, version in json.loads(row["versions"]).items():
            known = found.setdefault(str(name), [])
            if str(version) not in known:
                known.append(str(version))
    return {name: ", ".join(known) for name, known in found.items()}


def _lines(value: Any) -> list[str]:
    lines = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).splitlines()
    left_out = len(lines) - _MOST_LINES
    return lines if left_out <= 0 else [*lines[:_MOST_LINES], f"... and {left_out:,} more lines in run.json"]


def _short(value: float | None) -> Number | None:
    """Return seconds and rates with as many digits as are read."""
    return None if value is None else Number(f"{value:,.0f}" if value >= 100 else f"{value:.2g}")


def _plain(reason: str) -> str:
    return reason.replace("_", " ")
