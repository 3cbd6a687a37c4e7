"""Likelihoods of answers against a plain computation, one answer at a time; a filter made of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from small_language import language_folder, small_prompted_bundle
from small_models import pictures

from capfilt.data.images import normalise
from capfilt.models.answering import AnswerFilter, Answering
from capfilt.models.prompted import Words, read_instructions
from capfilt.models.vocabulary import train_vocabulary
from capfilt.settings import Matching

if TYPE_CHECKING:
    from capfilt.models.qformer_bundle import PromptedBundle
    from capfilt.models.vocabulary import Vocabulary

CPU = torch.device("cpu")
QUESTIONS = ("what is on the left", "is it red", "how many")
ANSWERS = (("a circle", "red"), ("yes", "no", "a red circle"), ("two",))
OF = (1, 0, 1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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
    target = [int(n) for n in words.encode_output([f"{blank}{answer}"], 16)[0][0]]
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
