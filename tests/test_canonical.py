from __future__ import annotations

import hashlib
import json
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from capfilt.canonical import canonical_json, digest_of, digest_of_rows

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_json_reads_back_the_value(value: object) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert text == canonical_json(json.loads(text))
    text.encode("utf-8")


@given(st.lists(values, max_size=4))
def test_rows_one_after_another_have_the_digest_of_their_list(rows: list[object]) -> None:
    assert digest_of_rows(iter(rows)) == digest_of(rows)


@given(st.dictionaries(st.text(), scalars, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value: dict[str, object], random: object) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)
    assert digest_of(dict(items)) == digest_of(value)


def test_the_text_is_known_to_the_letter() -> None:
    assert canonical_json({"b": [1, 2.5, (True, None)], "a": "é\n\u2028猫"}) == (
        '{"a":"é\\n\u2028猫","b":[1,2.5,[true,null]]}'
    )
    assert canonical_json({1: "a"}) == '{"1":"a"}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_null(value: float) -> None:
    assert canonical_json({"x": [value, (value,)]}) == '{"x":[null,[null]]}'


def test_a_lone_surrogate_is_escaped_and_can_be_written() -> None:
    text = canonical_json({"x": "a\ud800b"})
    assert text == '{"x":"a\\ud800b"}'
    assert text.encode("utf-8") == b'{"x":"a\\ud800b"}'
    assert json.loads(text) == {"x": "a\ud800b"}


def test_a_digest_is_the_sha256_of_the_canonical_bytes() -> None:
    # printf '{"a":1,"b":"\303\251"}' | sha256sum
    text = '{"a":1,"b":"é"}'
    assert digest_of({"b": "é", "a": 1}) == hashlib.sha256(text.encode("utf-8")).hexdigest()
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
    assert digest_of([1, 2]) == digest_of((1, 2)) != digest_of([2, 1])
