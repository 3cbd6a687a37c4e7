"""A selection as SQL over the rows in memory: which pictures, in which order, and their cards.

Names of columns come from the store, never from a selection; every value of one is a parameter.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from capfilt.browser.cards import Card, Text
from capfilt.browser.selection import INPUT_ORDER, KEPT, RANDOM_ORDER, UNLABELLED
from capfilt.browser.shards import ROW_BITS
from capfilt.browser.verdicts import CODE, reason_of
from capfilt.errors import CapfiltError
from capfilt.records import Reason, Source, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.browser.columns import Columns
    from capfilt.browser.said import Labels
    from capfilt.browser.selection import Selection
    from capfilt.browser.store import Store
    from capfilt.browser.verdicts import Verdicts

MOST_ROWS = 500
"""Pictures of one page."""
_ROUNDS = 4
# A Feistel network of 32-bit halves: it gives every number a place of its own, and no product overflows.
_ROUND = """
    SELECT * REPLACE (narrow AS wide, xor(wide, ((narrow * {factor} + {key}) >> 15) & 4294967295) AS narrow)
    FROM ({source})
"""
_CARDS = """
    SELECT sample, key, is_ok, refusal, width, height FROM samples
    WHERE sample IN (SELECT unnest($page))
"""
_TEXTS = """
    SELECT sample, number, is_web, candidate, text, if(is_web, kind, NULL) {scores}
    FROM pairs LEFT JOIN planted USING (sample)
    WHERE sample IN (SELECT unnest($page)) ORDER BY sample, is_web DESC, candidate, number
"""


@dataclass
class Asked:
    """A selection's conditions as SQL, and their values."""

    of_texts: list[str] = field(default_factory=list)
    """Over pairs, labels and verdicts; a text must meet all of them."""
    of_samples: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    joins: str = ""
    reads_verdicts: bool = False
    reads_samples: bool = False
    """Whether a condition of samples is more than which shard they are of."""

    def value(self, value: object) -> str:
        """Return a placeholder for a value."""
        name = f"value_{len(self.values)}"
        self.values[name] = value
        return f"${name}"

    def used(self, sql: str) -> dict[str, Any]:
        """Return the values that a query names; DuckDB refuses others."""
        named = set(re.findall(r"\$(\w+)", sql))
        return {name: value for name, value in self.values.items() if name in named}


def asked(selection: Selection, store: Store, columns: dict[str, str | None]) -> Asked:
    """Return the conditions of a selection; `columns` are the store's columns by the names of a selection."""
    found = Asked()
    if selection.shard is not None:
        base = _base_of(selection.shard, store)
        ends = (found.value(base), found.value(base + (1 << ROW_BITS)))
        found.of_samples.append(f"sample >= {ends[0]} AND sample < {ends[1]}")
    if selection.source is not None:
        found.of_texts.append(f"is_web = {found.value(selection.source == Source.WEB.value)}")
    for one in selection.ranges:
        column = _column(one.column, columns)
        for bound, sign in ((one.low, ">="), (one.high, "<=")):
            if bound is not None:
                found.of_texts.append(f"{column} {sign} {found.value(float(bound))}")
        if one.low is None and one.high is None:  # whatever it is, there must be one
            found.of_texts.append(f"{column} IS NOT NULL")
    for word in dict.fromkeys(selection.words.split()):
        part = found.value(word)
        found.of_texts.append(f"contains(lower(text), lower({part}))")
        found.of_texts.append(f"regexp_matches(lower(text), {found.value(whole_word(word))})")
    if selection.substring:
        found.of_texts.append(f"contains(lower(text), lower({found.value(selection.substring)}))")
    _ask_verdict(selection, found)
    if selection.label is not None:
        found.joins += " LEFT JOIN labels USING (number)"
        is_none = selection.label == UNLABELLED
        found.of_texts.append("verdict IS NULL" if is_none else f"verdict = {found.value(selection.label)}")
    return found


def _ask_verdict(selection: Selection, found: Asked) -> None:
    reasons = [reason.value for reason in Reason]
    if selection.reason is not None and selection.reason not in reasons:
        found.of_samples.append(f"refusal = {found.value(selection.reason)}")
        found.reads_samples = True
    elif selection.reason is not None:
        found.of_texts.append(f"code = {found.value(CODE[Reason(selection.reason)])}")
    if selection.verdict is not None:
        sign = "=" if selection.verdict == KEPT else "<>"
        found.of_texts.append(f"code {sign} {found.value(CODE[Reason.KEPT])}")
    found.reads_verdicts = any(one.startswith("code ") for one in found.of_texts)


def whole_word(word: str) -> str:
    """Return a regular expression that finds a word, in small letters, where it stands alone.

    An end that is no letter with a case and no digit may touch others: scripts that write no spaces have
    words all the same.
    """
    # Letter by letter, as DuckDB does: Python has another sigma for the end of a word.
    small = "".join(c.lower() if len(c.lower()) == 1 else c for c in word)
    escaped = "".join(c if c.isalnum() or ord(c) > 127 else f"\\x{{{ord(c):x}}}" for c in small)
    before = r"(?:^|[^\p{L}\p{N}_])" if _is_closed(word[0]) else ""
    after = r"(?:$|[^\p{L}\p{N}_])" if _is_closed(word[-1]) else ""
    return f"{before}{escaped}{after}"


def _is_closed(character: str) -> bool:
    return character.isdigit() or character.lower() != character.upper()


def _base_of(name: str, store: Store) -> int:
    for shard in store.shards.values():
        if shard.name == name:
            return shard.base
    raise CapfiltError(f"there is no shard {name!r}", fix="name one that is committed")


def _column(name: str, columns: dict[str, str | None]) -> str:
    if name not in columns:
        raise CapfiltError(
            f"no pair has a score {name!r}",
            fix=f"name one of {', '.join(columns)}" if columns else "score the run first",
        )
    return columns[name] or "NULL::DOUBLE"


@dataclass(frozen=True)
class Page:
    """What a page of the grid is made from."""

    store: Store
    columns: dict[str, str | None]
    """Columns of the store by the names that people see; the best score first."""
    verdict_table: str | None
    """Table of `number` and `code` where the selection reads them."""
    labels: Labels


def counted_samples(selection: Selection, found: Asked, page: Page) -> tuple[int, int] | None:
    """Return how many pictures and texts a selection fits, where that needs no text: None where it does."""
    if found.of_texts:
        return None
    if not found.reads_samples:
        shards = [one for one in list(page.store.shards.values()) if selection.shard in (None, one.name)]
        texts = sum(one.manifest["rows"].get("captions", 0) for one in shards)
        return sum(one.manifest["samples_in"] for one in shards), texts
    where = _where(found.of_samples)
    sql = (
        f"SELECT count(*), (SELECT count(*) FROM pairs SEMI JOIN (FROM samples {where}) USING (sample)) "
        f"FROM samples {where}"
    )
    [(pictures, texts)] = page.store.rows(sql, found.used(sql))
    return pictures, texts


def page_of(
    selection: Selection, page: Page, offset: int, limit: int, known: tuple[int, int] | None
) -> tuple[list[int], tuple[int, int]]:
    """Return the numbers of the samples of one page in order, and how many pictures and texts fit in all.

    `known` are the latter, where they were counted before.
    """
    found = asked(selection, page.store, page.columns)
    known = known or counted_samples(selection, found, page)
    pictures = _ordered(selection, found, page)
    direction = "DESC" if selection.descending else "ASC"
    orders = {INPUT_ORDER: "sample", RANDOM_ORDER: "place"}
    order = orders.get(selection.order, f"best {direction} NULLS LAST, sample")
    if known is None:  # counted on the way
        sql = (
            f"WITH found AS MATERIALIZED ({pictures}), counted AS ("
            "SELECT count(*) AS pictures, coalesce(sum(texts), 0)::BIGINT AS texts FROM found) "
            "SELECT pictures, texts, (SELECT list(sample) FROM "
            f"(SELECT sample FROM found ORDER BY {order} LIMIT $limit OFFSET $offset)) FROM counted"
        )
        values = found.used(sql) | {"limit": limit, "offset": offset}
        [(count, texts, samples)] = page.store.rows(sql, values)
        return samples or [], (count, texts)
    sql = f"SELECT sample FROM ({pictures}) ORDER BY {order} LIMIT $limit OFFSET $offset"
    rows = page.store.rows(sql, found.used(sql) | {"limit": limit, "offset": offset})
    return [row[0] for row in rows], known


def _ordered(selection: Selection, found: Asked, page: Page) -> str:
    """Return the SELECT of the pictures that fit, with what they are ordered by."""
    best, score = "max" if selection.descending else "min", None
    if selection.order not in (INPUT_ORDER, RANDOM_ORDER):
        score = _column(selection.order, page.columns)
    if found.of_texts:
        pictures = _pictures(found, page, f"{best}({score}) AS best" if score is not None else None)
    else:
        pictures = f"SELECT sample FROM samples {_where(found.of_samples)}"
        if score is not None:
            scores = f"SELECT sample, {best}({score}) AS best FROM pairs GROUP BY sample"
            pictures = f"SELECT sample, best FROM ({pictures}) LEFT JOIN ({scores}) USING (sample)"
    return shuffled(pictures, selection.seed) if selection.order == RANDOM_ORDER else pictures


def _pictures(found: Asked, page: Page, best: str | None) -> str:
    """Return the SELECT of the pictures of which a text meets the conditions."""
    joins = found.joins
    if found.reads_verdicts:
        joins += f" JOIN {page.verdict_table} USING (number)"
    more = f", {best}" if best else ""
    where = _where(found.of_texts)
    texts = f"SELECT sample, count(*) AS texts{more} FROM pairs{joins} {where} GROUP BY sample"
    if not found.of_samples:
        return texts
    samples = f"FROM samples {_where(found.of_samples)}"
    return f"SELECT found.* FROM ({texts}) AS found SEMI JOIN ({samples}) USING (sample)"


def shuffled(pictures: str, seed: int) -> str:
    """Return the SELECT of pictures with a `place` that a seed draws, the same one for ever."""
    keys = hashlib.sha256(str(seed).encode()).digest()
    source = (
        f"SELECT *, (sample >> {ROW_BITS})::UBIGINT AS wide, (sample & 4294967295)::UBIGINT AS narrow "
        f"FROM ({pictures})"
    )
    for number in range(_ROUNDS):
        factor, key = (int.from_bytes(keys[at : at + 4], "big") for at in (8 * number, 8 * number + 4))
        source = _ROUND.format(factor=factor | 1, key=key, source=source)
    return f"SELECT *, (wide << {ROW_BITS}) | narrow AS place FROM ({source})"


def cards(
    samples: Sequence[int], selection: Selection, page: Page, verdicts: Verdicts | None, rows: Columns
) -> list[Card]:
    """Return the cards of some samples, in their order; `rows` are what was judged, theirs among them."""
    store = page.store
    if not samples:
        return []
    found = {row[0]: row for row in store.rows(_CARDS, {"page": list(samples)})}
    texts: dict[int, list[Text]] = {}
    chosen = _selected(samples, selection, page)
    scores = "".join(f", {column or 'NULL'}" for column in page.columns.values())
    for sample, number, is_web, candidate, text, kind, *values in store.rows(
        _TEXTS.format(scores=scores), {"page": list(samples)}
    ):
        row = rows.row(number, sample)
        code = int(verdicts.codes[row]) if verdicts is not None else None
        name = rows.pair_id(row)
        texts.setdefault(sample, []).append(
            Text(
                pair_id=name,
                source=(Source.WEB if is_web else Source.SYNTHETIC).value,
                candidate=candidate,
                text=text or "",
                scores=dict(zip(page.columns, values, strict=True)),
                keep=None if code is None else code == CODE[Reason.KEPT],
                reason=None if code is None else reason_of(code),
                label=page.labels.verdict(name, text),
                planted=kind,
                is_selected=chosen is None or number in chosen,
            )
        )
    return [
        Card(
            shard=store.shards[sample >> ROW_BITS].name,
            key=key,
            width=width,
            height=height,
            status=(Status.OK if is_ok else Status.REFUSED).value,
            refusal=refusal,
            texts=texts.get(sample, []),
        )
        for sample, key, is_ok, refusal, width, height in (found[s] for s in samples if s in found)
    ]


def _selected(samples: Sequence[int], selection: Selection, page: Page) -> set[int] | None:
    """Return which texts of some samples meet what is asked of texts; None where nothing is."""
    found = asked(selection, page.store, page.columns)
    if not found.of_texts:
        return None
    joins = found.joins
    if found.reads_verdicts:
        joins += f" JOIN {page.verdict_table} USING (number)"
    sql = f"SELECT number FROM pairs{joins} {_where([*found.of_texts, 'sample IN (SELECT unnest($page))'])}"
    return {row[0] for row in page.store.rows(sql, found.used(sql) | {"page": list(samples)})}


def checked(offset: int, limit: int) -> tuple[int, int]:
    """Return a page's place, refused where it is none."""
    if offset < 0 or not 1 <= limit <= MOST_ROWS:
        raise CapfiltError(
            f"a page of {limit} pictures from {offset} on", fix=f"ask for 1 to {MOST_ROWS}, from 0 on"
        )
    return offset, limit


def _where(conditions: Sequence[str]) -> str:
    return f"WHERE {' AND '.join(f'({one})' for one in conditions)}" if conditions else ""
