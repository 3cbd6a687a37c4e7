from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.evaluation.intervals import Figure, bootstrap, mean_interval, t_quantile


def _mean_of(
    values: list[float] | np.ndarray, *, seed: int = 0, key: str = "test", resamples: int = 1000
) -> Figure:
    numbers = np.asarray(values, dtype=np.float64)
    return bootstrap(
        len(numbers), lambda indices: float(numbers[indices].mean()), seed=seed, key=key, resamples=resamples
    )


# -- bootstrap


def test_the_interval_of_a_share_is_that_of_its_binomial_distribution() -> None:
    # Resampling one hit of five draws hits from Binomial(5, 0.2): up to 2 with 94.2%, up to 3 with 99.3%, and
    # none with 32.8%.
    assert _mean_of([0, 1, 0, 0, 0]) == Figure(0.2, 0.0, pytest.approx(0.6))
    # Half of ten: Binomial(10, 0.5) is up to 1 with 1.1%, up to 2 with 5.5%, and symmetric.
    assert _mean_of([0, 1] * 5, resamples=4000) == Figure(0.5, pytest.approx(0.2), pytest.approx(0.8))


def test_the_interval_of_a_mean_of_many_items_is_that_of_the_normal_distribution() -> None:
    values = np.random.Generator(np.random.PCG64(3)).normal(5, 2, 400)
    error = values.std() / 20

    figure = _mean_of(values, resamples=4000)

    assert figure.value == pytest.approx(values.mean(), abs=1e-12)
    # A 2.5% quantile of 4,000 normal draws is itself known to about 0.04 of their deviation.
    assert figure.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert figure.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.Generator(np.random.PCG64(7))
    covered = 0
    for trial in range(300):
        figure = _mean_of(random.normal(1, 3, 60), key=f"trial {trial}", resamples=200)
        covered += figure.low <= 1 <= figure.high

    # 95% is promised, and percentiles of 60 items come a little short; four standard errors are 5%.
    assert 0.89 <= covered / 300 <= 0.985


def test_the_interval_depends_on_seed_and_key_alone() -> None:
    values = list(np.random.Generator(np.random.PCG64(1)).normal(0, 1, 30))

    assert _mean_of(values, seed=1, key="a") == _mean_of(values, seed=1, key="a")
    assert _mean_of(values, seed=1, key="a") != _mean_of(values, seed=2, key="a")
    assert _mean_of(values, seed=1, key="a") != _mean_of(values, seed=1, key="b")
    assert _mean_of(values, seed=1).value == _mean_of(values, seed=2).value


@given(count=st.integers(2, 40))
def test_a_resample_has_as_many_items_as_there_are_and_all_of_them_can_be_drawn(count: int) -> None:
    asked: list[np.ndarray] = []

    def statistic(indices: np.ndarray) -> float:
        asked.append(indices)
        return 0.0

    bootstrap(count, statistic, seed=0, key="items", resamples=60)

    assert len(asked) == 61
    assert asked[0].tolist() == list(range(count))
    assert all(indices.shape == (count,) and indices.dtype == np.int64 for indices in asked)
    # 60 resamples miss an item with a chance of about exp(-60).
    assert set(np.concatenate(asked[1:]).tolist()) == set(range(count))


def test_resamples_without_a_number_are_left_out() -> None:
    # Of two items 0 and 1 the mean is 0, 1/2 or 1; without the 0 both ends move up.
    def statistic(indices: np.ndarray) -> float:
        return float(indices.mean()) or math.nan

    assert bootstrap(2, statistic, seed=0, key="holes") == Figure(0.5, 0.5, 1.0)


def test_what_cannot_be_measured_is_nan() -> None:
    assert str(_mean_of([])) == str(Figure(math.nan, math.nan, math.nan))
    assert str(_mean_of([0.3])) == str(Figure(0.3, math.nan, math.nan))
    never = bootstrap(5, lambda _: math.nan, seed=0, key="never")
    assert str(never) == str(Figure(math.nan, math.nan, math.nan))

    def whole_set_only(indices: np.ndarray) -> float:
        return 1.0 if len(set(indices.tolist())) == 20 else math.nan

    # 20 of 20 different ones are drawn with a chance of 2e-8.
    assert str(bootstrap(20, whole_set_only, seed=0, key="whole")) == str(Figure(1.0, math.nan, math.nan))


# -- a few seeds


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    # Table of Student's distribution, two-sided 95%, as printed in textbooks.
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (9, 2.262),
        (10, 2.228),
        (29, 2.045),
        (120, 1.980),
    ],
)
def test_quantiles_are_those_of_the_printed_table(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


@given(degrees=st.integers(1, 200))
def test_the_density_between_the_quantiles_sums_to_95_percent(degrees: int) -> None:
    t = np.linspace(0, t_quantile(degrees), 20_001)
    constant = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    density = np.exp(constant - (degrees + 1) / 2 * np.log1p(t**2 / degrees))
    weights = np.ones(len(t))
    weights[1:-1:2], weights[2:-1:2] = 4, 2

    assert 2 * float(weights @ density) * (t[1] - t[0]) / 3 == pytest.approx(0.95, abs=1e-9)


def test_the_interval_of_three_seeds_worked_out_by_hand() -> None:
    # Mean 2, standard deviation 1, so a standard error of 1 / sqrt(3); t of two degrees is 4.3027.
    figure = mean_interval([1.0, 2.0, 3.0])

    assert figure.value == 2.0
    assert figure.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert figure.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert mean_interval([0.5, 0.5]) == Figure(0.5, 0.5, 0.5)


def test_the_interval_of_three_seeds_covers_the_truth_as_often_as_it_says() -> None:
    trials = np.random.Generator(np.random.PCG64(5)).normal(0.3, 0.1, (3000, 3))

    figures = [mean_interval(values.tolist()) for values in trials]

    covered = sum(figure.low <= 0.3 <= figure.high for figure in figures) / 3000
    # Exact for normal values; four standard errors are 1.6%.
    assert 0.934 <= covered <= 0.966


def test_one_seed_has_no_interval_and_a_failed_one_no_mean() -> None:
    assert str(mean_interval([0.4])) == str(Figure(0.4, math.nan, math.nan))
    assert str(mean_interval([])) == str(Figure(math.nan, math.nan, math.nan))
    assert str(mean_interval([0.4, math.nan])) == str(Figure(math.nan, math.nan, math.nan))
