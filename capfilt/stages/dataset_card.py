"""The card of an export: counts, models, policy, licences, and what is known against it.

Words from the web stand in it (licences, model paths), so they are escaped: they are data, not markup.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from capfilt import __version__

if TYPE_CHECKING:
    from collections import Counter

    import duckdb

    from capfilt.provenance.policy import Policy
    from capfilt.settings import Export

_TEXTS = {
    "best": "the best kept text of each image",
    "all": "all kept texts of each image: the best in KEY.txt, all of them in KEY.json",
    "web": "kept web texts only",
    "synthetic": "the best kept synthetic text of each image",
}


def dataset_card(
    catalog: duckdb.DuckDBPyConnection,
    policy: Policy,
    export: Export,
    texts: Counter[str],
    licences: Counter[str],
    weak: list[str],
) -> str:
    """Return the card as Markdown; it holds no clock time, so that equal exports have equal bytes."""
    samples = sum(licences.values())
    lines = [
        "# A bootstrapped image-text dataset",
        "",
        f"Made by capfilt {__version__} (CapFilt; BLIP, section 3.3): WebDataset tars of KEY.jpg (or .png, "
        ".webp, ...), KEY.txt and KEY.json. Image bytes are those of the input.",
        "",
        f"**{samples} samples**, {_TEXTS[export.texts]}: "
        + (", ".join(f"{count} {source}" for source, count in sorted(texts.items(), reverse=True)) or "none")
        + ".",
        "",
        "## Policy",
        "",
        f"Kept: {policy.words}.",
        "",
        f"`{policy.digest}`; the rule is `policy.json`, the verdict on every pair, dropped ones included, is "
        "`verdicts.parquet`.",
        "",
        *_weakness(weak),
        *_table("From samples to pairs", ("what", "count"), _funnel(catalog)),
        *_table("Models", ("kind", "weights", "started from"), _models(catalog)),
        *_table(
            "Calibration on held-out clean pairs",
            ("score", "against", "pairs", "AUROC", "95% interval"),
            _calibration(catalog),
        ),
        *_table(
            "Licences found in the metadata",
            ("licence", "samples"),
            [(_plain(name) or "(none given)", str(count)) for name, count in sorted(licences.items())],
        ),
        "A caption that was written by a model is marked `synthetic` in KEY.json. Licences are those of the "
        "pictures' publishers, as the metadata names them; nobody checked them.",
        "",
    ]
    return "\n".join(lines)


def _weakness(weak: list[str]) -> list[str]:
    if not weak:
        return []
    return [
        f"> **Weak filter.** The policy reads {' and '.join(weak)}, which on held-out clean pairs is no "
        "better than chance (see the calibration below). This export was asked for all the same.",
        "",
    ]


def _funnel(catalog: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    rows = catalog.execute(
        "SELECT 'samples ' || status || coalesce(', ' || reason, ''), count(*) FROM samples GROUP BY 1 "
        "UNION ALL SELECT source || ' captions ' || CASE WHEN keep THEN 'kept' ELSE 'dropped, ' || reason END"
        ", count(*) FROM pairs GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return [(str(what), str(count)) for what, count in rows]


def _models(catalog: duckdb.DuckDBPyConnection) -> list[tuple[str, str, str]]:
    rows = catalog.execute("SELECT kind, model, parent FROM models ORDER BY kind, model").fetchall()
    return [(kind, f"`{model}`", f"`{parent}`" if parent else "scratch") for kind, model, parent in rows]


def _calibration(catalog: duckdb.DuckDBPyConnection) -> list[tuple[str, ...]]:
    rows = catalog.execute(
        "SELECT score, negatives, positives, auroc, auroc_low, auroc_high FROM calibration ORDER BY ALL"
    ).fetchall()
    return [
        (
            score.upper(),
            f"{negatives} captions",
            str(positives),
            "not measured" if area is None else f"{area:.3f}",
            f"{low:.3f} to {high:.3f}",
        )
        for score, negatives, positives, area, low, high in rows
    ]


def _table(title: str, head: tuple[str, ...], rows: list[Any]) -> list[str]:
    if not rows:
        return []
    line = "| " + " | ".join(head) + " |"
    rule = "|" + " --- |" * len(head)
    return [f"## {title}", "", line, rule, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _plain(text: str) -> str:
    """Return a stranger's text so that Markdown and a terminal show it and do nothing else."""
    visible = json.dumps(text, ensure_ascii=True)[1:-1].replace('\\"', '"')
    return re.sub(r"([|<>`*_\[\]()#!&\\])", r"\\\1", visible)
