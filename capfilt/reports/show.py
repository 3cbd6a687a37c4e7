"""A summary as people read it, in a terminal of any width, in a pipe, in ASCII.

What comes out of somebody's shard goes through `visible`, and no console here reads markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.records import SCORES, Measure
from capfilt.reports.rate import duration
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

Row = dict[str, Any]

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS = " .:-=+*#@"
_LONGEST_TEXT = 160
"""Characters of a caption that are shown."""
_MOST_STAGES = 12
"""Stages shown, the newest ones; a run that was started again and again has many."""
_DIGEST = 12
"""Characters of a digest that are shown."""


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Print a summary."""
    _show_rounds(summary["rounds"], console)
    _show_samples(summary["samples"], console)
    _show_policy(summary, console)
    _show_texts(summary, console)
    _show_scores(summary["scores"], console)
    _show_models(summary, console)
    _show_stages(summary["stages"], console)
    _show_examples(summary["examples"], console)
    if summary["advice"]:
        _title("Mind", console)
        for line in summary["advice"]:
            console.print(visible(line), soft_wrap=True)  # a command in it can be pasted
    console.print()


def show_verdicts(verdicts: Sequence[Row], console: Console) -> None:
    """Print how many texts of each source are kept, and why the others are not."""
    table = _table("source", "verdict", "reason", ">texts", ">share")
    total: dict[str, int] = {}
    for row in verdicts:
        total[row["source"]] = total.get(row["source"], 0) + row["pairs"]
    for row in verdicts:
        word = {True: "kept", False: "dropped", None: "not judged"}[row["keep"]]
        reason = _words(row["reason"]) if row["keep"] is False else ""
        share = row["pairs"] / total[row["source"]]
        _add(table, row["source"], word, reason, f"{row['pairs']:,}", f"{share:.1%}")
    console.print(table)


def histogram(counts: Sequence[int], *, ascii_only: bool = False) -> str:
    """Return counts as one line of bars, the highest one full; whatever is not empty is seen."""
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    most = max(counts, default=0)
    if most == 0:
        return blocks[0] * len(counts)
    return "".join(blocks[-(-count * (len(blocks) - 1) // most)] for count in counts)


# -- the parts, from the top of the page to its end


def _show_rounds(rounds: Sequence[Row], console: Console) -> None:
    if not rounds:
        return
    _title("Rounds", console)
    table = _table(">round", ">texts", ">kept", ">share", ">exported", "captioner", "filter", "both from")
    for row in rounds:
        share = f"{row['kept'] / row['captions']:.1%}" if row["captions"] else ""
        exported = "" if row["samples"] is None else f"{row['samples']:,}"
        models = [(row[name] or "")[:_DIGEST] for name in ("captioner", "filter", "init")]
        _add(table, str(row["round"]), f"{row['captions']:,}", f"{row['kept']:,}", share, exported, *models)
    console.print(table)
    console.print(f"what follows is round {rounds[0]['round']}; the others are runs of their own")


def _show_samples(samples: Mapping[str, Any], console: Console) -> None:
    _title("Samples", console)
    balance = "" if samples["in"] == samples["rows"] else "  (these differ: the run is damaged)"
    shards = _count(samples["shards"], "shard")
    console.print(f"{samples['in']:,} in, {samples['rows']:,} recorded, in {shards}{balance}")
    console.print(f"{samples['ok']:,} pictures used, {samples['refused']:,} refused")
    for title, reasons in (
        ("refused", samples["refused_by_reason"]),
        ("picture used, web text missing", samples["texts_missing_by_reason"]),
    ):
        for reason, count in reasons.items():
            console.print(f"    {title}: {count:,} {_words(reason)}")


def _show_policy(summary: Mapping[str, Any], console: Console) -> None:
    _title("Verdicts", console)
    policy = summary["policy"]
    if policy is None:
        console.print("nothing was judged yet")
    else:
        console.print(f"policy {policy['policy']}: {visible(policy['words'])}")
    if summary["verdicts"]:
        show_verdicts(summary["verdicts"], console)


def _show_texts(summary: Mapping[str, Any], console: Console) -> None:
    if not summary["texts"]:
        return
    _title("Texts", console)
    table = _table("source", ">texts", ">distinct", ">words: 10%", ">half", ">90%", ">most")
    for row in summary["texts"]:
        counts = (row["pairs"], row["distinct_texts"])
        words = (row["words_p10"], row["words_p50"], row["words_p90"], row["words_most"])
        _add(table, row["source"], *(f"{count:,}" for count in counts), *map(str, words))
    console.print(table)
    if summary["most_repeated"]:
        console.print("written most often:")
        for row in summary["most_repeated"]:
            console.print(f"    {row['pairs']:,} times: {_quoted(row['text'])}")


def _show_scores(scores: Sequence[Row], console: Console) -> None:
    if not scores:
        return
    _title("Scores", console)
    table = _table("score", "source", ">texts", ">10%", ">25%", ">half", ">75%", ">90%")
    for row in scores:
        values = (f"{row[name]:.2f}" for name in ("p10", "p25", "p50", "p75", "p90"))
        _add(table, Measure(row["score"], row["filter"]).words, row["source"], f"{row['pairs']:,}", *values)
    console.print(table)
    ascii_only = console.options.ascii_only
    for row in scores:
        drawn = row["histogram"]
        bars = histogram(drawn["pairs"], ascii_only=ascii_only)
        measure = Measure(row["score"], row["filter"])
        console.print(f"{measure.words} {row['source']:9} {drawn['low']:5.2f} |{bars}| {drawn['high']:.2f}")


def _show_models(summary: Mapping[str, Any], console: Console) -> None:
    if not summary["models"]:
        return
    _title("Models", console)
    for row in summary["models"]:
        console.print(f"{row['kind']} {row['model'][:_DIGEST]} {visible(row['path'])}", soft_wrap=True)
    if summary["calibration"]:
        several = len({row["model"] for row in summary["calibration"]}) > 1
        first = ["filter"] if several else []
        table = _table(*first, "score", "against", ">AUROC", "95% interval", ">pairs", "")
        for row in summary["calibration"]:
            area = "not measured" if row["auroc"] is None else f"{row['auroc']:.3f}"
            interval = f"{row['auroc_low']:.3f} to {row['auroc_high']:.3f}"
            weak = "weak" if row["weak"] else ""
            model = [row["model"][:_DIGEST]] if several else []
            cells = (row["score"].upper(), row["negatives"], area, interval)
            _add(table, *model, *cells, f"{row['positives']:,}", weak)
        console.print(table)
    for digest in summary["uncalibrated"]:
        console.print(f"filter {digest[:_DIGEST]}: uncalibrated")


def _show_stages(stages: Sequence[Row], console: Console) -> None:
    if not stages:
        return
    _title("Stages", console)
    table = _table(">start", "stage", "status", ">time", ">count", ">by second")
    for row in stages[-_MOST_STAGES:]:
        time = "" if row["seconds"] is None else duration(row["seconds"])
        count = "" if row["count"] is None else f"{row['count']:,}"
        rate = "" if row["per_second"] is None else f"{row['per_second']:.3g}"
        _add(table, str(row["start"]), _words(row["stage"]), row["status"], time, count, rate)
    console.print(table)
    if len(stages) > _MOST_STAGES:
        console.print(f"and {len(stages) - _MOST_STAGES} before these")
    for row in stages:
        is_newest = row["start"] == stages[-1]["start"]
        if is_newest and row["status"] in ("withheld", "failed") and row["detail"]:
            console.print(f"{_words(row['stage'])} {row['status']}: {visible(row['detail'])}")


def _show_examples(examples: Sequence[Row], console: Console) -> None:
    from rich.padding import Padding

    for keep, title in ((True, "Kept, for example"), (False, "Dropped, for example")):
        rows = [row for row in examples if row["keep"] is keep]
        if not rows:
            continue
        _title(title, console)
        for row in rows:
            columns = [name for name in row if name.partition("_")[0] in SCORES and row[name] is not None]
            scores = [f"{Measure.of_column(name).words} {row[name]:.2f}" for name in columns]
            why = [] if keep else [_words(row["reason"])]
            console.print(f"{row['source']}: {_quoted(row['text'])}")
            where = f"{visible(row['shard'], 40)}/{visible(row['key'], 40)}"
            console.print(Padding.indent(", ".join([*why, *scores, where]), 4))


# -- small things


def _title(text: str, console: Console) -> None:
    console.print()
    console.print(text, style="bold")


def _table(*titles: str) -> Table:
    """Return an empty table; a title that begins with > stands over numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        is_number = title.startswith(">")
        table.add_column(title.removeprefix(">"), justify="right" if is_number else "left", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(visible, cells))


def _quoted(text: str) -> str:
    return f'"{visible(text, _LONGEST_TEXT)}"'


def _words(name: str) -> str:
    return visible(name.replace("_", " "))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
