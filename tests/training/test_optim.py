from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from trainings import ALL, TINY

from capfilt.models.med import MED
from capfilt.settings import Phase
from capfilt.training.optim import learning_rate, optimizer_of, soft_share, update

phases = st.builds(
    Phase,
    lm=st.just(1.0),
    learning_rate=st.floats(1e-6, 1.0),
    final_learning_rate=st.just(0.0),
    warmup=st.floats(0, 0.9),
)


def test_the_schedule_is_the_one_worked_out_by_hand() -> None:
    phase = Phase(lm=1.0, learning_rate=1.0, final_learning_rate=0.2, warmup=0.4)

    rates = [learning_rate(phase, step, 10) for step in range(10)]

    # Four steps of a line that would reach the top at the fifth, then half a cosine over six.
    rise = [Fraction(1, 5), Fraction(2, 5), Fraction(3, 5), Fraction(4, 5)]
    root = math.sqrt(3)
    fall = [1, 0.6 + 0.2 * root, 0.8, 0.6, 0.4, 0.6 - 0.2 * root]
    assert rates == pytest.approx([*map(float, rise), *fall])


@given(phase=phases, steps=st.integers(1, 200))
def test_the_rate_rises_then_falls_and_never_leaves_its_bounds(phase: Phase, steps: int) -> None:
    rates = [learning_rate(phase, step, steps) for step in range(steps)]

    top = rates.index(max(rates))
    assert all(0 < rate <= phase.learning_rate for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= math.ceil(phase.warmup * steps)


def test_without_a_warm_up_the_first_step_has_the_highest_rate() -> None:
    phase = Phase(lm=1.0, learning_rate=0.3, warmup=0.0)

    assert learning_rate(phase, 0, 7) == 0.3


def test_the_released_schedule_is_the_one_worked_out_by_hand() -> None:
    """Warm-up in steps from a rate of its own, then a step down after every pass, to a floor."""
    phase = Phase(
        lm=1.0,
        learning_rate=1.0,
        first_learning_rate=0.2,
        final_learning_rate=0.3,
        warmup_steps=3,
        decay=0.5,
    )

    rates = [learning_rate(phase, step, 14, 4) for step in range(14)]

    rise = [0.4, 0.6, 0.8]  # a line from 0.2 at the start to 1 at the fourth step
    passes = [*[1.0], *[0.5] * 4, *[0.3] * 4, *[0.3] * 2]  # 0.25 and 0.125 are below the floor
    assert rates == pytest.approx([*rise, *passes])


def test_a_warm_up_longer_than_a_pass_ends_at_the_rate_of_its_pass() -> None:
    phase = Phase(lm=1.0, learning_rate=1.0, warmup_steps=4, decay=0.9)

    rates = [learning_rate(phase, step, 9, 3) for step in range(9)]

    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.9, 0.9, 0.81, 0.81, 0.81])


def test_alpha_rises_over_its_passes_and_stays() -> None:
    phase = Phase(itc=1.0, momentum=0.9, alpha=0.4, alpha_epochs=2.0)

    assert [soft_share(phase, step, 4) for step in range(10)] == pytest.approx(
        [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.4]
    )
    at_once = phase.model_copy(update={"alpha_epochs": 0.0})
    assert soft_share(at_once, 0, 4) == 0.4
    half = phase.model_copy(update={"alpha_epochs": 0.5})
    assert [soft_share(half, step, 4) for step in range(4)] == pytest.approx([0, 0.2, 0.4, 0.4])
    assert soft_share(Phase(itc=1.0), 3, 4) == 0


def test_weight_decay_spares_gains_biases_and_the_temperature() -> None:
    model = MED(TINY, 40, ALL)
    gains = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(1.0)
    before = {name: weights.detach().clone() for name, weights in model.named_parameters()}
    optimizer = optimizer_of(model, Phase(lm=1.0, learning_rate=0.5, weight_decay=0.4))
    for weights in model.parameters():
        weights.grad = torch.zeros_like(weights)

    optimizer.step()

    # Without a gradient AdamW does nothing but decay: by the factor 1 - 0.5 * 0.4.
    spared = gains | biases | {"temperature"}
    assert len(spared) > 10
    for name, weights in model.named_parameters():
        torch.testing.assert_close(weights.detach(), before[name] * (1.0 if name in spared else 0.8))


def test_everything_decays_where_the_released_code_is_followed() -> None:
    model = MED(TINY, 40, ALL)
    before = {name: weights.detach().clone() for name, weights in model.named_parameters()}
    optimizer = optimizer_of(model, Phase(lm=1.0, learning_rate=0.5, weight_decay=0.4, decays="everything"))
    for weights in model.parameters():
        weights.grad = torch.zeros_like(weights)

    optimizer.step()

    for name, weights in model.named_parameters():
        torch.testing.assert_close(weights.detach(), before[name] * 0.8)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_moves_neither_weights_nor_moments(bad: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = optimizer_of(model, Phase(lm=1.0, learning_rate=0.1))
    inputs = torch.randn(5, 3)

    def step(factor: float) -> float:
        optimizer.zero_grad()
        (model(inputs).square().sum() * factor).backward()
        return float(update(model, optimizer, clip_norm=1.0))

    def state() -> list[torch.Tensor]:
        moments = [value.clone() for held in optimizer.state.values() for value in held.values()]
        return [*(parameter.detach().clone() for parameter in model.parameters()), *moments]

    assert math.isfinite(step(1.0))
    before = state()
    assert not math.isfinite(step(bad))
    for old, new in zip(before, state(), strict=True):
        assert torch.equal(old, new)
    assert math.isfinite(step(1.0))
    assert not torch.equal(before[0], state()[0])
