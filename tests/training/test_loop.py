from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from trainings import TINY, phase, trainer, training, values_of, without_times, words_of

from capfilt.errors import CapfiltError, RunFailedError
from capfilt.models.med import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE, MED
from capfilt.training.optim import learning_rate

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.data.clean import CleanSet
    from capfilt.settings import Training
    from capfilt.training.loop import Trainer

# Two phases; ITM begins in the middle of the first, and of its first epoch. 29 pairs are 4 batches of 8.
TWO_PHASES = training(
    phase(steps=7, itm_from=0.4, warmup=0.3),
    phase(steps=6, itc=0.5, lm=0.0, learning_rate=3e-3, batch_size=12),
)
STEPS = 13
HELD_OUT = (0, 9, 12, 20)
TRAIN = [number for number in range(29) if number not in HELD_OUT]


class Killed(Exception):
    """Stands for SIGKILL: nothing is done after it."""


@dataclass
class KilledAfter:
    """Ends a training the moment a step is done, before anything of it is written."""

    step: int
    steps: int = STEPS

    def __call__(self, done: int, total: int, pairs: int) -> None:
        assert total == self.steps
        assert 0 < pairs <= 12
        if done == self.step:
            raise Killed


@pytest.fixture(scope="module")
def undisturbed(pairs: CleanSet, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    checkpoint = tmp_path_factory.mktemp("undisturbed") / "checkpoint.pt"
    whole = trainer(pairs, checkpoint, TWO_PHASES, train=TRAIN, held_out=HELD_OUT)
    whole.run()
    return whole


@pytest.mark.parametrize("moment", range(1, STEPS + 1))
def test_a_training_killed_after_any_step_ends_with_the_same_weights_and_rows(
    pairs: CleanSet, undisturbed: Trainer, tmp_path: Path, moment: int
) -> None:
    def begin(**changes: Any) -> Trainer:
        return trainer(
            pairs, tmp_path / "checkpoint.pt", TWO_PHASES, train=TRAIN, held_out=HELD_OUT, **changes
        )

    with pytest.raises(Killed):
        begin(progress=KilledAfter(moment)).run()
    torch.manual_seed(999)  # another process has other random numbers
    again = begin()
    again.run()

    assert _equal(again.model, undisturbed.model)
    assert without_times(again.rows) == without_times(undisturbed.rows)


# Momentum encoder, queues, ramped soft labels and parts; the queue wraps, and another phase has its own.
# 25 pairs are three batches of 8 and one pair, which is too few for two parts.
WITH_MOMENTUM = training(
    phase(
        steps=6, itm_from=0.3, momentum=0.9, queue=13, alpha=0.4, alpha_epochs=2.0, accumulate=2, warmup=0.0
    ),
    phase(
        steps=3, lm=0.0, batch_size=12, momentum=0.5, queue=7, negatives_by="momentum", negatives_floor=1e-3
    ),
)


@pytest.fixture(scope="module")
def undisturbed_with_momentum(pairs: CleanSet, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    checkpoint = tmp_path_factory.mktemp("momentum") / "checkpoint.pt"
    whole = trainer(pairs, checkpoint, WITH_MOMENTUM, train=TRAIN, held_out=HELD_OUT)
    whole.run()
    return whole


@pytest.mark.parametrize("moment", range(1, 10))
def test_a_training_with_momentum_killed_after_any_step_ends_the_same(
    pairs: CleanSet, undisturbed_with_momentum: Trainer, tmp_path: Path, moment: int
) -> None:
    for progress in (KilledAfter(moment, 9), lambda *_: None):
        torch.manual_seed(moment)
        one = trainer(
            pairs,
            tmp_path / "checkpoint.pt",
            WITH_MOMENTUM,
            train=TRAIN,
            held_out=HELD_OUT,
            progress=progress,
        )
        with suppress(Killed):
            one.run()

    assert _equal(one.model, undisturbed_with_momentum.model)
    assert without_times(one.rows) == without_times(undisturbed_with_momentum.rows)


def test_momentum_queue_and_alpha_move_what_is_learnt(pairs: CleanSet, tmp_path: Path) -> None:
    """So the tests above would notice if one of them were left out of a checkpoint."""
    chosen = {"steps": 4, "itm": 0.0, "lm": 0.0, "warmup": 0.0, "alpha_epochs": 0.0}
    weights = []
    for number, options in enumerate(
        (
            {},
            {"momentum": 0.9},
            {"momentum": 0.5},
            {"momentum": 0.9, "queue": 13},
            {"momentum": 0.9, "alpha": 0.4},
        )
    ):
        one = trainer(pairs, tmp_path / f"{number}.pt", training(phase(**chosen, **options)), train=TRAIN)
        one.run()
        weights.append(one.model.image_projection.weight.detach())

    for number, some in enumerate(weights):
        assert not any(torch.equal(some, others) for others in weights[:number])


def test_a_training_killed_twice_ends_with_the_same_weights(
    pairs: CleanSet, undisturbed: Trainer, tmp_path: Path
) -> None:
    for moment in (5, 6, 9):
        with pytest.raises(Killed):
            trainer(
                pairs,
                tmp_path / "checkpoint.pt",
                TWO_PHASES,
                train=TRAIN,
                held_out=HELD_OUT,
                progress=KilledAfter(moment),
            ).run()
    again = trainer(pairs, tmp_path / "checkpoint.pt", TWO_PHASES, train=TRAIN, held_out=HELD_OUT)
    again.run()

    assert _equal(again.model, undisturbed.model)


def test_a_resumed_training_repeats_no_step_before_its_checkpoint(pairs: CleanSet, tmp_path: Path) -> None:
    seen: list[int] = []
    for stop in (KilledAfter(8), lambda done, *_: seen.append(done)):
        one = trainer(pairs, tmp_path / "c.pt", TWO_PHASES, train=TRAIN, progress=stop)
        try:
            one.run()
        except Killed:
            continue

    # Checkpoints are written every two steps and at the end of a phase, the first of which has seven.
    assert seen == list(range(8, STEPS + 1))


def test_a_checkpoint_of_another_training_is_neither_taken_up_nor_lost(
    pairs: CleanSet, tmp_path: Path
) -> None:
    other = trainer(
        pairs,
        tmp_path / "c.pt",
        training(phase(steps=4)),
        fingerprint="another",
        train=TRAIN,
    )
    other.run()
    kept = (tmp_path / "c.pt").read_bytes()

    again = trainer(pairs, tmp_path / "c.pt", TWO_PHASES, train=TRAIN, held_out=HELD_OUT)
    with pytest.raises(CapfiltError, match="4 steps into phase 1") as caught:
        again.run()

    assert str(tmp_path / "c.pt") in caught.value.fix
    assert (tmp_path / "c.pt").read_bytes() == kept


def test_the_seed_and_the_weights_move_what_is_learnt(pairs: CleanSet, tmp_path: Path) -> None:
    first, second = (
        trainer(pairs, tmp_path / name, training(phase(steps=3)), train=TRAIN) for name in ("a", "b")
    )
    second.seed = 8
    fresh = {name: weights.clone() for name, weights in first.model.state_dict().items()}

    first.run()
    second.run()

    assert not _equal(first.model, second.model)
    stood = [name for name, weights in first.model.state_dict().items() if torch.equal(weights, fresh[name])]
    assert stood == []


def test_rows_give_the_schedule_and_the_temperature_within_its_bounds(undisturbed: Trainer) -> None:
    rows = undisturbed.rows
    first = [row for row in rows if row["phase"] == "1: itc+itm+lm"]
    second = [row for row in rows if row["phase"] == "2: itc+itm"]

    assert len(first) + len(second) == len(rows)
    assert [row["step"] for row in first if row["name"] == "learning_rate"] == [2, 4, 6, 7]
    for mine, schedule, steps in zip((first, second), TWO_PHASES.phases, (7, 6), strict=True):
        rates = {row["step"]: row["value"] for row in mine if row["name"] == "learning_rate"}
        assert rates == {step: learning_rate(schedule, step - 1, steps) for step in rates}
    # ITM begins with the step that comes after 40% of seven.
    assert min(row["step"] for row in first if row["name"] == "itm" and row["split"] == "train") == 4
    assert [row["step"] for row in first if row["split"] == "validation" and row["name"] == "lm"] == [3, 6, 7]
    for value in values_of(rows, "temperature"):
        assert LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE


def test_a_row_of_losses_is_the_mean_of_its_steps(pairs: CleanSet, tmp_path: Path) -> None:
    every = training(phase(steps=4), every=100).model_copy(update={"log_every": 1})
    once = every.model_copy(update={"log_every": 4})

    single, together = (
        trainer(pairs, tmp_path / name, chosen) for name, chosen in (("a", every), ("b", once))
    )
    single.run()
    together.run()

    for name in ("itc", "itm", "lm", "gradient_norm"):
        four = values_of(single.rows, name)
        assert len(four) == 4
        assert values_of(together.rows, name) == pytest.approx([sum(four) / 4])


@pytest.mark.parametrize(("start", "pushed_to"), [(0.0011, LOWEST_TEMPERATURE), (0.499, HIGHEST_TEMPERATURE)])
def test_the_temperature_stays_within_its_bounds_however_hard_it_is_pushed(
    pairs: CleanSet, tmp_path: Path, start: float, pushed_to: float
) -> None:
    one = trainer(pairs, tmp_path / "c.pt", training(phase(steps=1, learning_rate=5.0, warmup=0.0)))
    with torch.no_grad():
        one.model.temperature.fill_(start)
    sign = -1 if pushed_to == LOWEST_TEMPERATURE else 1
    # Whatever the loss wants, the gradient wants the temperature out of its bounds.
    one.model.temperature.register_hook(lambda gradient: torch.full_like(gradient, -sign))

    one.run()

    assert one.model.temperature.item() == pytest.approx(pushed_to)


# -- batches without a wrong pair


def test_a_last_batch_of_one_pair_is_a_row_and_no_error(pairs: CleanSet, tmp_path: Path) -> None:
    # Nine pairs in batches of four: every third step has one pair.
    one = trainer(pairs, tmp_path / "c.pt", training(phase(steps=9, batch_size=4)), train=_distinct(pairs, 9))

    one.run()

    empty = [row["step"] for row in one.rows if row["name"] == "negatives" and row["value"] == 0]
    assert empty == [3, 6, 9]
    assert _is_finite(one.model)


def test_an_itm_that_begins_with_a_batch_of_one_is_no_error(pairs: CleanSet, tmp_path: Path) -> None:
    # The first step with ITM is the last of the first epoch, and it has one pair.
    late = phase(steps=6, batch_size=4, itm_from=0.33)
    one = trainer(pairs, tmp_path / "c.pt", training(late), train=_distinct(pairs, 9))

    one.run()

    assert next((row["step"], row["value"]) for row in one.rows if row["name"] == "negatives") == (3, 0.0)


def test_an_epoch_that_saw_no_wrong_pair_is_an_error_with_its_mend(pairs: CleanSet, tmp_path: Path) -> None:
    one = trainer(pairs, tmp_path / "c.pt", training(phase(steps=30, batch_size=1)), train=range(6))

    with pytest.raises(CapfiltError, match="a whole epoch had no wrong pair") as caught:
        one.run()

    assert not isinstance(caught.value, RunFailedError)
    assert "--set pretrain.phases.0.batch_size=64" in caught.value.fix
    assert len(_steps(one)) < 8


def test_equal_captions_all_over_are_an_error_too(pairs: CleanSet, tmp_path: Path) -> None:
    many = [n for n, pair in enumerate(pairs.pairs) if pair.caption_id == _commonest_caption(pairs)]
    assert len(many) > 1
    one = trainer(pairs, tmp_path / "c.pt", training(phase(steps=6, batch_size=8)), train=many)

    with pytest.raises(CapfiltError, match="captions differ"):
        one.run()


def test_a_phase_shorter_than_an_epoch_that_saw_no_wrong_pair_is_an_error(
    pairs: CleanSet, tmp_path: Path
) -> None:
    one = trainer(pairs, tmp_path / "c.pt", training(phase(steps=5, batch_size=1)), train=range(20))

    with pytest.raises(CapfiltError, match="no wrong pair"):
        one.run()


def test_without_itm_batches_of_one_train(pairs: CleanSet, tmp_path: Path) -> None:
    one = trainer(pairs, tmp_path / "c.pt", training(phase(steps=8, batch_size=1, itm=0.0)), train=range(4))

    one.run()

    assert values_of(one.rows, "itc") == [0.0] * 4
    assert values_of(one.rows, "negatives") == []
    assert _is_finite(one.model)


# -- losses that are no numbers


def test_weights_that_are_no_numbers_stop_the_training_before_they_are_kept(
    pairs: CleanSet, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "c.pt"
    one = trainer(pairs, checkpoint, training(phase(steps=10)))
    one.progress = lambda done, *_: done == 3 and _poison(one.model)

    with pytest.raises(RunFailedError, match="is nan at step 4") as caught:
        one.run()

    assert "--set pretrain.phases.0.learning_rate" in caught.value.fix
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["step"] == 2
    assert all(weights.isfinite().all() for weights in saved["model"].values())


@pytest.mark.parametrize("held_out", [(), HELD_OUT])
def test_an_absurd_learning_rate_leaves_no_checkpoint(
    pairs: CleanSet, tmp_path: Path, held_out: tuple[int, ...]
) -> None:
    # The only step is taken with good losses; it is the update that goes beyond all numbers.
    wild = phase(steps=1, learning_rate=1e38, warmup=0.0, weight_decay=1e3)
    one = trainer(pairs, tmp_path / "c.pt", training(wild), train=TRAIN, held_out=held_out)

    with pytest.raises(RunFailedError, match=r"nan|inf|not finite"):
        one.run()

    assert not (tmp_path / "c.pt").exists()


# -- how long, and on what


@pytest.mark.parametrize(("epochs", "size", "steps"), [(2.0, 8, 8), (0.1, 8, 1), (1.5, 10, 4), (1.0, 64, 1)])
def test_without_steps_the_epochs_count(
    pairs: CleanSet, tmp_path: Path, epochs: float, size: int, steps: int
) -> None:
    chosen = phase(steps=None, epochs=epochs, batch_size=size)

    assert trainer(pairs, tmp_path / "c.pt", training(chosen)).steps_of(chosen) == steps
    assert steps == max(1, round(epochs * math.ceil(29 / size)))


def test_every_objective_alone_trains_a_model_of_its_own_parts(pairs: CleanSet, tmp_path: Path) -> None:
    for name in ("itc", "lm"):
        chosen: Training = training(phase(steps=2, **{"itc": 0.0, "itm": 0.0, "lm": 0.0, name: 1.0}))
        one = trainer(pairs, tmp_path / name, chosen, objectives=(name,))
        one.run()
        assert {row["name"] for row in one.rows} >= {name, "learning_rate", "gradient_norm"}
        assert not {"itc", "itm", "lm"} - {name} & {row["name"] for row in one.rows}


def test_a_tiny_training_learns_its_pairs(pairs: CleanSet, tmp_path: Path) -> None:
    chosen = training(phase(steps=80, itm=0.0, itc=0.0, batch_size=16)).model_copy(update={"log_every": 20})
    plain = TINY.model_copy(update={"text": TINY.text.model_copy(update={"dropout": 0.0})})
    torch.manual_seed(0)
    model = MED(plain, len(words_of(pairs)), ("lm",))
    one = trainer(pairs, tmp_path / "c.pt", chosen, model=model)

    one.run()

    losses = values_of(one.rows, "lm")
    assert losses[-1] < 0.6 * losses[0]


def _equal(one: MED, other: MED) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def _is_finite(model: MED) -> bool:
    return all(bool(weights.isfinite().all()) for weights in model.state_dict().values())


def _poison(model: MED) -> None:
    with torch.no_grad():
        model.word_head.bias[3] = math.nan


def _steps(one: Trainer) -> set[int]:
    return {row["step"] for row in one.rows}


def _distinct(pairs: CleanSet, count: int) -> list[int]:
    """Indices of pairs that share neither image nor caption."""
    first: dict[int, int] = {}
    for number, pair in enumerate(pairs.pairs):
        first.setdefault(pair.caption_id, number)
    assert len(first) >= count
    return sorted(first.values())[:count]


def _commonest_caption(pairs: CleanSet) -> int:
    ids = [pair.caption_id for pair in pairs.pairs]
    return max(ids, key=ids.count)
