"""Cosines of many pictures and texts against each computed alone, of one vector a picture and of several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from capfilt.evaluation import similarities as under_test
from capfilt.evaluation.similarities import similarities, similarities_of_pairs


def unit(*shape: int, seed: int) -> Any:
    rows = np.random.default_rng(seed).standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def alone(picture: Any, text: Any) -> float:
    """The cosine of a text with the vector of the picture that is most like it."""
    vectors = [picture] if picture.ndim == 1 else list(picture)
    return max(sum(float(a) * float(b) for a, b in zip(one, text, strict=True)) for one in vectors)


@pytest.mark.parametrize("at_once", [1, 30, 1 << 22])
@pytest.mark.parametrize("shape", [(9, 4), (9, 3, 4), (9, 1, 4)])
def test_every_cosine_is_that_of_the_pair_alone(
    shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "_PRODUCTS_AT_ONCE", at_once)
    pictures, texts = unit(*shape, seed=1), unit(7, 4, seed=2)
    found = similarities(pictures, texts)
    assert found.shape == (9, 7)
    assert found == pytest.approx(np.array([[alone(p, t) for t in texts] for p in pictures]), abs=1e-12)
    pairs = similarities_of_pairs(pictures[[0, 8, 8]], texts[[6, 0, 3]])
    assert pairs == pytest.approx([found[0, 6], found[8, 0], found[8, 3]], abs=1e-12)


def test_the_most_similar_query_counts_and_not_the_mean() -> None:
    pictures = np.array([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    texts = np.array([[1.0, 0.0], [0.6, 0.8]])
    assert similarities(pictures, texts).tolist() == [[1.0, 0.6], [0.0, 0.8]]
    assert similarities_of_pairs(pictures, texts).tolist() == [1.0, 0.8]


def test_numbers_stay_as_wide_as_they_are_and_pairs_are_summed_in_double() -> None:
    pictures, texts = unit(3, 2, 5, seed=3).astype(np.float32), unit(3, 5, seed=4).astype(np.float32)
    assert similarities(pictures, texts).dtype == np.float32
    assert similarities_of_pairs(pictures, texts).dtype == np.float64
    assert similarities(pictures[:0], texts).shape == (0, 3)
    assert similarities(pictures, texts[:0]).shape == (3, 0)
