"""Decide which pairs are kept, from stored scores alone; no model is loaded.

A wish such as `auto:recall=0.85` is turned into a number by the filter's calibration first, so that a
policy on disk holds numbers and can be read without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.evaluation.calibration import weak_scores
from capfilt.models.cards import CARD_FILE, read_calibration, read_card
from capfilt.provenance.catalog import open_catalog, pair_counts
from capfilt.provenance.commit import manifests, scored_by
from capfilt.provenance.differences import differences
from capfilt.provenance.policy import AtLeast, Policy, newest_policy, write_policy
from capfilt.provenance.rundir import RunDir, json_files, read_json
from capfilt.records import BEST_FIRST, Measure, Source
from capfilt.settings import Judge
from capfilt.shell import shell_word
from capfilt.stages.context import Outcome
from capfilt.stages.wishes import Filters, rules_of

if TYPE_CHECKING:
    from capfilt.stages.context import Context


@dataclass(frozen=True)
class JudgePairs:
    """Stage: write the run's policy; the views give its verdicts."""

    name: str = "judge"

    def settings(self, context: Context) -> dict[str, Any]:
        """Return the rule that was asked for."""
        return context.settings.judge.model_dump(mode="json")

    def run(self, context: Context) -> Outcome:
        """Write the policy and count its verdicts."""
        # A pipeline's own rule is for its filter: without one every caption is kept.
        judge = context.settings.judge if context.settings.score else Judge()
        number, policy = judge_run(context.run, judge)
        with open_catalog(context.run) as catalog:
            counts = pair_counts(catalog)
        kept = sum(count for _, keep, _, count in counts if keep)
        total = sum(count for *_, count in counts)
        if policy.filter is not None and (
            line := shared_blind_spot(context.run, policy, calibration_of(context.run, policy.filter))
        ):
            context.progress.say(line)
        return Outcome(
            detail=f"policy {number}: {policy.words}; kept {kept} of {total} captions", count=total
        )


def judge_run(run: RunDir, judge: Judge, *, filter_digest: str | None = None) -> tuple[int, Policy]:
    """Write the policy that `judge` asks for and return its number and itself."""
    policy = policy_of(run, judge, filter_digest=filter_digest)
    return write_policy(run, policy), policy


def policy_of(run: RunDir, judge: Judge, *, filter_digest: str | None = None) -> Policy:
    """Return the policy that `judge` asks for, its wishes turned into numbers.

    `filter_digest` is a filter's first digits or its name in the run's models; by default the run's first.
    A run without scores keeps every caption; a rule is refused there, unless there is no caption at all.
    """
    filters_in = filters_of(run)
    if not filters_in:
        shards = manifests(run)
        if judge.is_given and not shards:
            raise CapfiltError(
                f"{run.path} holds no shard yet, so there is nothing that a rule could judge",
                fix="give the command that began the run again: it goes on where it stopped",
            )
        if judge.is_given and any(manifest["rows"].get("captions") for manifest in shards):
            raise CapfiltError(
                f"{run.path} holds no scores, so no rule can be applied",
                fix=f"score it first: capfilt score {shell_word(run.path)} --filter MODEL",
            )
        return Policy()
    filters = Filters.of(run, filters_in, filter_digest)
    policy = Policy(rules_of(judge, filters, partial(calibration_of, run)), filters.chosen)
    _check_scored_alike(run, policy)
    return policy


def _check_scored_alike(run: RunDir, policy: Policy) -> None:
    """Refuse scores of which some were measured in another way: a scoring was killed halfway."""
    shards = manifests(run)
    for digest in (policy.filter, *policy.further_filters):
        ways = scored_by(shards, digest) if digest is not None else []
        if digest is None or len(ways) < 2:
            continue
        raise CapfiltError(
            f"some shards were scored by filter {digest[:12]} in another way than others: "
            + ", ".join(differences(ways[0], ways[1])),
            fix=f"give the last `capfilt score {shell_word(run.path)} --filter MODEL` again: it goes on "
            "where it stopped",
        )


def filters_of(run: RunDir) -> list[str]:
    """Return the digests of the filters that scored this run, the first one first."""
    found: list[str] = []
    for manifest in sorted(manifests(run), key=lambda m: m["kind"] != "shard"):
        found += [digest for digest in manifest["filters"] if digest not in found]
    return found


def filter_in_force(run: RunDir) -> str | None:
    """Return the filter whose scores the newest policy reads, else the one that scored the run first."""
    newest = newest_policy(run)
    if newest is not None and newest[1].filter is not None:
        return newest[1].filter
    return next(iter(filters_of(run)), None)


def calibration_of(run: RunDir, digest: str) -> dict[str, Any] | None:
    """Return what a filter's bundle says of its scores; None when nobody calibrated it.

    Where the bundle is gone, the rows that the run recorded speak for it, without the values that an
    `auto:` threshold needs.
    """
    mend = "remove the file and give the run's command again"
    paths = [run.model("filter")]
    for file in json_files(run.models):
        row = read_json(file, mend=mend)
        if row["model"] == digest:
            # The run may have moved since, and its bundles with it.
            paths += [run.model(Path(row["path"]).name), Path(row["path"])]
    for path in paths:
        if (path / CARD_FILE).exists() and read_card(path).digest == digest:
            return read_calibration(path)
    for file in json_files(run.calibration):
        rows = read_json(file, mend=mend)
        if any(row["model"] == digest for row in rows):
            return {"rows": rows, "values": {}}
    return None


def weak_scores_of(run: RunDir, policy: Policy) -> set[Measure]:
    """Return what a policy reads although it is no better than chance on held-out pairs."""
    weak = {
        digest: weak_scores(calibration_of(run, digest))
        for digest in (policy.filter, *policy.further_filters)
        if digest is not None
    }
    return {one for one in policy.measures if one.score in weak.get(one.filter or policy.filter or "", ())}


def warnings_of(calibration: dict[str, Any] | None) -> list[str]:
    """Return what must be said of a filter: that it is uncalibrated, or which of its scores are weak."""
    if calibration is None:
        return ["uncalibrated filter: nobody measured how its scores tell right pairs from wrong ones"]
    lines = []
    for row in calibration["rows"]:
        if row["weak"]:
            area = "not measured" if row["auroc"] is None else f"{row['auroc']:.2f}"
            lines.append(
                f"weak filter: {row['score'].upper()} does not tell held-out clean pairs from shuffled "
                f"captions (AUROC {area}, 95% interval {row['auroc_low']:.2f} to {row['auroc_high']:.2f}, "
                f"{row['positives']} pairs)"
            )
    return lines


def signal_beside(calibration: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the calibration row of ITC where it carries a signal and ITM does not."""
    rows = {r["score"]: r for r in (calibration or {"rows": []})["rows"] if r["negatives"] == "shuffled"}
    if "itm" in rows and "itc" in rows and rows["itm"]["weak"] and not rows["itc"]["weak"]:
        itc: dict[str, Any] = rows["itc"]
        return itc
    return None


def advice(run: RunDir, *, kept: int | None = None) -> list[str]:
    """Return sentences on the filter in force, and the policy to type where another one serves better.

    `kept` is how many captions the policy in force keeps, where that is known.
    """
    digest = filter_in_force(run)
    if digest is None:
        return []
    calibration = calibration_of(run, digest)
    lines = warnings_of(calibration)
    newest = newest_policy(run)
    for further in newest[1].further_filters if newest is not None else ():
        lines += [f"filter {further[:8]}: {line}" for line in warnings_of(calibration_of(run, further))]
    reads_weak = newest is None or bool(weak_scores_of(run, newest[1]))
    if reads_weak and (row := signal_beside(calibration)) is not None:
        lines.append(
            f"ITC carries a signal (AUROC {row['auroc']:.2f}, 95% interval {row['auroc_low']:.2f} to "
            f"{row['auroc_high']:.2f}): judge by it with `{mend_command(run)}`"
        )
    if kept == 0:
        lines.append(
            "the policy keeps no caption; a threshold that most held-out clean pairs pass is chosen by "
            f"`{loosening_command(run)}`"
        )
    elif newest is not None and (line := shared_blind_spot(run, newest[1], calibration)):
        lines.append(line)
    return lines


def shared_blind_spot(run: RunDir, policy: Policy, calibration: dict[str, Any] | None) -> str:
    """Return a warning where synthetic texts pass a threshold more often than right clean captions do.

    No captioner is better than the captions it learnt from. Where its texts pass more often, the filter
    does not see its errors: both were taught by the same pairs. Empty where nothing is suspicious: the
    share of synthetic texts must be above that of clean ones by more than two standard errors. Further
    filters are left out: what taught them is not known here.
    """
    own = (rule for rule in policy.rules if isinstance(rule, AtLeast) and rule.filter is None)
    rule = next(own, None)
    values = (calibration or {}).get("values", {})
    right = values.get(rule.score, {}).get("right", []) if rule is not None else []
    if rule is None or not right:
        return ""
    column = rule.measure.column
    with open_catalog(run) as catalog:
        found = catalog.execute(
            f"SELECT count({column}), count(*) FILTER (WHERE {column} >= ?) FROM pairs WHERE source = ?",
            [rule.threshold, Source.SYNTHETIC.value],
        ).fetchone()
    texts, passing = found or (0, 0)
    if not texts:
        return ""
    clean, synthetic = sum(value >= rule.threshold for value in right) / len(right), passing / texts
    error = (clean * (1 - clean) / len(right) + synthetic * (1 - synthetic) / texts) ** 0.5
    if synthetic <= clean + 2 * error:
        return ""
    return (
        f"shared blind spot: {synthetic:.0%} of the synthetic texts pass {rule.score.upper()} "
        f"{rule.threshold:.3g}, and only {clean:.0%} of held-out clean captions do; captioner and filter "
        "learnt from the same pairs: look at the texts before you use them, or export web texts alone with "
        "--texts web"
    )


def loosening_command(run: RunDir) -> str:
    """Return what to type where a policy keeps nothing."""
    path = shell_word(run.path)
    digest = filter_in_force(run)
    calibration = calibration_of(run, digest) if digest is not None else None
    if calibration is None:
        return f"capfilt inspect {path}"
    strong = {row["score"] for row in calibration["rows"]} - weak_scores(calibration)
    score = next((name for name in BEST_FIRST if name in strong), "itm")
    return f"capfilt judge {path} --{score} auto:recall=0.85"


def mend_command(run: RunDir) -> str:
    """Return what to type where a policy reads a weak score."""
    path = shell_word(run.path)
    digest = filter_in_force(run)
    if digest is not None and signal_beside(calibration_of(run, digest)) is not None:
        return f"capfilt judge {path} --itc auto:recall=0.85"
    return f"capfilt export {path} --accept-weak-filter"
