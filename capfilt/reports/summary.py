"""What a run came to, as plain values: everything `capfilt inspect` shows and its `--json` prints.

All of it is read from the provenance by SQL; no model is loaded, and a run that is half done, or that
has no captioner, filter or policy, is summed up as it stands.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.provenance.lineage import read_export, rounds_of, schema_of
from capfilt.provenance.policy import newest_policy
from capfilt.provenance.rundir import read_json
from capfilt.provenance.statistics.comparison import comparison
from capfilt.provenance.statistics.counts import examples_by_verdict, funnel
from capfilt.provenance.statistics.distributions import distributions
from capfilt.provenance.statistics.models import calibrations, models_used, uncalibrated
from capfilt.provenance.statistics.reading import open_figures, rows
from capfilt.provenance.statistics.timings import timings
from capfilt.provenance.statistics.wording import degenerate, diversity, lengths, repeated
from capfilt.shell import shell_line
from capfilt.stages.judge import advice, filters_of, loosening_command, mend_command, weak_scores_of
from capfilt.stages.wishes import Filters

if TYPE_CHECKING:
    import duckdb

    from capfilt.provenance.policy import Policy
    from capfilt.provenance.rundir import RunDir
    from capfilt.provenance.statistics.reading import Row

EXAMPLES = 4
"""Pairs shown that were kept, and as many that were dropped, of each source."""


def summarise(
    run: RunDir, *, against: RunDir | None = None, price_per_hour: float | None = None
) -> dict[str, Any]:
    """Return everything worth telling of a run, as JSON can say it.

    `against` is another run over the same samples, to be told where both judge differently; CapfiltError
    where it is the same one. `price_per_hour` is that of all machines together, in any currency.
    """
    if against is not None and against.path.resolve() == run.path.resolve():
        raise CapfiltError(
            f"{against.path} is the run itself, so there is nothing to compare it with",
            fix="give --against the folder of another run over the same shards",
        )
    with open_figures(run) as catalog:
        counted = funnel(catalog, run)
        stages, spent = timings(catalog, price_per_hour=price_per_hour)
        summary: dict[str, Any] = {
            "run": str(run.path),
            "rounds": _rounds(run, catalog),
            **_funnel(asdict(counted)),
            "texts": _plain(lengths(catalog)),
            "diversity": [{**asdict(row), "share": row.share} for row in diversity(catalog)],
            "repeated": _plain(repeated(catalog)),
            "degenerate": _plain(degenerate(catalog)),
            "scores": _plain(distributions(catalog, run)),
            "models": _plain(models_used(catalog)),
            "calibration": _plain(calibrations(catalog)),
            "uncalibrated": uncalibrated(catalog),
            "policy": _policy(catalog),
            "stages": _plain(stages),
            "spent": asdict(spent),
            "examples": _plain(examples_by_verdict(catalog, EXAMPLES)),
            "against": _against(catalog, run, against),
        }
    return {
        **summary,
        "advice": advice(run, kept=counted.kept),
        "next_command": loosening_command(run) if counted.kept == 0 else _next_command(run, summary),
    }


def _plain(values: Any) -> list[Row]:
    """Return dataclasses as JSON has them."""
    return [_lists(asdict(value)) for value in values]


def _lists(value: Any) -> Any:
    """Return tuples as lists, as they come back from JSON."""
    if isinstance(value, dict):
        return {name: _lists(part) for name, part in value.items()}
    return [_lists(part) for part in value] if isinstance(value, (list, tuple)) else value


def _funnel(counted: Row) -> dict[str, Any]:
    names = {"samples": "in", "recorded": "rows", "shards": "shards", "used": "ok", "refused": "refused"}
    by_reason = ("refused_by_reason", "texts_missing_by_reason")
    samples = {words: counted.pop(name) for name, words in names.items()}
    samples |= {name: counted.pop(name) for name in by_reason}
    return {"samples": samples, **_lists(counted)}


def _against(catalog: duckdb.DuckDBPyConnection, run: RunDir, other: RunDir | None) -> Row | None:
    if other is None:
        return None
    compared = comparison(catalog, run, other)
    found: Row = _lists(asdict(compared))
    return {**found, "judged": compared.judged, "changed": compared.changed}


def _rounds(run: RunDir, catalog: duckdb.DuckDBPyConnection) -> list[Row]:
    """Return what each round came to, where there are several; a round is named as the run was."""
    rounds = rounds_of(run)
    if len(rounds) == 1:
        return []
    found = rows(catalog, "SELECT round, captioner, filter, init, samples FROM rounds ORDER BY round")
    for row, (number, one) in zip(found, rounds, strict=True):
        [counts] = rows(
            catalog,
            "SELECT count(*) AS captions, count(*) FILTER (WHERE keep) AS kept "
            f"FROM {schema_of(number, rounds)}.pairs",
        )
        row |= {"path": str(one.path), **counts}
    return found


def _policy(catalog: duckdb.DuckDBPyConnection) -> Row | None:
    found = rows(
        catalog, "SELECT policy, words, thresholds, filter FROM policies ORDER BY policy DESC LIMIT 1"
    )
    return {**found[0], "thresholds": json.loads(found[0]["thresholds"])} if found else None


# -- what to type next


def following(run: RunDir, policy: Policy) -> str:
    """Return the command that follows a policy: its mend, the export, or a look once that is done."""
    if weak_scores_of(run, policy):
        return mend_command(run)
    if _is_exported(run, policy):
        return shell_line(["capfilt", "sql", str(run.path), "select * from pairs where not keep limit 20"])
    return shell_line(["capfilt", "export", str(run.path), "--to", str(run.export)])


def first_policy(run: RunDir) -> str:
    """Return the command for a run that nobody judged: judge it where it holds scores, else go on with it."""
    if scored_by := filters_of(run):
        return shell_line(["capfilt", "judge", str(run.path), *Filters.of(run, scored_by).usual_rule])
    return going_on(run)


def going_on(run: RunDir) -> str:
    """Return the command that started the run; given again, it goes on."""
    record = read_json(run.run_file, mend="restore run.json from a copy, or start a new run elsewhere")
    return shell_line(record.get("command") or ["capfilt", "bootstrap", "--help"])


def _next_command(run: RunDir, summary: dict[str, Any]) -> str:
    """Return what to type next: go on with a run that was stopped, look at its last round, judge it, or
    what follows its policy.
    """
    last = summary["stages"][-1]["status"] if summary["stages"] else None
    newest = newest_policy(run)
    if not summary["samples"]["shards"] or last in ("failed", "running", "interrupted"):
        return going_on(run)
    if summary["rounds"]:
        return shell_line(["capfilt", "inspect", summary["rounds"][-1]["path"]])
    return first_policy(run) if newest is None else following(run, newest[1])


def _is_exported(run: RunDir, policy: Policy) -> bool:
    """Return whether the run's own export is that of the policy."""
    manifest = read_export(run) or {}
    digest: str = manifest.get("facts", {}).get("policy", {}).get("digest", "")
    return digest == policy.digest
