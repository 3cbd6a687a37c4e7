"""Probes on states whose content is planted."""

from __future__ import annotations

import torch
from instruction_probe import read_right

CLASSES, PICTURES = 5, 400


def planted(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states that hold two labels, each in directions of its own, and the labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (PICTURES, 2), generator=generator)
    directions = torch.randn(2, CLASSES, 32, generator=generator)
    held = directions[0][labels[:, 0]] + directions[1][labels[:, 1]]
    return held + noise * torch.randn(PICTURES, 32, generator=generator), labels


def test_what_states_hold_is_read_and_only_of_pictures_that_no_probe_was_fitted_to() -> None:
    states, labels = planted(noise=0.05)
    read = read_right(states, labels, CLASSES, fitted=300)
    assert read.shape == (100,)
    assert read.mean() > 0.97


def test_what_states_do_not_hold_is_not_read() -> None:
    states, labels = planted(noise=0.05)
    other = labels[torch.randperm(PICTURES, generator=torch.Generator().manual_seed(1))]
    # By chance both places are right once in 25.
    assert read_right(states, other, CLASSES, fitted=300).mean() < 0.15


def test_a_picture_is_read_right_where_both_places_are() -> None:
    states, labels = planted(noise=0.05)
    half = labels.clone()
    half[300:, 1] = (half[300:, 1] + 1) % CLASSES
    assert read_right(states, half, CLASSES, fitted=300).mean() == 0


def test_the_scale_of_states_changes_nothing() -> None:
    states, labels = planted(noise=1.5)
    read, again = (read_right(each, labels, CLASSES, fitted=300) for each in (states, 100 * states + 3))
    assert 0.1 < read.mean() < 0.97
    assert (read == again).mean() > 0.98
