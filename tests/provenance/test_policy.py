from __future__ import annotations

import math
import random
from dataclasses import fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import duckdb
import provenance_rows as made
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.provenance.policy import (
    AtLeast,
    PerImage,
    Policy,
    Rescue,
    Rule,
    TopFraction,
    newest_policy,
    policies,
    write_policy,
)
from capfilt.records import SCORES, Measure, Reason, Scores
from capfilt.settings import Judge

if TYPE_CHECKING:
    from capfilt.provenance.rundir import RunDir

Row = dict[str, Any]
Verdicts = dict[str, tuple[bool, str]]


# -- the same policy twice: in SQL, and in plain Python that reads like the rule


OTHER, THIRD = "1a2b3c4d" + 56 * "0", "9" * 64
FURTHER = ("itc_1a2b3c4d", "itm_1a2b3c4d", "itm_99999999")
"""Columns of two further filters."""
SCORED = pa.schema(
    {
        **dict.fromkeys(("pair_id", "shard", "key", "source", "text"), pa.string()),
        **dict.fromkeys(("itc", "itm", "vqa", *FURTHER), pa.float64()),
    }
)


def in_sql(connection: duckdb.DuckDBPyConnection, policy: Policy, rows: list[Row]) -> Verdicts:
    connection.register("scored", pa.Table.from_pylist(rows, SCORED))
    rendered = policy.render()
    found = connection.execute(rendered.sql, rendered.parameters).fetchall()
    assert len(found) == len(rows)
    return {name: (keep, reason) for name, keep, reason in found}


def in_python(policy: Policy, rows: list[Row]) -> Verdicts:
    dropped: dict[str, Reason] = {}
    for row in rows:
        values = [row[measure.column] for measure in policy.measures]
        if row["text"] is None or not row["text"].strip():
            dropped[row["pair_id"]] = Reason.EMPTY_CAPTION
        elif any(value is None or not math.isfinite(value) for value in values):
            dropped[row["pair_id"]] = Reason.UNSCORED
    scored = [row for row in rows if row["pair_id"] not in dropped]
    for rule in policy.rules:
        survivors = [row for row in scored if row["pair_id"] not in dropped]
        dropped |= one_rule(rule, survivors, scored)
    return {r["pair_id"]: (r["pair_id"] not in dropped, dropped.get(r["pair_id"], Reason.KEPT)) for r in rows}


def value(row: Row, by: str) -> float:
    """What a ranking comes to for a row, read again from its text."""
    total = None
    for term in by.split(" + "):
        weight, _, name = term.rpartition("*")
        digest, _, score = name.rpartition(":")
        one = row[f"{score}_{digest[:8]}" if digest else score]
        one = float(weight) * one if weight else one
        total = one if total is None else total + one
    assert total is not None
    return float(total)


def one_rule(rule: Rule, survivors: list[Row], scored: list[Row]) -> dict[str, Reason]:
    if isinstance(rule, AtLeast):
        column = rule.score if rule.filter is None else f"{rule.score}_{rule.filter[:8]}"
        low = [row for row in survivors if row[column] < rule.threshold]
        return {row["pair_id"]: Reason.BELOW_THRESHOLD for row in low}

    def best(rows: list[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: (-value(row, rule.by), row["pair_id"]))

    if isinstance(rule, TopFraction):
        most = math.floor(Fraction(str(rule.fraction)) * len(scored))
        top = {row["pair_id"] for row in best(scored)[:most]}
        return {row["pair_id"]: Reason.BELOW_FRACTION for row in survivors if row["pair_id"] not in top}
    dropped: dict[str, Reason] = {}
    for image in {(row["shard"], row["key"]) for row in survivors}:
        mine = [row for row in survivors if (row["shard"], row["key"]) == image]
        if isinstance(rule, PerImage):
            kept: list[str] = []
            for row in best(mine):
                if len({*kept, row["text"]}) > rule.n:
                    break
                if row["text"] in kept:
                    dropped[row["pair_id"]] = Reason.REPEATED_TEXT
                kept.append(row["text"])
            dropped |= {row["pair_id"]: Reason.NOT_BEST_OF_IMAGE for row in best(mine)[len(kept) :]}
            continue
        written = best([row for row in mine if row["source"] == "synthetic"])
        if any(row["source"] == "web" for row in mine):
            dropped |= {row["pair_id"]: Reason.WEB_TEXT_KEPT for row in written}
        else:
            dropped |= {row["pair_id"]: Reason.NOT_BEST_OF_IMAGE for row in written[1:]}
    return dropped


# Few values, so that ties are common.
itc_values = st.sampled_from([-1.0, -0.25, 0.0, 0.25, 0.5, 1.0])
itm_values = st.sampled_from([0.0, 0.25, 0.5, 0.5000001, 0.75, 1.0])
score_names = st.sampled_from(
    ["itc", "itm", "vqa", f"{OTHER}:itc", f"itm+{OTHER}:itm", f"0.7 * itm + 0.3*{OTHER}:itc + {THIRD}:itm"]
)
rules = st.one_of(
    st.builds(AtLeast, st.just("itc"), itc_values),
    st.builds(AtLeast, st.sampled_from(["itm", "vqa"]), itm_values),
    st.builds(AtLeast, st.just("itc"), itc_values, st.just(""), st.just(OTHER)),
    st.builds(AtLeast, st.just("itm"), itm_values, st.just(""), st.sampled_from([OTHER, THIRD])),
    st.builds(TopFraction, st.sampled_from([0.01, 0.1, 0.29, 0.3, 0.5, 0.999, 1]), score_names),
    st.builds(Rescue, score_names),
    st.builds(PerImage, st.integers(1, 3), score_names),
)


@st.composite
def tables(draw: st.DrawFn, holes: bool = True) -> list[Row]:
    none = st.sampled_from([None, math.nan]) if holes else st.nothing()
    texts = st.sampled_from(
        ["a dog", "a  dog", "'; drop table scored", *([" \t\u3000", "", None] if holes else [])]
    )
    rows = []
    for i in range(draw(st.integers(0, 5))):
        web = ["web"] * draw(st.integers(0, 1))
        for source in web + ["synthetic"] * draw(st.integers(0, 3)):
            rows.append(
                {
                    "pair_id": f"{draw(st.integers(0, 10**6)):07d}-{len(rows)}",
                    "shard": f"s{i % 2}",
                    "key": f"k{i // 2}",
                    "source": source,
                    "text": draw(texts),
                    **{
                        name: draw((itc_values if name.startswith("itc") else itm_values) | none)
                        for name in ("itc", "itm", "vqa", *FURTHER)
                    },
                }
            )
    return rows


@pytest.fixture(scope="module")
def connection() -> Any:
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


@settings(max_examples=150)
@given(rows=tables(), chain=st.lists(rules, max_size=4))
def test_a_policy_in_sql_is_the_policy_in_plain_python(
    connection: duckdb.DuckDBPyConnection, rows: list[Row], chain: list[Rule]
) -> None:
    policy = Policy(tuple(chain))
    assert in_sql(connection, policy, rows) == in_python(policy, rows)


@settings(max_examples=40)
@given(rows=tables(), chain=st.lists(rules, max_size=4), seed=st.integers())
def test_the_order_of_rows_does_not_matter(
    connection: duckdb.DuckDBPyConnection, rows: list[Row], chain: list[Rule], seed: int
) -> None:
    policy = Policy(tuple(chain))
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert in_sql(connection, policy, rows) == in_sql(connection, policy, shuffled)


@settings(max_examples=40)
@given(rows=tables(), low=itm_values, high=itm_values)
def test_raising_the_threshold_never_keeps_a_dropped_caption(
    connection: duckdb.DuckDBPyConnection, rows: list[Row], low: float, high: float
) -> None:
    assume(low <= high)
    before, after = (in_sql(connection, Policy((AtLeast("itm", t),)), rows) for t in (low, high))
    assert all(before[name][0] for name, (keep, _) in after.items() if keep)


@settings(max_examples=40)
@given(rows=tables(), chain=st.lists(rules, max_size=3), n=st.integers(1, 3))
def test_per_image_never_keeps_more_than_n_texts_of_an_image_nor_one_twice_nor_drops_one_without_need(
    connection: duckdb.DuckDBPyConnection, rows: list[Row], chain: list[Rule], n: int
) -> None:
    before = in_sql(connection, Policy((*chain, AtLeast("itm", 0))), rows)
    after = in_sql(connection, Policy((*chain, PerImage(n, "itm"))), rows)
    for image in {(row["shard"], row["key"]) for row in rows}:
        mine = [row["pair_id"] for row in rows if (row["shard"], row["key"]) == image]
        texts = {row["pair_id"]: row["text"] for row in rows}
        kept_before, kept_after = (
            [texts[name] for name in mine if verdicts[name][0]] for verdicts in (before, after)
        )
        assert len(kept_after) == len(set(kept_after)) == min(n, len(set(kept_before)))


@settings(max_examples=40)
@given(rows=tables(holes=False), fraction=st.sampled_from([0.01, 0.1, 0.29, 0.3, 0.5, 1.0]))
def test_a_fraction_keeps_that_share_and_none_below_a_dropped_one(
    connection: duckdb.DuckDBPyConnection, rows: list[Row], fraction: float
) -> None:
    verdicts = in_sql(connection, Policy((TopFraction(fraction, "itc"),)), rows)
    kept = [row["itc"] for row in rows if verdicts[row["pair_id"]][0]]
    dropped = [row["itc"] for row in rows if not verdicts[row["pair_id"]][0]]
    assert len(kept) == math.floor(Fraction(str(fraction)) * len(rows))
    assert not kept or not dropped or min(kept) >= max(dropped)


# -- hand-worked cases


def pair(name: str, key: str, source: str, itm: float | None, text: str = "a dog") -> Row:
    return {
        "pair_id": name,
        "shard": "s",
        "key": key,
        "source": source,
        "text": text,
        **dict.fromkeys(("itc", "vqa", *FURTHER)),
        "itm": itm,
    }


def test_a_synthetic_text_rescues_only_a_sample_whose_web_text_fails(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = [
        pair("good-web", "good", "web", 0.6),
        pair("good-best", "good", "synthetic", 0.9),
        pair("bad-web", "bad", "web", 0.1),
        pair("bad-second", "bad", "synthetic", 0.7),
        pair("bad-best", "bad", "synthetic", 0.8),
        pair("bad-low", "bad", "synthetic", 0.2),
        pair("lost-web", "lost", "web", 0.1),
        pair("lost-low", "lost", "synthetic", 0.2),
        pair("blank-web", "blank", "web", 0.9, text="  "),
        pair("blank-unscored", "blank", "synthetic", None),
        pair("blank-best", "blank", "synthetic", 0.5),
    ]
    assert in_sql(connection, Policy((AtLeast("itm", 0.5), Rescue("itm"))), rows) == {
        "good-web": (True, Reason.KEPT),
        "good-best": (False, Reason.WEB_TEXT_KEPT),
        "bad-web": (False, Reason.BELOW_THRESHOLD),
        "bad-second": (False, Reason.NOT_BEST_OF_IMAGE),
        "bad-best": (True, Reason.KEPT),
        "bad-low": (False, Reason.BELOW_THRESHOLD),
        "lost-web": (False, Reason.BELOW_THRESHOLD),
        "lost-low": (False, Reason.BELOW_THRESHOLD),
        "blank-web": (False, Reason.EMPTY_CAPTION),
        "blank-unscored": (False, Reason.UNSCORED),
        "blank-best": (True, Reason.KEPT),
    }


def test_of_two_captions_with_one_text_the_better_placed_stands_for_both(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = [
        # The first draw twice, with scores that differ in their last digits.
        pair("a-first", "a", "synthetic", 0.9, text="a brown dog"),
        pair("a-again", "a", "synthetic", math.nextafter(0.9, 0), text="a brown dog"),
        pair("a-second", "a", "synthetic", 0.8, text="a dog"),
        pair("a-web", "a", "web", 0.7, text="a dog"),
        pair("a-third", "a", "synthetic", 0.6, text="an animal"),
        pair("a-late", "a", "synthetic", 0.5, text="a brown dog"),
        # The web text is the better placed one, and another picture's texts do not count.
        pair("b-web", "b", "web", 0.9, text="a brown dog"),
        pair("b-same", "b", "synthetic", 0.9 - 1e-9, text="a brown dog"),
        pair("b-case", "b", "synthetic", 0.4, text="A brown dog"),
    ]
    assert in_sql(connection, Policy((PerImage(2, "itm"),)), rows) == {
        "a-first": (True, Reason.KEPT),
        "a-again": (False, Reason.REPEATED_TEXT),
        "a-second": (True, Reason.KEPT),
        "a-web": (False, Reason.REPEATED_TEXT),
        "a-third": (False, Reason.NOT_BEST_OF_IMAGE),
        "a-late": (False, Reason.NOT_BEST_OF_IMAGE),
        "b-web": (True, Reason.KEPT),
        "b-same": (False, Reason.REPEATED_TEXT),
        "b-case": (True, Reason.KEPT),
    }


def test_without_rules_every_caption_with_words_is_kept_scored_or_not(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = [pair("a", "k", "web", None), pair("b", "k", "synthetic", None, text="\n")]
    verdicts = in_sql(connection, Policy(), rows)
    assert verdicts == {"a": (True, Reason.KEPT), "b": (False, Reason.EMPTY_CAPTION)}


def test_a_caption_is_empty_where_python_strips_it_to_nothing(connection: duckdb.DuckDBPyConnection) -> None:
    marks = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000] + ["\ufeff", "\U0001f415"]
    rows = [pair(f"{ord(mark):06x}", "k", "web", None, text=mark) for mark in marks]
    verdicts = in_sql(connection, Policy(), rows)
    assert {name for name, (keep, _) in verdicts.items() if not keep} == {
        f"{ord(mark):06x}" for mark in marks if mark.isspace()
    }


def test_a_threshold_is_met_by_its_own_value(connection: duckdb.DuckDBPyConnection) -> None:
    rows = [pair("at", "k", "web", 0.1 + 0.2), pair("below", "k", "web", math.nextafter(0.1 + 0.2, 0))]
    verdicts = in_sql(connection, Policy((AtLeast("itm", 0.1 + 0.2),)), rows)
    assert [verdicts[name][0] for name in ("at", "below")] == [True, False]


# -- what is refused, said and stored


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: AtLeast("itm", math.nan), "judge.itm is nan; ITM is a probability."),
        (lambda: AtLeast("itm", 1.5), "judge.itm is 1.5; ITM is a probability."),
        (lambda: AtLeast("itm", -0.1), "judge.itm is -0.1; ITM is a probability."),
        (lambda: AtLeast("itc", -1.5), "judge.itc is -1.5; ITC is a cosine."),
        (lambda: AtLeast("itc", math.inf), "judge.itc is inf; ITC is a cosine."),
        (lambda: TopFraction(0), "judge.fraction is 0.0; it is the share of all captions to keep."),
        (lambda: TopFraction(math.nan), "judge.fraction is nan; it is the share of all captions to keep."),
        (lambda: PerImage(0), "judge.per_image is 0; it is how many captions an image may keep."),
        (lambda: Rescue("cider"), "judge.by is 'cider'; the scores are itc, itm and vqa."),
        (lambda: AtLeast("vqa", 1.5), "judge.vqa is 1.5; VQA is a probability."),
        (
            lambda: AtLeast("itc", 0, filter="a' OR '"),
            "judge.score is \"a' OR '\"; a further filter is named",
        ),
        (lambda: PerImage(1, "0*itm"), "judge.by is '0*itm', which is no score and no sum of scores"),
        (lambda: PerImage(1, "itm+"), "judge.by is 'itm+', which is no score"),
        (lambda: PerImage(1, "itm + itm"), "judge.by is 'itm + itm': a score stands in it twice"),
        (lambda: AtLeast("1; drop table pairs", 0), "judge.score is '1; drop table pairs';"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name(make: Any, what: str) -> None:
    with pytest.raises(CapfiltError) as refused:
        make()
    assert refused.value.what.startswith(what)
    assert refused.value.fix


@given(chain=st.lists(rules, max_size=4), digest=st.none() | st.text(max_size=5))
def test_no_value_stands_in_the_sql_and_every_placeholder_has_one(
    chain: list[Rule], digest: str | None
) -> None:
    rendered = Policy(tuple(chain), digest).render()
    placeholders = {word.split(")")[0].split()[0] for word in rendered.sql.split("$")[1:]}
    assert placeholders == set(rendered.parameters)
    for value in rendered.parameters.values():
        assert f"< {value}" not in rendered.sql
        assert f"> {value} THEN" not in rendered.sql or value == 1


@given(chain=st.lists(rules, max_size=4), digest=st.none() | st.just("f" * 64))
def test_a_policy_comes_back_from_its_record(chain: list[Rule], digest: str | None) -> None:
    policy = Policy(tuple(chain), digest)
    assert Policy.read(policy.record()) == policy
    assert Policy.read(policy.record()).digest == policy.digest


def test_a_policy_is_said_in_words() -> None:
    chosen = AtLeast("itm", 0.384, "auto:precision=0.95 at noise rate 0.5")
    policy = Policy((chosen, TopFraction(0.3, "itc"), Rescue(), PerImage(1)))
    assert policy.words == (
        "ITM of at least 0.384 (auto:precision=0.95 at noise rate 0.5); "
        "among the best 30% of all scored captions by ITC; "
        "a synthetic text only where no web text is kept, the best one by ITM; "
        "at most 1 an image, the best by ITM"
    )
    assert policy.measures == (Measure("itm"), Measure("itc"))
    assert policy.further_filters == ()


def test_a_policy_names_the_further_filters_that_it_reads() -> None:
    mean = PerImage(2, f"itm+{OTHER}:itm")
    policy = Policy((AtLeast("itm", 0.5), AtLeast("itc", 0.25, "auto:recall=0.9", OTHER), mean), "f" * 64)
    assert policy.words == (
        "ITM of at least 0.5; ITC by filter 1a2b3c4d of at least 0.25 (auto:recall=0.9); "
        "at most 2 an image, the best by ITM + ITM by filter 1a2b3c4d"
    )
    assert PerImage(2, f"0.7*itm+0.3*{THIRD}:itc").words.endswith("by 0.7 ITM + 0.3 ITC by filter 99999999")
    assert [measure.column for measure in policy.measures] == ["itm", "itc_1a2b3c4d", "itm_1a2b3c4d"]
    assert policy.further_filters == (OTHER,)


def test_one_ranking_has_one_digest_however_it_is_typed() -> None:
    digests = {Policy((PerImage(1, by),)).digest for by in ("itm", " itm ", "1*itm", "0.3 * itm")}
    assert digests == {Policy((PerImage(1),)).digest}
    sums = {Policy((PerImage(1, by),)).digest for by in ("0.70*itm+0.3*itc", "0.7*itm + .3*itc")}
    assert len(sums) == 1


def test_a_policy_of_before_further_filters_reads_and_keeps_its_digest() -> None:
    record = {
        "rules": [
            {"kind": "at_least", "score": "itm", "threshold": 0.5, "chosen": ""},
            {"kind": "per_image", "n": 1, "by": "itm"},
        ],
        "filter": "f" * 64,
    }
    policy = Policy.read(record)
    assert policy == Policy((AtLeast("itm", 0.5), PerImage(1)), "f" * 64)
    assert policy.record() == record
    assert policy.digest == digest_of(record)


def test_a_rule_that_says_more_than_this_version_knows_is_not_read_by_half() -> None:
    row = {"kind": "per_image", "n": 1, "by": "itm", "unless": "tuesday"}
    with pytest.raises(KeyError, match="unless"):
        Policy.read({"rules": [row], "filter": None})


def test_one_threshold_has_one_digest_however_it_is_written() -> None:
    digests = {Policy((AtLeast("itm", value),)).digest for value in (0, 0.0, -0.0)}
    assert len(digests) == 1
    assert Policy((AtLeast("itm", 0.1),)).digest not in digests


def test_a_changed_policy_gets_the_next_number_and_the_same_one_gets_none(run: RunDir) -> None:
    first, second = (Policy((AtLeast("itm", value),)) for value in (0.5, 0.6))
    assert newest_policy(run) is None
    assert [write_policy(run, policy) for policy in (first, first, second, second, first)] == [1, 1, 2, 2, 3]
    assert policies(run) == [(1, first), (2, second), (3, first)]
    assert newest_policy(run) == (3, first)
    assert sorted(path.name for path in run.policies.iterdir()) == ["0001.json", "0002.json", "0003.json"]


def test_an_older_policy_file_is_never_written_again(run: RunDir) -> None:
    write_policy(run, Policy())
    before = (run.policies / "0001.json").read_bytes()
    write_policy(run, Policy((Rescue(),)))
    assert (run.policies / "0001.json").read_bytes() == before


def test_two_processes_never_take_one_number(run: RunDir) -> None:
    processes = [made.start("judge", run.path, 40) for _ in range(2)]
    numbers = [[int(line) for line in process.communicate()[0].split()] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    stored = dict(policies(run))
    assert sorted(stored) == list(range(1, len(stored) + 1))
    for taken in numbers:
        thresholds = [rule.threshold for number in taken for rule in stored[number].rules]
        assert thresholds == [i / 1000 for i in range(40)]


def test_a_policy_of_a_later_version_is_refused_with_its_mend(run: RunDir) -> None:
    write_policy(run, Policy())
    (run.policies / "0002.json").write_text('{"rules": [{"kind": "astrology"}], "filter": null}')
    with pytest.raises(CapfiltError, match=r"0002\.json is no policy of this version"):
        newest_policy(run)


# -- the table of scores


def test_every_score_has_its_scale_and_its_setting() -> None:
    assert [field.name for field in fields(Scores)] == list(SCORES)
    assert set(SCORES) <= set(Judge.model_fields)
    assert Scores(itm=0.0, vqa=1.0).measured() == {"itm": 0.0, "vqa": 1.0}
    assert {name: scale.is_probability for name, scale in SCORES.items()} == {
        "itc": False,
        "itm": True,
        "vqa": True,
    }
