"""Likelihoods of answers against a plain computation, one answer at a time; a filter made of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from small_language import language_folder, small_prompted_bundle
from small_models import pictures

from capfilt.data.images import normalise
from capfilt.errors import CapfiltError
from capfilt.models.answering import YES_OR_NO, AnswerFilter, Answering
from capfilt.models.prompted import Words, read_instructions, whole_instructions
from capfilt.models.questions import shortened
from capfilt.models.vocabulary import train_vocabulary
from capfilt.settings import Matching

if TYPE_CHECKING:
    from capfilt.models.qformer_bundle import PromptedBundle
    from capfilt.models.vocabulary import Vocabulary

CPU = torch.device("cpu")
QUESTIONS = ("what is on the left", "is it red", "how many")
ANSWERS = (("a circle", "red"), ("yes", "no", "a red circle"), ("two",))
OF = (1, 0, 1)


@pytest.fixture(scope="module")
def reader() -> Vocabulary:
    return train_vocabulary([*QUESTIONS, *(text for mine in ANSWERS for text in mine)], 200)


@pytest.fixture(scope="module", params=["opt", "t5", "llama"])
def bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, reader: Vocabulary
) -> PromptedBundle:
    folder = language_folder(request.param, tmp_path_factory.mktemp("language") / "model")
    return small_prompted_bundle(request.param, folder, "instructblip", reader)


@torch.inference_mode()
def plain(bundle: PromptedBundle, picture: int, question: str, answer: str) -> float:
    """Return the sum of log-probabilities of an answer's tokens, each by a pass of its own, in one row."""
    model, words = bundle.model, bundle.vocabulary
    square = torch.from_numpy(pictures(2).squares(bundle.card.blip2.images)[picture : picture + 1])
    states = model.encode_image(normalise(square, bundle.card.blip2.images))
    assert bundle.reader is not None
    prompts = model.soft_prompts(states, read_instructions(bundle.reader, [question], 12))
    asked = words.prompt(question)
    blank = "" if words.is_encoder else words.blank
    target = [int(n) for n in words.encode_output([f"{blank}{answer}"], 40)[0][0]]
    total, written = 0.0, list[int]()
    for token in target:
        if model.is_encoder_decoder:
            read = Words(torch.tensor([asked]), torch.ones(1, len(asked), dtype=torch.bool))
            logits = model.target_logits(prompts, read, torch.tensor([[model.decoder_start, *written]]))
        else:
            row = torch.tensor([[*asked, *written]])
            logits = model.logits(prompts, Words(row, torch.ones_like(row, dtype=torch.bool)))
        total += float(logits[0, -1].double().log_softmax(-1)[token])
        written.append(token)
    return total


def test_likelihoods_are_those_of_each_answer_alone(bundle: PromptedBundle) -> None:
    answering = Answering(bundle, CPU)
    found = answering.log_likelihoods(pictures(2), OF, QUESTIONS, ANSWERS)
    expected = [
        [plain(bundle, picture, question, answer) for answer in mine]
        for picture, question, mine in zip(OF, QUESTIONS, ANSWERS, strict=True)
    ]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=2e-4)


def test_pictures_are_encoded_once_for_all_questions(bundle: PromptedBundle) -> None:
    answering, batch = Answering(bundle, CPU), pictures(2)
    before = bundle.model.vision_model.passes
    answering.log_likelihoods(batch, OF, QUESTIONS, ANSWERS)
    answering.log_likelihoods(batch, OF, QUESTIONS, ANSWERS)
    assert bundle.model.vision_model.passes - before == 2


def test_the_filter_gives_the_chance_of_yes_against_no(bundle: PromptedBundle) -> None:
    texts = [["a red circle", "{braces} {text}"], [], ["two"]]
    question = "does it show {text} ?"
    scores = AnswerFilter(bundle, CPU, matching=Matching(question=question)).score(pictures(3), texts)
    assert [len(mine) for mine in scores] == [2, 0, 1]
    answering = Answering(bundle, CPU)
    asked = [question.replace("{text}", text) for mine in texts for text in mine]
    likelihoods = answering.log_likelihoods(pictures(3), [0, 0, 2], asked, [("yes", "no")] * 3)
    expected = [math.exp(yes) / (math.exp(yes) + math.exp(no)) for yes, no in likelihoods]
    found = [score.vqa for mine in scores for score in mine]
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(set(found)) == 3
    assert all(score.itc is None and score.itm is None for mine in scores for score in mine)


def test_a_question_longer_than_what_is_trained_on_is_read_whole(bundle: PromptedBundle) -> None:
    question = "red circle " * 9 + "how many"  # 16 tokens are trained on, and there are 48 places
    assert 16 < len(bundle.vocabulary.prompt(question)) < 40
    [found] = Answering(bundle, CPU).log_likelihoods(pictures(2), [1], [question], [["two", "red"]])
    assert found == pytest.approx([plain(bundle, 1, question, answer) for answer in ("two", "red")], abs=2e-4)


def test_long_answers_that_differ_at_their_end_alone_have_likelihoods_of_their_own(
    bundle: PromptedBundle,
) -> None:
    answers = [f"{'a ' * 17}{last}" for last in ("two", "red")]
    written = bundle.vocabulary.encode_output([f"{bundle.vocabulary.blank}{answers[0]}"], None)[0][0]
    assert 16 < len(written) <= (48 - 3) // 2
    [found] = Answering(bundle, CPU).log_likelihoods(pictures(2), [0], ["how many"], [answers])
    assert abs(found[0] - found[1]) > 1e-3
    assert found == pytest.approx([plain(bundle, 0, "how many", answer) for answer in answers], abs=5e-4)


def test_a_question_beyond_the_places_loses_its_beginning_whatever_is_asked_beside_it(
    bundle: PromptedBundle,
) -> None:
    answering, asked = Answering(bundle, CPU), "is it red " * 30 + "how many"
    [alone] = answering.log_likelihoods(pictures(2), [0], [asked], [["two"]])
    beside = answering.log_likelihoods(
        pictures(2), [0, 1], [asked, "is it red"], [["two"], ["a circle on the left"]]
    )
    assert beside[0] == pytest.approx(alone, abs=1e-4)
    if not bundle.model.is_encoder_decoder:
        [longer] = answering.log_likelihoods(pictures(2), [0], ["red " + asked], [["two"]])
        assert longer == alone


FRAME = "is it {text} ?"
WORDS = ("red", "circle", "left", "two", "yes", "many")


@pytest.fixture(scope="module")
def asking(bundle: PromptedBundle) -> AnswerFilter:
    return AnswerFilter(bundle, CPU, matching=Matching(question=FRAME))


@hypothesis.given(
    first=st.lists(st.sampled_from(WORDS), min_size=2, max_size=2, unique=True),
    rest=st.lists(st.sampled_from([*WORDS, "x" * 40, "{text}", "\n"]), max_size=60).map(" ".join),
)
@hypothesis.settings(max_examples=12, derandomize=True)
def test_texts_that_differ_in_their_first_word_are_asked_about_apart_at_any_length(
    asking: AnswerFilter, bundle: PromptedBundle, first: list[str], rest: str
) -> None:
    assert bundle.reader is not None
    texts = [f"{word} {rest}".strip() for word in first]
    asked = [asking._asked(text) for text in texts]
    before, after = FRAME.split("{text}")
    for question, word in zip(asked, first, strict=True):
        assert question.startswith(before + word)
        assert question.endswith(after)
        assert len(whole_instructions(bundle.reader, [question])[0]) <= 12  # all that the Q-Former reads
        assert asking._answering.fits(question, YES_OR_NO)
    [[one, other]] = asking.score(pictures(1), [texts])
    assert one.vqa != other.vqa


def test_a_question_that_leaves_no_room_for_a_text_is_refused(bundle: PromptedBundle) -> None:
    with pytest.raises(CapfiltError, match="no room for 4 words") as refused:
        AnswerFilter(bundle, CPU, matching=Matching(question="is it red " * 4 + "{text} ?"))
    assert "filter.question" in refused.value.fix


@hypothesis.given(st.text(max_size=60), st.integers(0, 60))
def test_a_text_is_shortened_to_whole_words_that_fit_and_to_no_fewer(text: str, most: int) -> None:
    found = shortened(text, lambda some: len(some) <= most)
    assert text.startswith(found)
    assert len(found) <= most
    if found != text and len(found) < most:
        following = text[len(found) :].split()
        # Of a first word that is too long a part is kept; else the next word would have been too much.
        assert (
            len(found) == most
            or not following
            or text.find(following[0], len(found)) + len(following[0]) > most
        )
