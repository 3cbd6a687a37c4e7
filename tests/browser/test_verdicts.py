"""Verdicts over arrays are those of the policy's own SQL, whatever the rules and the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.browser.columns import Columns
from capfilt.browser.shards import twins
from capfilt.browser.verdicts import Pairs, exported, judge, reason_of
from capfilt.provenance.policy import AtLeast, PerImage, Policy, Rescue, TopFraction

if TYPE_CHECKING:
    import pytest

    from capfilt.provenance.policy import Rule

OWN, SECOND = "f" * 64, "1a2b3c4d" + "0" * 56
RANKINGS = ("itm", "itc", "0.7*itm + 0.3*itc", f"0.5*{SECOND}:itc + 1.5*itm", f"{SECOND}:itc")

tenths = st.integers(0, 10).map(lambda n: n / 10)
scores = st.one_of(st.none(), tenths)
texts = st.sampled_from(["a dog", "a brown dog", "a cat"])
rows = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.booleans(), scores, tenths, scores, texts), max_size=25
)
rules: st.SearchStrategy[Rule] = st.one_of(
    st.builds(AtLeast, st.sampled_from(["itm", "itc"]), tenths),
    st.builds(lambda t: AtLeast("itc", t, filter=SECOND), tenths),
    st.builds(TopFraction, st.sampled_from([0.1, 0.29, 1 / 3, 0.5, 0.9, 1.0]), st.sampled_from(RANKINGS)),
    st.builds(Rescue, st.sampled_from(RANKINGS)),
    st.builds(PerImage, st.integers(1, 3), st.sampled_from(RANKINGS)),
)


def in_order(drawn: list[tuple[Any, ...]], names: list[int]) -> list[tuple[tuple[Any, ...], int]]:
    """Rows and their names by samples."""
    return sorted(zip(drawn, names, strict=True), key=lambda one: one[0][0])


def columns_of(drawn: list[tuple[Any, ...]], names: list[int]) -> Columns:
    """Pairs in the order of their samples, with pair_ids as they were drawn."""
    table = [(*row, name) for row, name in in_order(drawn, names)]

    def column(place: int, kind: Any) -> Any:
        return np.array([np.nan if row[place] is None else row[place] for row in table], kind)

    return Columns(
        numbers=np.arange(len(table)),
        sample=column(0, np.int64),
        high=column(7, np.uint64),
        low=np.zeros(len(table), np.uint64),
        is_web=column(1, np.bool_),
        is_blank=column(2, np.bool_),
        twin=twins(pa.array(column(6, object)), column(0, np.int64)),
        scores={
            (OWN, "itm"): column(3, np.float64),
            (OWN, "itc"): column(4, np.float64),
            (SECOND, "itc"): column(5, np.float64),
        },
        planted=np.full(len(table), -1, np.int16),
    )


def by_sql(policy: Policy, columns: Columns, texts: list[str]) -> list[str]:
    """What the policy's SQL says of the same pairs."""
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE scored (number BIGINT, pair_id VARCHAR, shard VARCHAR, key VARCHAR, "
            "source VARCHAR, text VARCHAR, itm DOUBLE, itc DOUBLE, itc_1a2b3c4d DOUBLE)"
        )
        values = []
        for row in range(len(columns)):
            scores = [None if np.isnan(v[row]) else float(v[row]) for v in columns.scores.values()]
            text = " \n" if columns.is_blank[row] else texts[row]
            source = "web" if columns.is_web[row] else "synthetic"
            key = str(columns.sample[row])
            values += [row, columns.pair_id(row), "shard", key, source, text, *scores]
        if values:
            marks = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?)"] * len(columns))
            connection.execute(f"INSERT INTO scored VALUES {marks}", values)
        rendered = policy.render(["number"])
        found = connection.execute(f"{rendered.sql} ORDER BY number", rendered.parameters).fetchall()
    return [reason for _, _, reason in found]


@settings(max_examples=100)
@given(drawn=rows, chain=st.lists(rules, max_size=4), data=st.data())
def test_verdicts_are_those_of_the_rendered_sql(
    drawn: list[tuple[Any, ...]], chain: list[Rule], data: st.DataObject
) -> None:
    names = data.draw(st.permutations(range(len(drawn))))
    columns = columns_of(drawn, list(names))
    policy = Policy(tuple(chain), OWN)
    verdicts = judge(policy, Pairs(columns, OWN, (OWN, SECOND)))
    reasons = by_sql(policy, columns, [row[6] for row, _ in in_order(drawn, list(names))])
    assert [reason_of(code) for code in verdicts.codes] == reasons
    assert verdicts.keep.tolist() == [reason == "kept" for reason in reasons]


def test_a_ranking_is_sorted_once_however_often_the_slider_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [(n // 2, n % 2 == 0, False, n / 20, n / 20, None, "a dog") for n in range(20)]
    columns = columns_of(drawn, [*range(20)])
    sorts = []

    def counting(real: Any) -> Any:
        def counted(*values: Any, **choices: Any) -> Any:
            sorts.append(1)
            return real(*values, **choices)

        return counted

    for name in ("argsort", "lexsort"):
        monkeypatch.setattr(np, name, counting(getattr(np, name)))
    pairs = Pairs(columns, OWN, (OWN,))
    for threshold in (0.1, 0.2, 0.3, 0.4):
        rules = (AtLeast("itm", threshold), TopFraction(0.5, "itm"), Rescue("itm"), PerImage(1, "itm"))
        judge(Policy(rules, OWN), pairs)
    assert len(sorts) == 4  # names, the ranking, the ranking by picture, and equal texts of a picture


def test_an_export_holds_a_sample_for_each_picture_that_keeps_a_wanted_text() -> None:
    drawn = [
        (sample, is_web, False, itm, 0, None, "a dog")
        for sample, is_web, itm in ((0, True, 0.9), (0, False, 0.9), (1, False, 0.9), (2, True, 0.1))
    ]
    columns = columns_of(drawn, [0, 1, 2, 3])
    verdicts = judge(Policy((AtLeast("itm", 0.5),), OWN), Pairs(columns, OWN, (OWN,)))
    counts = {texts: exported(verdicts, columns, texts) for texts in ("best", "all", "web", "synthetic")}
    assert counts == {"best": 2, "all": 2, "web": 1, "synthetic": 2}


def test_a_text_has_a_twin_where_its_own_picture_has_it_again_to_the_letter() -> None:
    told = [
        (0, "a dog"),
        (0, "a cat"),
        (0, "a dog"),
        (1, "a cat"),
        (1, "A cat"),
        (2, None),
        (2, None),
        (3, ""),
        (3, "a dog"),
        (3, ""),
        (3, "a dog"),
    ]
    found = twins(pa.array([text for _, text in told], pa.string()), np.array([sample for sample, _ in told]))
    assert (found >= 0).tolist() == [row in (0, 2, 7, 8, 9, 10) for row in range(len(told))]
    assert found[0] == found[2] == found[8] == found[10] != found[7] == found[9]
    assert twins(pa.array([], pa.string()), np.zeros(0, np.int64)).tolist() == []
