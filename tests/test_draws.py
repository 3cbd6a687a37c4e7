"""Draws against a Philox written from its paper: another numpy, or another key, would be noticed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from capfilt.draws import permutation, seed_of, uniforms

WORD = 2**64
keys = st.lists(st.text(max_size=8) | st.integers(), min_size=1, max_size=4)


def philox(counter: int, key: int) -> list[int]:
    """Return one block of Philox4x64-10 (Salmon et al., 2011, section 3.4): four words of 64 bits."""
    words = [(counter >> (64 * n)) % WORD for n in range(4)]
    first, second = key % WORD, key >> 64
    for _ in range(10):
        left, right = words[0] * 0xD2E7470EE14C6C93, words[2] * 0xCA5A826395121157
        words = [
            (right // WORD) ^ words[1] ^ first,
            right % WORD,
            (left // WORD) ^ words[3] ^ second,
            left % WORD,
        ]
        first, second = (first + 0x9E3779B97F4A7C15) % WORD, (second + 0xBB67AE8584CAA73B) % WORD
    return words


def test_the_philox_here_gives_the_known_answers_of_its_authors() -> None:
    assert philox(0, 0) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    ones = philox(2**256 - 1, 2**128 - 1)
    assert ones == [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]


def test_uniforms_are_the_upper_53_bits_of_philox_keyed_by_a_sha256() -> None:
    for key in (("caption", 0, "ab" * 32, 1), ("negatives", 7), ("",)):
        digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
        number = int.from_bytes(digest[:16], "little")
        words = [word for block in (1, 2, 3) for word in philox(block, number)]  # numpy counts from 1
        assert uniforms(12, *key).tolist() == [(word >> 11) / 2**53 for word in words]


@given(st.integers(0, 40), st.integers(0, 40), keys)
def test_the_first_numbers_do_not_depend_on_how_many_are_asked_for(
    few: int, more: int, key: list[str | int]
) -> None:
    numbers = uniforms(few + more, *key)
    assert numbers.shape == (few + more,)
    assert numbers.dtype == np.float64
    assert uniforms(few, *key).tolist() == numbers[:few].tolist()
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_another_key_gives_other_numbers() -> None:
    keys_that_differ = [(0, "a"), (0, "b"), (1, "a"), ("a", 0), (0, "a", 0), (0, "a", ""), (0,)]
    found = {tuple(uniforms(3, *key).tolist()) for key in keys_that_differ}
    assert len(found) == len(keys_that_differ)


def test_numbers_are_evenly_spread() -> None:
    counts = np.bincount((uniforms(100_000, "even") * 20).astype(int), minlength=20)
    assert ((counts - 5000) ** 2 / 5000).sum() < 60  # 19 degrees of freedom: once in 300,000
    # Numbers of neighbouring keys have nothing to do with each other.
    first = np.array([uniforms(1, "neighbour", n)[0] for n in range(4000)])
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.08


@given(st.integers(0, 60), keys)
def test_a_permutation_holds_every_number_once(count: int, key: list[str | int]) -> None:
    order = permutation(count, *key)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    assert permutation(count, *key).tolist() == order.tolist()


def test_permutations_are_all_equally_likely() -> None:
    counts = dict.fromkeys([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], 0)
    for n in range(3000):
        counts[tuple(permutation(3, "even", n).tolist())] += 1
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 30  # 5 degrees of freedom


@given(keys)
def test_a_seed_fits_the_generators_that_take_one(key: list[str | int]) -> None:
    assert 0 <= seed_of(*key) < 2**63


def test_draws_are_the_same_in_every_process() -> None:
    code = (
        "import json; from capfilt.draws import *;"
        "print(json.dumps([uniforms(3, 'p', 1).tolist(), permutation(5, 'p').tolist(), seed_of('p')]))"
    )
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        assert json.loads(ended.stdout) == [
            uniforms(3, "p", 1).tolist(),
            permutation(5, "p").tolist(),
            seed_of("p"),
        ]
