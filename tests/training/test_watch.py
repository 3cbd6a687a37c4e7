"""Made-up curves of every known fault, and those of a training on the drawn world that went well."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.models import med
from capfilt.settings import Bootstrap, Phase, Training
from capfilt.training import watch
from capfilt.training.watch import Alarm, Watch, alarms

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

JOINT = "1: itc+itm+lm"
STEPS = {JOINT: 800}
BASE = 0.6365
"""Loss of answering one third to one right and two wrong pairs: -(1/3 ln 1/3 + 2/3 ln 2/3)."""
AT = range(50, 801, 50)

# A joint training of 800 steps of 32 pairs, measured every 50; ITM began at step 160.
HEALTHY: dict[tuple[str, str], Sequence[float]] = {
    ("train", "itc"): (
        3.33, 2.04, 1.63, 1.26, 1.02, 1, 0.88, 0.87,
        0.84, 0.8, 0.79, 0.77, 0.71, 0.65, 0.64, 0.66,
    ),
    ("train", "lm"): (
        2.8, 1.57, 1.42, 1.31, 1.26, 1.24, 1.24, 1.21,
        1.2, 1.19, 1.17, 1.17, 1.16, 1.15, 1.15, 1.15,
    ),
    ("validation", "itc"): (
        2.812, 2.084, 2.77, 1.219, 1.16, 1.03, 1.002, 1.013,
        1.012, 1.002, 0.976, 0.961, 0.949, 0.914, 0.916, 0.916,
    ),
    ("validation", "itc_chance"): [math.log(32)] * 16,
    ("validation", "itm"): (
        0.657, 0.653, 0.681, 0.636, 0.635, 0.626, 0.619, 0.594,
        0.585, 0.565, 0.559, 0.547, 0.535, 0.524, 0.524, 0.524,
    ),
    ("validation", "lm"): (
        1.913, 1.535, 1.405, 1.332, 1.27, 1.246, 1.251, 1.235,
        1.239, 1.227, 1.225, 1.202, 1.201, 1.195, 1.191, 1.191,
    ),
    ("validation", "distinct_captions"): (0.05, 0.05, 0.1, 0.3, 0.5, 0.6, 0.7, *[0.8] * 9),
    ("train", "temperature"): (
        0.074, 0.073, 0.06, 0.047, 0.043, 0.04, 0.04, 0.043,
        0.04, 0.037, 0.036, 0.034, 0.032, 0.03, 0.03, 0.03,
    ),
}  # fmt: skip
HEALTHY_ITM_STEPS = (0.642, 0.634, 0.645, 0.618, 0.6, 0.597, 0.571, 0.57, 0.56, 0.55, 0.53, 0.53, 0.52)


def curve(
    split: str, name: str, values: Iterable[float], steps: Iterable[int] = AT, phase: str = JOINT
) -> list[dict[str, Any]]:
    return [
        {"phase": phase, "step": step, "split": split, "name": name, "value": value, "time": 1.7e9 + step}
        for step, value in zip(steps, values, strict=False)
    ]


def healthy(*without: str) -> list[dict[str, Any]]:
    rows = [row for key, values in HEALTHY.items() if key[1] not in without for row in curve(*key, values)]
    if "itm" not in without:
        rows += curve("train", "itm", HEALTHY_ITM_STEPS, range(200, 801, 50))
    return rows


def seen(rows: Sequence[dict[str, Any]], **changes: Any) -> list[Alarm]:
    return alarms(rows, **{"steps": STEPS, "setting": "filter_training", **changes})


def names(rows: Sequence[dict[str, Any]], **changes: Any) -> list[str]:
    return [alarm.name for alarm in seen(rows, **changes)]


def stuck(loss: float = BASE, begins: int = 200) -> list[dict[str, Any]]:
    """ITM that never leaves a loss, trained from a step on."""
    measured = [loss + 0.004 * math.sin(step) for step in AT]
    return curve("validation", "itm", measured) + curve("train", "itm", [loss] * 16, range(begins, 801, 50))


def test_a_training_that_went_well_raises_no_alarm() -> None:
    assert seen(healthy()) == []


def test_no_rows_raise_no_alarm() -> None:
    assert seen([]) == []


def test_itm_that_stays_at_the_base_rate_is_told_after_a_third_of_its_own_steps() -> None:
    (alarm,) = seen([*healthy("itm"), *stuck()])
    # ITM has 600 of the 800 steps, from step 200 on: a third of them is over at step 400.
    assert (alarm.name, alarm.since, alarm.step) == ("itm_stuck", 200, 400)
    assert "since step 200" in alarm.words
    assert "0.637" in alarm.words
    assert "--set filter_training.phases.0.itm_from=0.5" in alarm.fix
    assert alarm.collapse


def test_itm_is_not_judged_before_it_is_trained() -> None:
    assert names(curve("validation", "itm", [BASE] * 16)) == []
    assert names(stuck(begins=700)) == ["itm_stuck"]
    assert names(stuck(begins=750)) == []


def test_itm_at_the_loss_of_the_base_rate_that_tells_pairs_apart_is_overconfident_and_not_stuck() -> None:
    apart = curve("validation", "itm_positive", [0.7] * 16) + curve("validation", "itm_negative", [0.3] * 16)
    together = curve("validation", "itm_positive", [0.34] * 16) + curve(
        "validation", "itm_negative", [0.33] * 16
    )
    assert names(stuck() + apart) == []
    (alarm,) = seen(stuck() + together)
    assert "a right pair gets 0.34, a wrong one 0.33" in alarm.words


@pytest.mark.parametrize("loss", [0.60, 0.68])
def test_itm_away_from_the_base_rate_is_not_stuck(loss: float) -> None:
    assert names(stuck(loss)) == []


def test_another_share_of_right_pairs_has_another_base_rate() -> None:
    assert names(stuck(math.log(2))) == []
    assert names(stuck(math.log(2)), right_share=0.5) == ["itm_stuck"]


def test_itm_without_itc_is_advised_to_have_it_beside() -> None:
    alone = [{**row, "phase": "2: itm"} for row in stuck()]
    (alarm,) = seen(alone, steps={"2: itm": 800})
    assert "--set filter_training.phases.1.itc=1" in alarm.fix
    assert "itc=1" not in seen(stuck())[0].fix


def test_constant_captions_are_told_at_the_second_validation_after_a_third() -> None:
    rows = healthy("distinct_captions") + curve("validation", "distinct_captions", [0.05] * 16)
    (alarm,) = seen(rows, setting="captioner_training")
    assert (alarm.name, alarm.since, alarm.step) == ("constant_captions", 300, 350)
    assert "captioner_training.phases.0.learning_rate" in alarm.fix


def test_captions_that_differ_at_every_other_validation_are_not_constant() -> None:
    assert names(curve("validation", "distinct_captions", [0.02, 0.2] * 8)) == []


@pytest.mark.parametrize(("bound", "word"), [(0.001, "lowest"), (0.5, "highest")])
def test_a_temperature_at_its_clamp_is_told_after_five_rows(bound: float, word: str) -> None:
    rows = healthy("temperature") + curve("train", "temperature", [0.07, 0.06, *[bound] * 9])
    (alarm,) = seen(rows)
    assert (alarm.name, alarm.since, alarm.step) == ("temperature_clamped", 150, 350)
    assert f"{bound:g}" in alarm.words
    assert word in alarm.words


def test_a_temperature_that_touches_its_clamp_and_leaves_it_is_none() -> None:
    assert names(curve("train", "temperature", [0.5, 0.5, 0.5, 0.5, 0.4] * 3)) == []


def test_the_clamp_is_the_models() -> None:
    model = (med.LOWEST_TEMPERATURE, med.HIGHEST_TEMPERATURE)
    assert model == (watch.LOWEST_TEMPERATURE, watch.HIGHEST_TEMPERATURE)


def test_itc_that_chooses_blindly_is_told_after_a_third() -> None:
    rows = healthy("itc", "itc_chance")
    rows += curve("validation", "itc", [3.45] * 16) + curve("validation", "itc_chance", [math.log(32)] * 16)
    (alarm,) = seen(rows)
    assert (alarm.name, alarm.since, alarm.step) == ("itc_at_chance", 50, 300)
    assert "3.47" in alarm.words


def test_itc_of_one_candidate_has_no_chance_to_be_at() -> None:
    zeros = [0.0] * 16
    assert names(curve("validation", "itc", zeros) + curve("validation", "itc_chance", zeros)) == []


def test_a_loss_that_falls_in_training_and_rises_on_held_out_pairs_is_a_remark() -> None:
    rows = curve("train", "lm", [3 - 0.1 * n for n in range(16)])
    rows += curve("validation", "lm", [2.0, 1.5, 1.3, 1.25, 1.28, 1.31, 1.36, 1.4])
    (alarm,) = seen(rows, setting="captioner_training")
    assert (alarm.name, alarm.since, alarm.step, alarm.collapse) == ("overfitting", 200, 350, False)
    assert "from 1.25 to 1.36" in alarm.words
    assert "--set captioner_training.phases.0.steps=200" in alarm.fix


def test_a_loss_that_rises_in_training_too_is_no_overfitting() -> None:
    rising = [1 + 0.1 * n for n in range(16)]
    assert names(curve("train", "lm", rising) + curve("validation", "lm", rising)) == []


def test_a_rise_within_noise_is_no_overfitting() -> None:
    rows = curve("train", "lm", [3 - 0.1 * n for n in range(16)])
    assert names(rows + curve("validation", "lm", [1.2 + 0.005 * n for n in range(4)])) == []


def test_a_value_that_is_no_number_raises_no_alarm() -> None:
    nan = [math.nan] * 16
    rows = [row for key in HEALTHY for row in curve(*key, nan)] + curve("train", "itm", nan)
    assert names(rows) == []


def test_every_setting_that_is_advised_exists() -> None:
    rows = healthy("itm", "temperature", "distinct_captions", "itc", "lm") + stuck()
    rows += curve("train", "temperature", [0.5] * 16) + curve("validation", "distinct_captions", [0.0] * 16)
    rows += curve("validation", "itc", [math.log(32)] * 16) + curve(
        "validation", "itc_chance", [math.log(32)] * 16
    )
    rows += curve("train", "lm", [3 - 0.1 * n for n in range(16)])
    rows += curve("validation", "lm", [1 + 0.1 * n for n in range(16)])
    found = seen([{**row, "phase": JOINT} for row in rows])
    assert {alarm.name for alarm in found} == {
        "itm_stuck", "constant_captions", "temperature_clamped", "itc_at_chance", "overfitting",
    }  # fmt: skip
    for alarm in found:
        flags = [words.split("=")[0] for words in alarm.fix.split("--set ")[1:]]
        assert flags
        for flag in flags:
            training, phases, number, choice = flag.split(".")
            assert training in Bootstrap.model_fields
            assert (phases, number) == ("phases", "0")
            assert phases in Training.model_fields
            assert choice in Phase.model_fields


def test_phases_are_judged_apart_and_a_fault_is_told_in_each() -> None:
    second = "2: itc+itm"
    rows = stuck() + [{**row, "phase": second} for row in stuck()]
    found = seen(rows, steps={**STEPS, second: 800})
    assert [(alarm.phase, alarm.name) for alarm in found] == [(JOINT, "itm_stuck"), (second, "itm_stuck")]
    assert "phases.1.itm_from" in found[1].fix


def in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["step"])


def test_a_watch_tells_each_alarm_once_and_when_it_is_first_seen() -> None:
    rows = in_order([*healthy("itm", "distinct_captions"), *stuck()])
    rows = in_order(rows + curve("validation", "distinct_captions", [0.01] * 16))
    watching = Watch(steps=STEPS, setting="filter_training")
    told = [
        (step, alarm.name)
        for step in AT
        for alarm in watching.look([row for row in rows if row["step"] <= step])
    ]
    assert told == [(350, "constant_captions"), (400, "itm_stuck")]


def test_a_watch_made_after_a_restart_tells_from_the_rows_alone() -> None:
    rows = in_order([*healthy("itm"), *stuck()])
    again = Watch(steps=STEPS, setting="filter_training")
    assert again.look([row for row in rows if row["step"] <= 600]) == seen(rows)
    assert again.look(rows) == []


CURVES = st.fixed_dictionaries(
    {
        key: st.lists(
            st.sampled_from([*values, 0.5, 0.001, 0.02, BASE, math.log(32)]), min_size=1, max_size=16
        )
        for key, values in HEALTHY.items()
    }
)


@given(values=CURVES, until=st.integers(0, 800))
def test_what_was_seen_in_the_first_rows_stays_seen_in_all(values: Any, until: int) -> None:
    rows = in_order([row for key in values for row in curve(*key, values[key])] + stuck()[16:])
    early = seen([row for row in rows if row["step"] <= until])
    late = seen(rows)
    assert [alarm for alarm in late if alarm.step <= until] == early


@given(values=CURVES, seed=st.integers(0, 99), speed=st.floats(0.01, 100))
def test_neither_rows_of_other_things_nor_the_order_nor_the_clock_matter(
    values: Any, seed: int, speed: float
) -> None:
    rows = [row for key in values for row in curve(*key, values[key])] + stuck()[16:]
    others = curve("train", "gradient_norm", range(16)) + curve("train", "learning_rate", [1e-3] * 16)
    mixed = [{**row, "time": speed * row["time"]} for row in rows + others]
    random.Random(seed).shuffle(mixed)
    assert seen(mixed) == seen(rows)
