from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prompted_steps import (
    BEGIN,
    CASES,
    END,
    PAD,
    Vocabulary,
    batch_of,
    double_model,
    instructions,
    pairs,
    step,
    taken,
)

from capfilt.models.prompted import SoftPrompted, Words
from capfilt.settings import Phase
from capfilt.training.language import (
    InstructedBatch,
    cuts,
    greedy_ids,
    language_losses,
    language_targets_in,
    one_row,
    prefix_and_rest,
    prompted,
    shifted,
)
from capfilt.training.objectives import Batch, Losses, Setting
from capfilt.training.optim import optimizer_of, update
from capfilt.training.parallel import World

KEY = ("seed", 5)
rows_of_ids = st.lists(st.lists(st.integers(3, 90), max_size=6), min_size=1, max_size=5)


def padded(rows: list[list[int]], pad: int = PAD) -> Words:
    longest = max(map(len, rows))
    real = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=torch.long)
    return Words(ids.view(len(rows), longest), real)


def unpadded(words: Words) -> list[list[int]]:
    return [ids[real].tolist() for ids, real in zip(words.ids, words.real, strict=True)]


def losses(
    model: SoftPrompted, batch: Batch | InstructedBatch, kind: str, phase: Phase | None = None, **setting: Any
) -> Losses:
    known: Any = Vocabulary(kind)
    phase = phase or Phase(lm=1, label_smoothing=0)
    return language_losses(model, known, batch, phase, Setting(with_itm=False, key=KEY, **setting))


# -- how rows are laid out


@given(read=rows_of_ids, output=rows_of_ids)
def test_an_output_follows_what_is_read_without_a_gap(read: list[list[int]], output: list[list[int]]) -> None:
    count = min(len(read), len(output))
    words, written = one_row(padded(read[:count]), padded(output[:count]), 99)
    for row in range(count):
        whole = [*read[row], *output[row]]
        width = words.ids.shape[1]
        assert words.ids[row].tolist() == whole + [99] * (width - len(whole))
        assert words.real[row].tolist() == [True] * len(whole) + [False] * (width - len(whole))
        assert words.ids[row][written[row]].tolist() == output[row]
        assert written[row].nonzero().flatten().tolist() == list(range(len(read[row]), len(whole)))


@given(rows=rows_of_ids, numbers=st.lists(st.integers(0, 6), min_size=5, max_size=5))
def test_a_caption_that_is_cut_is_its_prefix_and_the_rest(rows: list[list[int]], numbers: list[int]) -> None:
    places = [min(number, len(row)) for number, row in zip(numbers, rows, strict=False)]
    prefix, rest = prefix_and_rest(padded(rows), torch.tensor(places))
    assert unpadded(prefix) == [row[:place] for row, place in zip(rows, places, strict=True)]
    assert unpadded(rest) == [row[place:] for row, place in zip(rows, places, strict=True)]
    # What is real stands in front, as a decoder needs it.
    lengths = rest.real.sum(1, keepdim=True)
    assert torch.equal(rest.real, torch.arange(rest.ids.shape[1]) < lengths)


def test_what_a_decoder_is_given_is_what_it_writes_one_place_later() -> None:
    assert shifted(torch.tensor([[5, 6, 2], [7, 2, 0]]), 9).tolist() == [[9, 5, 6], [9, 7, 2]]


def test_a_prompt_at_the_beginning_of_captions_is_read_and_not_written() -> None:
    batch = pairs("opt", 3)
    found = prompted(batch, 3)
    assert unpadded(found.read) == [row[:3] for row in unpadded(Words(batch.ids, batch.real))]
    assert unpadded(found.output) == [row[3:] for row in unpadded(Words(batch.ids, batch.real))]
    assert found.asked is None


# -- where captions are cut


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8), least=st.integers(0, 1))
def test_the_rest_of_a_caption_holds_a_word_where_the_caption_has_one(lengths: list[int], least: int) -> None:
    lengths = [length + least for length in lengths]
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    for place, length in zip(cuts(real, least, KEY).tolist(), lengths, strict=True):
        assert least <= place <= max(least, length - 2)


def test_every_place_is_as_likely_as_any_other() -> None:
    real = torch.ones(6000, 8, dtype=torch.bool)
    counts = cuts(real, 1, KEY).bincount(minlength=8)
    assert counts[0] == counts[7] == 0
    # Six places with 1,000 each: five degrees of freedom, of which 25 is the 0.01% quantile.
    assert float(((counts[1:7] - 1000) ** 2 / 1000).sum()) < 25


def test_places_are_those_of_the_row_in_the_batch_of_all_processes() -> None:
    real = pairs("t5", 8).real
    whole = cuts(real, 0, KEY)
    halves = [cuts(real[4 * rank : 4 * rank + 4], 0, KEY, World(rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(whole, cuts(real, 0, (*KEY, 1)))
    assert len(set(whole.tolist())) > 2


# -- the loss


def mean_loss(model: SoftPrompted, **inputs: Any) -> float:
    """transformers' own loss, in single precision, over labels that are not -100."""
    with torch.no_grad():
        return float(model.language_model(**inputs).loss)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_decoders_loss_is_the_mean_over_what_it_writes(kind: str) -> None:
    model = double_model(kind, instructed=True)
    batch = instructions(kind, 3)
    found = float(losses(model, batch, kind).parts["lm"])
    total, tokens = 0.0, 0
    for row in range(3):
        one = taken(batch, [row])
        assert isinstance(one, InstructedBatch)
        assert one.asked is not None
        asked = Words(one.asked.ids[one.asked.real][None], one.asked.real[one.asked.real][None])
        prompts = model.soft_prompts(model.encode_image(one.pixels), asked)
        read, output = unpadded(one.read)[0], unpadded(one.output)[0]
        embedded = model.language_model.get_input_embeddings()(torch.tensor([[*read, *output]]))
        labels = torch.tensor([[*[-100] * (3 + len(read)), *output]])
        loss = mean_loss(model, inputs_embeds=torch.cat([prompts, embedded], 1), labels=labels)
        total, tokens = total + loss * len(output), tokens + len(output)
    assert found == pytest.approx(total / tokens, rel=1e-6)


def test_without_a_prompt_the_begin_token_is_written_after_the_last_query() -> None:
    model, batch = double_model("opt", instructed=False), pairs("opt", 1)
    prompts = model.soft_prompts(model.encode_image(batch.pixels))
    embedded = model.language_model.get_input_embeddings()(batch.ids)
    labels = torch.cat([torch.full((1, 3), -100), batch.ids], 1)
    assert batch.ids[0, 0] == BEGIN
    expected = mean_loss(model, inputs_embeds=torch.cat([prompts, embedded], 1), labels=labels)
    assert float(losses(model, batch, "opt").parts["lm"]) == pytest.approx(expected, rel=1e-6)


def test_an_encoder_reads_the_prefix_as_any_text_and_the_decoder_writes_the_rest() -> None:
    model, batch = double_model("t5", instructed=False), pairs("t5", 6)
    places = cuts(batch.real, 0, KEY).tolist()
    assert min(places) == 0  # one caption has nothing to read
    assert max(places) > 1
    total, tokens = 0.0, 0
    for row, caption in enumerate(unpadded(Words(batch.ids, batch.real))):
        prompts = model.soft_prompts(model.encode_image(batch.pixels[[row]]))
        read, rest = [*caption[: places[row]], END], caption[places[row] :]
        embedded = model.language_model.get_input_embeddings()(torch.tensor([read]))
        states = torch.cat([prompts, embedded], 1)
        total += mean_loss(model, inputs_embeds=states, labels=torch.tensor([rest])) * len(rest)
        tokens += len(rest)
    known: Any = Vocabulary("t5")
    assert int(language_targets_in(model, known, batch, [KEY])) == tokens
    assert float(losses(model, batch, "t5").parts["lm"]) == pytest.approx(total / tokens, rel=1e-6)


@pytest.mark.parametrize(("kind", "instructed"), CASES)
def test_padding_changes_nothing(kind: str, instructed: bool) -> None:
    model, batch = double_model(kind, instructed=instructed), batch_of(kind, 4, instructed=instructed)
    expected = losses(model, batch, kind).parts["lm"]

    def wider(words: Words) -> Words:
        more = torch.full((4, 3), 7)
        return Words(torch.cat([words.ids, more], 1), torch.cat([words.real, more < 0], 1))

    if isinstance(batch, InstructedBatch):
        assert batch.asked is not None
        padded_batch: Any = InstructedBatch(
            batch.pixels, wider(batch.asked), wider(batch.read), wider(batch.output)
        )
    else:
        words = wider(Words(batch.ids, batch.real))
        padded_batch = Batch(batch.pixels, words.ids, words.real, batch.image_ids, batch.caption_ids)
    torch.testing.assert_close(losses(model, padded_batch, kind).parts["lm"], expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("kind", "instructed"), CASES)
def test_label_smoothing_spreads_its_share_over_the_vocabulary(kind: str, instructed: bool) -> None:
    model, batch = double_model(kind, instructed=instructed), batch_of(kind, 1, instructed=instructed)
    kept: list[torch.Tensor] = []
    name = "target_logits" if model.is_encoder_decoder else "logits"
    call = getattr(model, name)
    setattr(model, name, lambda *given: kept.append(call(*given)) or kept[0])
    plain = float(losses(model, batch, kind).parts["lm"])
    smooth = losses(model, batch, kind, Phase(lm=3, label_smoothing=0.2))
    known: Any = Vocabulary(kind)
    tokens = int(language_targets_in(model, known, batch, [KEY]))
    logits = kept[0].log_softmax(-1)[0]
    if model.is_encoder_decoder:
        guessed = logits[:tokens]
    else:
        ends = 3 + int(batch.real.sum() if isinstance(batch, Batch) else batch.read.real.sum() + tokens) - 1
        guessed = logits[ends - tokens : ends]
    evenly = float(-guessed.detach().mean())
    assert float(smooth.parts["lm"]) == pytest.approx(0.8 * plain + 0.2 * evenly, rel=1e-9)
    assert float(smooth.total.detach()) == pytest.approx(3 * float(smooth.parts["lm"]))


@pytest.mark.parametrize(("kind", "instructed"), CASES)
def test_parts_of_a_step_add_up_to_the_whole(kind: str, instructed: bool) -> None:
    whole, parts = (step(kind, instructed=instructed, parts=number) for number in (1, 2))
    if kind == "t5" and not instructed:
        # Rows of a part have draws of their own, so the captions are cut elsewhere.
        assert whole["tokens"] != parts["tokens"]
        return
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-7, rtol=0, msg=lambda m, n=name: n + m)


def test_counted_targets_are_those_of_the_losses_in_every_part() -> None:
    model, batch, known = double_model("t5", instructed=False), pairs("t5", 8), Vocabulary("t5")
    keys: list[tuple[str | int, ...]] = [KEY, (*KEY, 1)]
    vocabulary: Any = known
    alone = [
        int(language_targets_in(model, vocabulary, batch.part(number, 2), [key]))
        for number, key in enumerate(keys)
    ]
    assert int(language_targets_in(model, vocabulary, batch, keys)) == sum(alone)


# -- what trains


@pytest.mark.parametrize(("kind", "instructed"), CASES)
def test_frozen_weights_do_not_move_and_all_others_do(kind: str, instructed: bool) -> None:
    model = double_model(kind, instructed=instructed)
    batch = batch_of(kind, 4, instructed=instructed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    phase = Phase(lm=1, label_smoothing=0, learning_rate=1e-2, weight_decay=0.1, decays="everything")
    optimizer = optimizer_of(model, phase)
    found = []
    for _ in range(3):
        model.train()
        optimizer.zero_grad(set_to_none=True)
        done = losses(model, batch, kind, phase)
        done.total.backward()
        update(model, optimizer, 1.0)
        found.append(float(done.parts["lm"]))
    assert found[2] < found[0]
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    frozen = {n for n in before if n.startswith(("language_model.", "vision_model.e"))}
    assert frozen
    assert moved == before.keys() - frozen
    assert {"query_tokens", "language_projection.weight", "vision_model.post_layernorm.weight"} <= moved
    assert any(name.startswith("qformer.encoder.layer.0.crossattention") for name in moved)


@pytest.mark.parametrize(("kind", "instructed"), CASES)
@torch.no_grad()
def test_greedy_outputs_are_the_likeliest_words_one_after_the_other(kind: str, instructed: bool) -> None:
    model, batch = double_model(kind, instructed=instructed), batch_of(kind, 3, instructed=instructed)
    known: Any = Vocabulary(kind)
    found = greedy_ids(model, known, batch, 5)
    assert found.shape == (3, 5)
    for row in range(3):
        one = taken(batch, [row])
        asked = one.asked if isinstance(one, InstructedBatch) else None
        prompts = model.soft_prompts(model.encode_image(one.pixels), asked)
        read = unpadded(one.read)[0] if isinstance(one, InstructedBatch) else known.prompt("")
        running, logits = model.begin(prompts, torch.tensor([read]))
        for column in range(5):
            following = int(logits.argmax())
            assert int(found[row, column]) == following
            if following == END:
                assert (found[row, column:] == END).all()
                break
            logits = running.next_logits(torch.tensor([[following]]))
