"""How the example with BLIP-2 judges what was said, and what it asks capfilt to do."""

from __future__ import annotations

import tomllib

import blip2_scenes
import pytest
from blip2_scenes import Measured, is_right

from capfilt.evaluation.intervals import Figure

REFERENCE = "there is a red star next to a blue circle"


@pytest.mark.parametrize(
    ("about", "said", "right"),
    [
        ("caption", "a blue circle and a red star", True),
        ("caption", "a red star and a blue star", False),
        ("caption", "a red star", False),
        ("caption", "", False),
        ("colour", "red and blue", True),
        ("colour", "blue and red", False),
        ("colour", "red", False),
        ("shape", "star and circle", True),
        ("shape", "red and blue", False),
    ],
)
def test_what_is_said_of_a_picture_is_judged_by_what_is_in_it(about: str, said: str, right: bool) -> None:
    assert is_right(about, REFERENCE, said) is right


def test_a_target_is_met_by_the_figure_or_by_the_lower_end_of_its_interval() -> None:
    figure = Figure(0.6, 0.4, 0.8)
    assert Measured("", figure, 0.5).is_met
    assert not Measured("", figure, 0.5, "low").is_met
    assert Measured("", figure).is_met


def test_recipes_are_settings_of_their_pipelines() -> None:
    from capfilt.cli.pipelines import load_pipeline
    from capfilt.layers import changed

    pipelines = {"encoder": "small", "stage1": "blip2_stage1", "stage2": "blip2_stage2"}
    for name, recipe in blip2_scenes.RECIPES.items():
        choices = load_pipeline(pipelines.get(name, name)).choices()
        settings = changed(choices, tomllib.loads(f"{blip2_scenes.COMMON}{recipe}"))
        assert settings.pretrain is not None
        [phase] = settings.pretrain.phases
        assert phase.learning_rate == 1e-3
        # The papers' warm-up is longer than the whole training here.
        assert phase.warmup_steps is None
        assert not settings.pretrain.augment.is_on
