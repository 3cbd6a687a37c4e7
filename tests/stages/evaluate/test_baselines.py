"""A classifier that reads the text alone: what it can know, what it must not, and its optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from capfilt.draws import uniforms
from capfilt.evaluation.calibration import auroc
from capfilt.stages.evaluate.baselines import Classifier, _hashed, text_alone


def area(scores: np.ndarray, labels: list[bool]) -> float:
    is_right = np.array(labels)
    return auroc(scores[is_right], scores[~is_right])


def test_a_word_that_wrong_texts_have_gives_them_away() -> None:
    texts = [f"a thing {n}" if n % 2 else f"a thing {n} jpg" for n in range(60)]
    labels = [n % 2 == 1 for n in range(60)]
    assert area(text_alone(texts, labels, list(range(60)), seed=0), labels) == 1.0


def test_a_text_is_never_judged_by_a_classifier_that_saw_it() -> None:
    # Each text comes four times, always with the label that was drawn for it: to have seen it is to know.
    labels = [value < 0.5 for value in uniforms(40, "labels of texts")] * 4
    texts = [f"w{n} v{n} u{n}" for n in range(40)] * 4
    apart = text_alone(texts, labels, list(range(40)) * 4, seed=0)
    leaking = text_alone(texts, labels, list(range(160)), seed=0)
    assert area(apart, labels) < 0.6
    assert area(leaking, labels) > 0.99


def test_it_is_fitted_to_the_end() -> None:
    labels = np.array([value < 0.4 for value in uniforms(50, "fit")], dtype=np.float64)
    classifier = Classifier([_hashed(f"word{n % 7} and word{n % 5}") for n in range(50)], labels)
    gradients = torch.autograd.grad(classifier.loss(), [classifier.weights, classifier.bias])
    assert max(float(each.abs().max()) for each in gradients) < 1e-4
    # The bias is not held back, so that the mean probability is the share of right texts.
    mean = classifier.probabilities([_hashed(f"word{n % 7} and word{n % 5}") for n in range(50)]).mean()
    assert mean == pytest.approx(labels.mean(), abs=1e-5)


def test_texts_of_one_kind_and_texts_without_words_are_judged_too() -> None:
    assert text_alone(["a", "b", "c"], [True] * 3, [0, 1, 2], seed=0).tolist() == [1.0] * 3
    scores = text_alone(["", "...", "a dog", "a cat"] * 5, [True, False] * 10, list(range(20)), seed=0)
    assert np.isfinite(scores).all()
