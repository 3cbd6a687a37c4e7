from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pytest
from counted_run import PROMPT, Counted
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.provenance.statistics.reading import open_figures
from capfilt.provenance.statistics.wording import (
    LONGEST,
    MOST_WORDS,
    TIMES,
    degenerate,
    diversity,
    lengths,
    repeated,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def loops(text: str) -> bool:
    """Whether up to four words stand three times in a row, by looking everywhere."""
    words = text.lower().split()
    return any(
        words[at : at + size] * TIMES == words[at : at + TIMES * size]
        for size in range(1, MOST_WORDS + 1)
        for at in range(len(words) - TIMES * size + 1)
    )


def echoes(text: str, prompt: str) -> bool:
    """Whether the first two to four words of the prompt stand in the text, by looking everywhere."""
    words, asked = text.lower().split(), prompt.lower().split()[:MOST_WORDS]
    starts = range(len(words) - len(asked) + 1)
    return len(asked) > 1 and any(words[at : at + len(asked)] == asked for at in starts)


def went_wrong(text: str, prompt: str) -> list[str]:
    found = {"empty": not text.split(), "loop": loops(text), "prompt_echo": echoes(text, prompt)}
    return [kind for kind, is_so in found.items() if is_so]


def test_lengths_are_those_of_str_split(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        found = lengths(catalog)
    assert [one.source for one in found] == ["web", "synthetic"]
    for one in found:
        texts = [row["text"] for row in counted.of(one.source)]
        words = [len(text.split()) for text in texts]
        assert (one.captions, one.distinct) == (len(texts), len(set(texts)))
        assert one.words_mean == pytest.approx(np.mean(words))
        assert one.words_most == max(words)
        for name, share in (("words_p10", 0.1), ("words_p50", 0.5), ("words_p90", 0.9)):
            assert getattr(one, name) == np.quantile(words, share, method="inverted_cdf")
        assert one.counts == tuple(Counter(words)[n] for n in range(LONGEST + 1))


def test_distinct_n_grams_are_those_counted_in_plain_python(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        found = diversity(catalog)
    drawn = min(len(counted.of(source)) for source in ("web", "synthetic"))
    assert [(one.source, one.n) for one in found] == [
        (source, n) for source in ("web", "synthetic") for n in (1, 2, 3, 4)
    ]
    for one in found:
        words = [row["text"].lower().split() for row in counted.of(one.source)[:drawn]]
        grams = [tuple(w[at : at + one.n]) for w in words for at in range(len(w) - one.n + 1)]
        assert (one.captions, one.total, one.distinct) == (drawn, len(grams), len(set(grams)))
        assert one.share == pytest.approx(len(set(grams)) / len(grams))


def test_fewer_texts_can_be_drawn_and_are_the_first_by_pair_id(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        found = diversity(catalog, most=10)
    words = [word for row in counted.of("web")[:10] for word in row["text"].lower().split()]
    assert (found[0].captions, found[0].total, found[0].distinct) == (10, len(words), len(set(words)))


def test_the_texts_that_come_most_often_are_named(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        found = repeated(catalog, most=4)
    expected = [
        (source, text, count)
        for source in ("synthetic", "web")
        for text, count in sorted(
            Counter(row["text"] for row in counted.of(source)).items(),
            key=lambda item: (-item[1], item[0].encode()),
        )[:4]
        if count > 1
    ]
    assert [(one.source, one.text, one.pairs) for one in found] == expected


def test_loops_echoes_and_empty_texts_are_those_that_looking_everywhere_finds(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        found = degenerate(catalog, examples=2)
    expected: dict[tuple[str, str], list[str]] = {}
    for source in ("web", "synthetic"):
        for row in counted.of(source):
            for kind in went_wrong(row["text"], PROMPT if source == "synthetic" else ""):
                expected.setdefault((source, kind), []).append(row["pair_id"])
    assert {kind for source, kind in expected if source == "synthetic"} == {"empty", "loop", "prompt_echo"}
    assert {(one.source, one.kind): one.captions for one in found} == {
        key: len(pairs) for key, pairs in expected.items()
    }
    texts = {row["pair_id"]: row for row in counted.captions}
    for one in found:
        assert [example.pair_id for example in one.examples] == expected[one.source, one.kind][:2]
        assert all(example.text == texts[example.pair_id]["text"] for example in one.examples)


def captions(texts: Sequence[tuple[str, str]]) -> duckdb.DuckDBPyConnection:
    """A catalog that has captions alone: texts and their prompts."""
    catalog = duckdb.connect()
    catalog.execute(
        "CREATE TABLE captions (pair_id VARCHAR, source VARCHAR, shard VARCHAR, key VARCHAR, text VARCHAR,"
        " prompt VARCHAR)"
    )
    rows = [(f"{n:032x}", "synthetic", "s", str(n), *both) for n, both in enumerate(texts)]
    if rows:
        catalog.executemany("INSERT INTO captions VALUES (?, ?, ?, ?, ?, ?)", rows)
    return catalog


@pytest.mark.parametrize(
    ("text", "prompt", "kinds"),
    [
        ("no no no", "", ["loop"]),
        ("no no", "", []),
        ("No nO NO", "", ["loop"]),
        ("a cat a cat a cat", "", ["loop"]),
        ("a cat a cat a dog", "", []),
        ("one two three four one two three four one two three four", "", ["loop"]),
        ("1 2 3 4 5 1 2 3 4 5 1 2 3 4 5", "", []),
        ("A  Picture of\ta cat", "a picture of", ["prompt_echo"]),
        ("a picture often seen", "a picture of", []),
        ("describe the image in one word: cat", "Describe the image in detail, please.", ["prompt_echo"]),
        ("describe the cat", "Describe the image in detail", []),
        ("a cat", "a", []),
        ("\x85 \u3000\t", "a picture of", ["empty"]),
    ],
)
def test_worked_cases_of_texts_that_went_wrong(text: str, prompt: str, kinds: list[str]) -> None:
    assert went_wrong(text, prompt) == kinds
    with closing(captions([(text, prompt)])) as catalog:
        assert sorted(one.kind for one in degenerate(catalog)) == kinds


texts = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["a", "b", "C", "[/]"]), max_size=14).map(" ".join),
        st.lists(st.sampled_from(["a", "b", "c"]), max_size=5).map(" ".join),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=40)
@given(texts)
def test_however_the_words_stand_the_same_texts_are_found(drawn: list[tuple[str, str]]) -> None:
    expected = Counter(kind for text, prompt in drawn for kind in went_wrong(text, prompt))
    with closing(captions(drawn)) as catalog:
        assert {one.kind: one.captions for one in degenerate(catalog)} == expected


def test_a_word_of_a_hundred_thousand_letters_and_as_many_words_are_counted() -> None:
    with closing(captions([("x" * 100_000, "p q"), ("w " * 50_000, "p q")])) as catalog:
        [one] = lengths(catalog)
        [loop] = degenerate(catalog)
    assert (one.words_p10, one.words_most, one.counts[1], one.counts[LONGEST]) == (1, 50_000, 1, 1)
    assert (loop.kind, loop.captions) == ("loop", 1)


def test_without_texts_there_are_no_figures() -> None:
    with closing(captions([])) as catalog:
        assert lengths(catalog) == diversity(catalog) == repeated(catalog) == degenerate(catalog) == []
