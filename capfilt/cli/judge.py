"""`capfilt judge`: decide again, from stored scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from capfilt.cli import options
from capfilt.cli.choices import nested
from capfilt.cli.output import print_json, print_next

if TYPE_CHECKING:
    from capfilt.provenance.policy import Policy
    from capfilt.provenance.rundir import RunDir


def judge(
    run: options.RunArgument,
    itm: options.ItmOption = None,
    itc: options.ItcOption = None,
    vqa: options.VqaOption = None,
    fraction: options.FractionOption = None,
    by: options.ByOption = None,
    per_image: options.PerImageOption = None,
    rescue: options.RescueOption = False,
    noise_rate: options.NoiseRateOption = None,
    with_filter: Annotated[
        str | None,
        typer.Option(
            "--with-filter",
            metavar="DIGEST",
            help="Judge by this filter's scores, where several scored the run; its first digits do.",
            rich_help_panel="Policy",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="FILTER:SCORE=T",
            help="Least score by a further filter that scored the run, e.g. 1a2b3c4d:itc=0.25, or auto:... "
            "as for --itm; may be repeated, and all must hold.",
            rich_help_panel="Policy",
        ),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Decide again which pairs are kept; no model is loaded. Without a rule: show the policy in force.

    Example: capfilt judge runs/first --itm 0.6

    Example: capfilt judge runs/first --itm 0.5 --also 1a2b3c4d:itc=0.25
    """
    from capfilt.layers import changed
    from capfilt.provenance.policy import newest_policy
    from capfilt.provenance.rundir import RunDir
    from capfilt.settings import Bootstrap

    opened = RunDir.open(run)
    rules = {
        "judge.itm": itm,
        "judge.itc": itc,
        "judge.vqa": vqa,
        "judge.also": tuple(also) if also else None,
        "judge.fraction": fraction,
        "judge.by": by,
        "judge.per_image": per_image,
        "judge.rescue": rescue or None,
        "judge.noise_rate": noise_rate,
    }
    wanted = changed(Bootstrap(), nested(rules)).judge
    if wanted.is_given or with_filter is not None:
        from capfilt.provenance.catalog import rebuild_catalog
        from capfilt.stages.judge import judge_run

        in_force = judge_run(opened, wanted, filter_digest=with_filter)
        rebuild_catalog(opened)
    else:
        found = newest_policy(opened)
        if found is None:
            _report_none(opened, json=json)
            return
        in_force = found
    _report(opened, *in_force, json=json)


def _report(run: RunDir, number: int, policy: Policy, *, json: bool) -> None:
    from capfilt.provenance.catalog import open_catalog, pair_counts
    from capfilt.reports.show import show_verdicts
    from capfilt.reports.summary import following
    from capfilt.reports.text import terminal, visible
    from capfilt.stages.judge import advice, loosening_command

    with open_catalog(run) as catalog:
        counts = pair_counts(catalog)
    verdicts = [
        {"source": source, "keep": keep, "reason": reason, "pairs": pairs}
        for source, keep, reason, pairs in counts
    ]
    kept = sum(pairs for _, keep, _, pairs in counts if keep)
    next_command = following(run, policy) if kept else loosening_command(run)
    if json:
        value: dict[str, Any] = {
            "policy": number,
            "words": policy.words,
            "digest": policy.digest,
            **policy.record(),
            "verdicts": verdicts,
            "advice": advice(run, kept=kept),
            "next_command": next_command,
        }
        print_json(value)
        return
    console = terminal()
    console.print(f"policy {number}: {visible(policy.words)}")
    show_verdicts(verdicts, console)
    for line in advice(run, kept=kept):
        console.print(visible(line), soft_wrap=True)
    print_next(next_command)


def _report_none(run: RunDir, *, json: bool) -> None:
    from capfilt.reports.summary import first_policy

    next_command = first_policy(run)
    if json:
        print_json({"policy": None, "next_command": next_command})
        return
    print("no policy is in force: nothing was judged yet")
    print_next(next_command)
