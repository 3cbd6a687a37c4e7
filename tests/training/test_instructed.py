from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import PIL.Image
import pytest
import torch
from small_language import language_folder, small_prompted, small_structure
from small_models import WORDS

from capfilt.data.instructions.example import Example
from capfilt.data.instructions.table import MappedExamples, write_table
from capfilt.data.instructions.templates import Template
from capfilt.errors import CapfiltError
from capfilt.models.language_vocabulary import LanguageVocabulary, load_language_vocabulary
from capfilt.models.vocabulary import Vocabulary, train_vocabulary
from capfilt.settings import Augment, Images, Input, Phase
from capfilt.training.instructed import (
    HeldOutInstructions,
    InstructedBatches,
    InstructionReader,
    Task,
)
from capfilt.training.language import InstructedBatch, language_losses
from capfilt.training.objectives import Setting
from capfilt.training.parallel import World

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.prompted import Words

SIDE = 16
IMAGES = Images(size_px=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
KEY = (7, "captioner", 0)
ASKS = (Template("the {question}"), Template("a small {question}"))
SAYS = (Template("a red circle"),)
NAMES = [
    "red",
    "circle",
    "above",
    "blue",
    "square",
    "small",
    "green",
    "cat",
    "sleeps",
    "under",
    "two",
    "long",
]
"""What is said of the pictures of a task; words that every small vocabulary can spell."""


def said_of(number: int) -> str:
    """Return the output of the picture that shows this number."""
    return f"dogs {NAMES[number % 100 % len(NAMES)]}"


def examples_of(name: str, pictures: list[Path]) -> list[Example]:
    return [
        Example(name, str(number), picture, {"question": "cat"}, (said_of(number),), ())
        for number, picture in enumerate(pictures)
    ]


@pytest.fixture(scope="module")
def bert() -> Vocabulary:
    return train_vocabulary(WORDS, 160)


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageVocabulary]:
    folder, found = tmp_path_factory.mktemp("languages"), {}
    for kind in ("opt", "llama", "t5"):
        path = language_folder(kind, folder / kind)
        found[kind] = load_language_vocabulary(path, small_structure(kind, path).language)
    return found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    """Pictures of one colour each, whose red says which they are."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for start, name, templates, count in ((0, "questions", ASKS, 7), (100, "captions", SAYS, 5)):
        pictures = []
        for number in range(count):
            pictures.append(folder / f"{start + number}.png")
            PIL.Image.new("RGB", (20, 20), (start + number, 0, 0)).save(pictures[-1])
        found.append(Task(name, examples_of(name, pictures), templates))
    return found


def reader(
    language: LanguageVocabulary, qformer: Vocabulary | None = None, **others: Any
) -> InstructionReader:
    given: dict[str, Any] = {
        "images": IMAGES,
        "qformer_tokens": 12,
        "language_tokens": 16,
        "device": torch.device("cpu"),
        "limits": Input(),
        **others,
    }
    return InstructionReader(language, qformer, **given)


WEIGHTS = {"questions": 0.5, "captions": 0.5}


def shown(batch: InstructedBatch) -> list[int]:
    """Which picture stands in each row."""
    return (batch.pixels[:, 0, 0, 0] * 255).round().long().tolist()


def texts(vocabulary: LanguageVocabulary | Vocabulary, words: Words) -> list[str]:
    return [vocabulary.decode(ids[real].tolist()) for ids, real in zip(words.ids, words.real, strict=True)]


@pytest.mark.parametrize("kind", ["opt", "llama", "t5"])
def test_a_row_holds_a_picture_its_instruction_and_its_output(
    kind: str, languages: dict[str, LanguageVocabulary], bert: Vocabulary, tasks: list[Task]
) -> None:
    known = languages[kind]
    batch = InstructedBatches(tasks, WEIGHTS, reader(known, bert)).at(0, 12, 1, *KEY)
    assert batch.asked is not None
    assert batch.pixels.shape == (12, 3, SIDE, SIDE)
    asked = [
        bert.decode(ids[real].tolist()) for ids, real in zip(batch.asked.ids, batch.asked.real, strict=True)
    ]
    assert asked == texts(known, batch.read)
    for number, read, output in zip(shown(batch), asked, texts(known, batch.output), strict=True):
        assert output == said_of(number)
        assert read in (("a red circle",) if number >= 100 else ("the cat", "a small cat"))
    assert len(set(asked)) == 3  # both templates of the questions were drawn
    ends = batch.output.ids.gather(1, batch.output.real.sum(1, keepdim=True) - 1)
    assert (ends == known.sep).all()
    first = batch.read.ids[:, 0]
    assert (first == known.begin[0]).all() if known.begin else (first != known.sep).all()
    last = batch.read.ids.gather(1, batch.read.real.sum(1, keepdim=True) - 1)
    assert (last == known.sep).all() == (kind == "t5")


@pytest.mark.parametrize("kind", ["opt", "llama", "t5"])
def test_instruction_and_output_read_as_two_words_where_they_meet(
    kind: str, languages: dict[str, LanguageVocabulary], tasks: list[Task]
) -> None:
    known = languages[kind]
    batch = InstructedBatches(tasks, WEIGHTS, reader(known)).at(0, 12, 1, *KEY)
    assert batch.asked is None
    for row in range(12):
        read = batch.read.ids[row][batch.read.real[row]].tolist()
        output = batch.output.ids[row][batch.output.real[row]].tolist()
        assert " dogs " in known.decode([*read, *output])
        assert "  " not in known.decode([*read, *output])


def test_a_long_instruction_loses_its_beginning_and_a_long_output_its_end(
    languages: dict[str, LanguageVocabulary], bert: Vocabulary, tasks: list[Task]
) -> None:
    said = "two dogs run slowly on the long beach"
    long = Example("long", "0", tasks[0].examples[0].image, {"question": "red blue green cat"}, (said,), ())
    task = Task("long", [long], (Template("the small table above a {question}"),))
    for kind, known in languages.items():
        short = reader(known, bert, qformer_tokens=5, language_tokens=6)
        batch = InstructedBatches([task], {"long": 1.0}, short).at(0, 1, 1, *KEY)
        assert batch.asked is not None
        assert bert.decode(batch.asked.ids[0].tolist()) == "blue green cat"
        assert batch.asked.ids[0, [0, -1]].tolist() == [bert.cls, bert.sep]
        assert batch.read.ids.shape == batch.output.ids.shape == (1, 6)
        whole = known.prompt("the small table above a red blue green cat")
        kept = 6 - len(known.begin)
        assert batch.read.ids[0].tolist() == [*known.begin, *whole[-kept:]]
        output = known.decode(batch.output.ids[0].tolist())
        assert said.startswith(output), kind
        assert 0 < len(output) < len(said), kind


def test_a_step_is_the_same_whatever_was_asked_before_it(
    languages: dict[str, LanguageVocabulary], bert: Vocabulary, tasks: list[Task]
) -> None:
    given = reader(languages["llama"], bert, augment=Augment(crop_least=0.5, flip=0.5, operations=1))
    steady = InstructedBatches(tasks, WEIGHTS, given)
    threaded = InstructedBatches(tasks, WEIGHTS, given, threads=2)
    steps = [steady.at(step, 4, 1, *KEY) for step in range(7)]
    for step, batch in enumerate(steps):
        other = threaded.at(step, 4, 1, *KEY)
        same(batch, other)
        same(batch, InstructedBatches(tasks, WEIGHTS, given).at(step, 4, 1, *KEY))
    assert len({tuple(shown(batch)) for batch in steps}) == 7


def same(one: InstructedBatch, other: InstructedBatch) -> None:
    assert torch.equal(one.pixels, other.pixels)
    for name in ("asked", "read", "output"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert torch.equal(mine.ids, theirs.ids)
        assert torch.equal(mine.real, theirs.real)


@pytest.mark.parametrize("parts", [1, 2])
def test_processes_share_the_rows_of_every_part(
    languages: dict[str, LanguageVocabulary], tasks: list[Task], parts: int
) -> None:
    given, known = reader(languages["llama"]), languages["llama"]
    whole = InstructedBatches(tasks, WEIGHTS, given).at(2, 8, parts, *KEY)
    halves = [
        InstructedBatches(tasks, WEIGHTS, given, world=World(rank, 2)).at(2, 8, parts, *KEY)
        for rank in (0, 1)
    ]
    for part in range(parts):
        expected = whole.part(part, parts)
        mine = [half.part(part, parts) for half in halves]
        assert [number for half in mine for number in shown(half)] == shown(expected)
        assert [text for half in mine for text in texts(known, half.read)] == texts(known, expected.read)
        assert [text for half in mine for text in texts(known, half.output)] == texts(known, expected.output)


def test_words_are_drawn_anew_when_an_example_is_met_again(
    languages: dict[str, LanguageVocabulary], tasks: list[Task]
) -> None:
    known, examples = languages["llama"], tasks[0].examples[:1]
    batches = InstructedBatches([Task("questions", examples, ASKS)], WEIGHTS, reader(known))
    met = {texts(known, batches.at(step, 1, 1, *KEY).read)[0] for step in range(20)}
    assert met == {"the cat", "a small cat"}


def test_examples_of_a_mapped_file_come_in_the_same_batches(
    languages: dict[str, LanguageVocabulary], bert: Vocabulary, tasks: list[Task], tmp_path: Path
) -> None:
    given = reader(languages["opt"], bert, augment=Augment(flip=0.5, operations=2))
    folder, mapped = tasks[0].examples[0].image.parent, []
    for task in tasks:
        write_table(tmp_path / task.name, task.examples, folder)
        mapped.append(replace(task, examples=MappedExamples(tmp_path / task.name, task.name, folder)))
    for threads in (0, 2):
        here, there = (InstructedBatches(each, WEIGHTS, given, threads=threads) for each in (tasks, mapped))
        for step in range(4):
            one, other = here.at(step, 8, 2, *KEY), there.at(step, 8, 2, *KEY)
            assert torch.equal(one.pixels, other.pixels)
            for words, others in (
                (one.asked, other.asked),
                (one.read, other.read),
                (one.output, other.output),
            ):
                assert words is not None
                assert others is not None
                assert torch.equal(words.ids, others.ids)
                assert torch.equal(words.real, others.real)
    one, other = (HeldOutInstructions(each, given, seed=7).rows(range(12)) for each in (tasks, mapped))
    assert torch.equal(one.pixels, other.pixels)
    assert torch.equal(one.output.ids, other.output.ids)


def test_a_picture_that_cannot_be_used_gives_its_row_to_the_next_of_its_task(
    languages: dict[str, LanguageVocabulary], tasks: list[Task], tmp_path: Path
) -> None:
    broken, known = tmp_path / "broken.png", languages["llama"]
    broken.write_bytes(b"no picture")
    questions = list(tasks[0].examples)
    questions[2] = replace(questions[2], image=broken)
    questions[6] = replace(questions[6], image=tmp_path / "missing.png")
    some = [Task("questions", questions, ASKS), tasks[1]]
    batches = InstructedBatches(some, WEIGHTS, reader(known))
    batch = batches.at(0, len(batches) * 4, 1, *KEY)
    counts = Counter(shown(batch))
    assert set(counts) == {0, 1, 3, 4, 5, *range(100, 105)}
    assert batches.refused["unreadable_image"] > 0
    assert batches.refused["missing_image"] > 0
    # Its whole row: instruction and output are those of the picture that is shown.
    outputs = texts(known, batch.output)
    assert outputs == [said_of(number) for number in shown(batch)]
    alone = InstructedBatches([Task("questions", [questions[2], questions[6]], ASKS)], WEIGHTS, reader(known))
    with pytest.raises(CapfiltError, match="none of the 2 pictures of questions can be used") as caught:
        alone.at(0, 2, 1, *KEY)
    assert "folder" in caught.value.fix


def test_a_task_without_examples_takes_no_part_and_none_at_all_is_refused(
    languages: dict[str, LanguageVocabulary], tasks: list[Task]
) -> None:
    given, empty = reader(languages["llama"]), Task("captions", [], SAYS)
    assert set(shown(InstructedBatches([tasks[0], empty], WEIGHTS, given).at(0, 7, 1, *KEY))) == set(range(7))
    with pytest.raises(CapfiltError, match="no data set has an example"):
        InstructedBatches([empty], WEIGHTS, given)


def test_an_example_that_no_template_fits_is_told_before_the_first_step(
    languages: dict[str, LanguageVocabulary], tasks: list[Task]
) -> None:
    odd = [*tasks[0].examples, replace(tasks[0].examples[0], parts={"text": "cat"})]
    with pytest.raises(CapfiltError, match="no template fits questions"):
        InstructedBatches([Task("questions", odd, ASKS)], WEIGHTS, reader(languages["llama"]))


def test_held_out_examples_are_measured_in_a_fixed_order_of_all_tasks(
    languages: dict[str, LanguageVocabulary], tasks: list[Task]
) -> None:
    known = languages["llama"]
    held_out = HeldOutInstructions(tasks, reader(known, augment=Augment(flip=1.0, operations=2)), seed=7)
    assert len(held_out) == 12
    whole = held_out.rows(range(12))
    numbers = shown(whole)  # and as they are: nothing is varied
    assert sorted(numbers) == [*range(7), *range(100, 105)]
    assert numbers != sorted(numbers)
    again = HeldOutInstructions(tasks, reader(known), seed=7)
    assert shown(again.rows(range(3, 6))) == numbers[3:6]
    assert texts(known, again.rows(range(3, 6)).read) == texts(known, whole.read)[3:6]
    for number, output in zip(numbers, texts(known, whole.output), strict=True):
        assert output == said_of(number)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_model_learns_what_it_is_to_say_of_each_picture(
    kind: Any, languages: dict[str, LanguageVocabulary], bert: Vocabulary, tasks: list[Task], tmp_path: Path
) -> None:
    structure = small_structure(kind, language_folder(kind, tmp_path / kind), "instructblip")
    model = small_prompted(structure, len(bert)).train()
    batches = InstructedBatches(tasks, WEIGHTS, reader(languages[kind], bert))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    phase, found = Phase(lm=1, label_smoothing=0), []
    for step in range(25):
        optimizer.zero_grad(set_to_none=True)
        setting = Setting(with_itm=False, key=(*KEY, step))
        done = language_losses(model, languages[kind], batches.at(step, 12, 1, *KEY), phase, setting)
        done.total.backward()
        optimizer.step()
        found.append(float(done.parts["lm"]))
    assert sum(found[-3:]) < 0.9 * sum(found[:3])
