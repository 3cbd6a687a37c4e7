"""A summary as people read it, in a terminal of any width, in a pipe, in ASCII.

What comes out of somebody's shard goes through `visible`, and no console here reads markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.reports.layout import (
    DIGEST,
    DROPPED,
    KEPT,
    QUIET,
    add,
    count,
    is_wide,
    percent,
    put,
    put_with_bars,
    styled,
    table,
    title,
    words,
)
from capfilt.reports.rate import duration, per_second_words
from capfilt.reports.show_comparison import show_comparison
from capfilt.reports.show_examples import show_examples
from capfilt.reports.show_texts import show_scores, show_texts
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from capfilt.reports.show_examples import Pictures

Row = dict[str, Any]

_MOST_STAGES = 12
"""Stages shown, the newest ones; a run that was started again and again has many."""
_VERDICTS = {True: ("kept", KEPT), False: ("dropped", DROPPED), None: ("not judged", "")}


def show(summary: Mapping[str, Any], console: Console, pictures: Pictures | None = None) -> None:
    """Print a summary, with pictures beside its examples where the terminal takes some."""
    _show_rounds(summary["rounds"], console)
    _show_samples(summary, console)
    _show_policy(summary, console)
    show_texts(summary, console)
    show_scores(summary["scores"], console)
    _show_models(summary, console)
    _show_stages(summary, console)
    show_examples(summary["examples"], console, pictures)
    if summary["against"] is not None:
        show_comparison(summary["against"], console, pictures)
    if summary["advice"]:
        title("Mind", console)
        for line in summary["advice"]:
            console.print(visible(line), soft_wrap="`" in line)  # a command in it can be pasted
    console.print()


def show_verdicts(verdicts: Sequence[Row], console: Console) -> None:
    """Print how many texts of each source are kept, and why the others are not."""
    total: dict[str, int] = {}
    for row in verdicts:
        total[row["source"]] = total.get(row["source"], 0) + row["pairs"]
    rows, shares = [], []
    for row in verdicts:
        word, style = _VERDICTS[row["keep"]]
        reason = words(row["reason"]) if row["keep"] is False else ""
        part, whole = row["pairs"], total[row["source"]]
        rows.append([row["source"], styled(word, style), reason, f"{part:,}", percent(part, whole)])
        shares.append((part / whole, style))
    put_with_bars(("source", "verdict", "reason", ">texts", ">share"), rows, shares, console)


# -- the parts, from the top of the page to its end


def _show_rounds(rounds: Sequence[Row], console: Console) -> None:
    if not rounds:
        return
    title("Rounds", console)
    made = table(">round", ">texts", ">kept", ">share", ">exported", "captioner", "filter", "both from")
    for row in rounds:
        exported = "" if row["samples"] is None else f"{row['samples']:,}"
        models = [(row[name] or "")[:DIGEST] for name in ("captioner", "filter", "init")]
        share = percent(row["kept"], row["captions"])
        add(made, str(row["round"]), f"{row['captions']:,}", f"{row['kept']:,}", share, exported, *models)
    put(made, console)
    console.print(f"what follows is round {rounds[0]['round']}; the others are runs of their own")


def _show_samples(summary: Mapping[str, Any], console: Console) -> None:
    """Print what became of the samples, each line a share of all of them."""
    title("Samples", console)
    samples, exported = summary["samples"], summary["exported"]
    steps = _steps(summary)
    rows = [[name, f"{number:,}", percent(number, samples["in"])] for name, number, _ in steps]
    shares = [(number / samples["in"] if samples["in"] else 0.0, style) for _, number, style in steps]
    put_with_bars(("", ">samples", ">share"), rows, shares, console)
    if samples["in"] != samples["rows"]:
        missing = f"{samples['in']:,} in, {samples['rows']:,} recorded"
        console.print(styled(f"{missing}: these differ, so the run is damaged", DROPPED))
    if exported is not None and not exported["is_current"]:
        console.print(f"exported by another policy than that in force: {visible(exported['policy'])}")


def _steps(summary: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Return the lines of the funnel: what it is, how many samples, the style of its bar."""
    samples, exported = summary["samples"], summary["exported"]
    steps = [(f"in {count(samples['shards'], 'shard')}", samples["in"], "")]
    for reason, number in samples["refused_by_reason"].items():
        steps.append((f"  refused: {words(reason)}", number, DROPPED))
    steps.append(("picture used", samples["ok"], ""))
    for reason, number in samples["texts_missing_by_reason"].items():
        steps.append((f"  no web text: {words(reason)}", number, QUIET))
    if summary["images_kept"] is not None:
        steps.append(("a text kept", summary["images_kept"], KEPT))
    if exported is not None:
        steps.append((f"exported, {count(exported['shards'], 'shard')}", exported["samples"], KEPT))
    return steps


def _show_policy(summary: Mapping[str, Any], console: Console) -> None:
    title("Verdicts", console)
    policy = summary["policy"]
    if policy is None:
        console.print("nothing was judged yet")
    else:
        console.print(f"policy {policy['policy']}: {visible(policy['words'])}")
    if summary["verdicts"]:
        show_verdicts(summary["verdicts"], console)


def _show_models(summary: Mapping[str, Any], console: Console) -> None:
    if not summary["models"]:
        return
    title("Models", console)
    for row in summary["models"]:
        origin = f", from {row['parent'][:DIGEST]}" if row["parent"] else ""
        line = f"{row['kind']} {row['model'][:DIGEST]}{origin}: {visible(row['path'])}"
        console.print(line, soft_wrap=True)
    if summary["calibration"]:
        _show_calibration(summary["calibration"], console)
    for digest in summary["uncalibrated"]:
        console.print(styled(f"filter {digest[:DIGEST]}: uncalibrated", DROPPED))


def _show_calibration(rows: Sequence[Row], console: Console) -> None:
    """Print how far each score can be trusted; in a wide terminal also at the usual threshold."""
    several = ["filter"] if len({row["model"] for row in rows}) > 1 else []
    at_half = [">precision at 0.5", ">recall at 0.5"] if is_wide(console) else []
    made = table(*several, "score", "against", ">AUROC", "95% interval", ">pairs", *at_half, "")
    for row in rows:
        area = "not measured" if row["auroc"] is None else f"{row['auroc']:.3f}"
        interval = f"{row['auroc_low']:.3f} to {row['auroc_high']:.3f}"
        half = [row[f"{name}_at_half"] for name in ("precision", "recall")] if at_half else []
        cells = [row["model"][:DIGEST]] if several else []
        cells += [row["score"].upper(), row["negatives"], area, interval, f"{row['positives']:,}"]
        cells += ["" if value is None else f"{value:.3f}" for value in half]
        add(made, *cells, styled("weak", DROPPED) if row["weak"] else "")
    put(made, console)


def _show_stages(summary: Mapping[str, Any], console: Console) -> None:
    stages = summary["stages"]
    if not stages:
        return
    title("Stages", console)
    put(_stage_table(stages, has_price=summary["spent"]["price_per_hour"] is not None), console)
    if len(stages) > _MOST_STAGES:
        console.print(f"and {len(stages) - _MOST_STAGES} before these")
    for row in stages:
        is_newest = row["start"] == stages[-1]["start"]
        if is_newest and row["status"] in ("withheld", "failed") and row["detail"]:
            console.print(f"{words(row['stage'])} {row['status']}: {visible(row['detail'])}")
    _show_spent(summary["spent"], console)


def _stage_table(stages: Sequence[Row], *, has_price: bool) -> Table:
    """Return the newest stages; which start they are of is told where there were several."""
    several = stages[0]["start"] != stages[-1]["start"]
    heads = ["stage", "status", ">time", ">done", ">speed"]
    made = table(*([">start"] if several else []), *heads, *([">cost"] if has_price else []))
    for row in stages[-_MOST_STAGES:]:
        style = "" if row["status"] in ("done", "running") else DROPPED
        add(
            made,
            *([str(row["start"])] if several else []),
            words(row["stage"]),
            styled(row["status"], style),
            "" if row["seconds"] is None else _time(row["seconds"]),
            "" if row["count"] is None else f"{row['count']:,}",
            "" if row["per_second"] is None else per_second_words(row["per_second"], row["unit"] or ""),
            *([_cost(row["cost"])] if has_price else []),
        )
    return made


def _show_spent(spent: Mapping[str, Any], console: Console) -> None:
    line = f"{_time(spent['seconds'])} in all"
    if spent["images_per_s"] is not None:
        line += f"; {per_second_words(spent['images_per_s'], 'images')} captioned and scored"
    console.print(line)
    if spent["price_per_hour"] is None:
        return
    line = f"{_cost(spent['cost'])} at {spent['price_per_hour']:,.2f} an hour"
    if spent["cost_per_million_images"] is not None:
        line += f"; {_cost(spent['cost_per_million_images'])} a million images captioned and scored"
    console.print(line)


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.1f} s"


def _cost(cost: float | None) -> str:
    """Return a price; what is not quite nothing is not called nothing."""
    if cost is None:
        return ""
    return "<0.01" if 0 < cost < 0.005 else f"{cost:,.2f}"
