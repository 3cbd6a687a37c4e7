from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from small_models import enlarge
from trainings import ALL, TINY, batches, drawn_pairs, phase, trainer, training, values_of, words_of

from capfilt.models.med import MED
from capfilt.training.objectives import Setting, step_losses, with_first
from capfilt.training.validation import FEWEST, Validation

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.data.clean import CleanSet
    from capfilt.models.vocabulary import Vocabulary

STUCK_AT = -math.log(1 / 3) / 3 - 2 * math.log(2 / 3) / 3
"""ITM that answers every pair alike, of which a third is right."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> CleanSet:
    return drawn_pairs(tmp_path_factory.mktemp("many"), 44)


def model_of(vocabulary: Vocabulary) -> MED:
    model = MED(TINY, len(vocabulary), ALL)
    enlarge(model, seed=2)
    return model.eval()


def test_losses_are_means_over_batches_like_those_of_training(many: CleanSet) -> None:
    vocabulary = words_of(many)
    model, held_out = model_of(vocabulary), batches(many, range(8, 26), vocabulary)
    chosen = phase(batch_size=16, accumulate=2, momentum=0.9, queue=20, alpha=0.4)

    found = Validation(model, vocabulary, held_out, chosen, (3, "joint")).measure()

    plain = phase(batch_size=8)
    expected: dict[str, list[float]] = {"itc_chance": [math.log(8), math.log(8), math.log(2)]}
    for start, stop in ((0, 8), (8, 16), (16, 18)):
        setting = Setting(with_itm=True, key=(3, "joint", "validation", start))
        with torch.no_grad():
            losses = step_losses(model, vocabulary, held_out.rows(range(start, stop)), plain, setting)
        for name, value in losses.parts.items():
            expected.setdefault(name, []).append(float(value))
    assert set(found) == {"itc", "itm", "lm", "itc_chance", "itm_positive", "itm_negative"}
    assert found == pytest.approx({name: sum(values) / 3 for name, values in expected.items()}, rel=1e-6)


def test_probabilities_of_right_and_of_wrong_pairs_are_told_apart(many: CleanSet) -> None:
    """A pair of its own images and captions, so that the wrong pairs are the only ones there can be."""
    vocabulary = words_of(many)
    model = model_of(vocabulary)
    captions = {pair.caption_id: index for index, pair in reversed(list(enumerate(many.pairs)))}
    held_out = batches(many, sorted(captions.values())[:2], vocabulary)

    found = Validation(model, vocabulary, held_out, phase(batch_size=2), (0,)).measure()

    batch = held_out.rows(range(2))
    images, texts = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        logits = model.itm_logits(
            with_first(batch.ids, vocabulary.first_id("enc"))[texts],
            batch.real[texts],
            [layer.take(images) for layer in model.memory(model.encode_image(batch.pixels))],
        )
    match = logits.double().exp()[:, 1] / logits.double().exp().sum(1)
    assert found["itm_positive"] == pytest.approx(float(match[:2].mean()), rel=1e-5)
    assert found["itm_negative"] == pytest.approx(float(match[2:].mean()), rel=1e-5)
    assert found["itm_positive"] != pytest.approx(found["itm_negative"], rel=1e-3)


def test_captions_are_counted_by_how_many_of_them_differ(many: CleanSet) -> None:
    vocabulary = words_of(many)
    model, held_out = model_of(vocabulary), batches(many, range(FEWEST), vocabulary)
    validation = Validation(model, vocabulary, held_out, phase(itc=0.0, itm=0.0), (0,))

    with torch.no_grad():
        for layer in model.text.layers:
            layer.cross.out.weight.mul_(20)  # or a picture matters little
        spoken = set()
        for row in range(FEWEST):
            batch = held_out.rows(range(row, row + 1))
            memory = model.memory(model.encode_image(batch.pixels))
            words = [vocabulary.first_id("dec")]
            while len(words) <= 12 and vocabulary.sep not in words:
                words.append(int(model.lm_logits(torch.tensor([words]), memory)[0, -1].argmax()))
            spoken.add(tuple(words))
    assert 1 < len(spoken) < FEWEST
    assert validation.measure()["distinct_captions"] == len(spoken) / FEWEST

    with torch.no_grad():
        model.word_head.bias[vocabulary.sep] = 1e4  # it says nothing of anything
    assert validation.measure()["distinct_captions"] == 1 / FEWEST


def test_too_few_pictures_say_nothing_of_captions_and_none_say_nothing_at_all(many: CleanSet) -> None:
    vocabulary = words_of(many)
    model = model_of(vocabulary)

    few, none = (
        Validation(model, vocabulary, batches(many, range(count), vocabulary), phase(), (0,)).measure()
        for count in (FEWEST - 1, 0)
    )

    assert "distinct_captions" not in few
    assert "lm" in few
    assert none == {}


def test_a_training_that_is_stuck_is_told_once_and_not_again_when_it_goes_on(
    many: CleanSet, tmp_path: Path
) -> None:
    """ITM answers the base rate to every pair, and at this learning rate it goes on to."""
    vocabulary = words_of(many)
    torch.manual_seed(0)
    model = MED(TINY, len(vocabulary), ALL)
    with torch.no_grad():
        model.itm_head.weight.zero_()
        model.itm_head.bias.copy_(torch.tensor([math.log(2 / 3), math.log(1 / 3)]))
    still = phase(steps=18, learning_rate=1e-12, weight_decay=0.0)
    said: list[str] = []

    for stop in (12, None):
        one = trainer(
            many,
            tmp_path / "c.pt",
            training(still),
            train=range(22, 44),
            held_out=range(22),
            model=model,
            progress=lambda done, *_, stop=stop: _killed(done == stop),
        )
        one.say = said.append
        try:
            one.run()
        except _Killed:
            assert len(said) == 3, "all was to be told before"

    assert len(said) == 3
    assert ["captions are all but constant" in words for words in said].count(True) == 1
    assert ["ITC is at chance" in words for words in said].count(True) == 1
    stuck = [words for words in said if "stuck at the base rate" in words]
    assert len(stuck) == 1
    assert stuck[0].startswith("training the joint: ITM is stuck at the base rate since step 3")
    assert "--set pretrain.phases.0.itm_from=0.5" in stuck[0]
    assert values_of(one.rows, "itm", "validation") == pytest.approx([STUCK_AT] * 6, abs=5e-3)
    for name, expected in (("itm_positive", 1 / 3), ("itm_negative", 1 / 3), ("itc_chance", None)):
        values = values_of(one.rows, name, "validation")
        assert len(values) == 6
        if expected is not None:
            assert values == pytest.approx([expected] * 6, abs=1e-3)
    assert len(values_of(one.rows, "distinct_captions", "validation")) == 6


class _Killed(Exception):
    """Stands for SIGKILL."""


def _killed(now: bool) -> None:
    if now:
        raise _Killed
