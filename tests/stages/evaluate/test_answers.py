"""Answers to small data sets, against the same examples put to the model one by one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drawn
import PIL.Image
import pytest
import torch
import world
from qformer_folders import prompted_folder, qformer_folder

from capfilt.data.images import decode
from capfilt.data.instructions.learnt import Trainings, record_of
from capfilt.data.instructions.registry import read_registry
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.evaluation.answers import Answered, measure
from capfilt.models.answering import Answering
from capfilt.models.loading import captioner_of, open_bundle
from capfilt.models.prompted_captioner import PromptedCaptioner
from capfilt.models.protocols import ImageBatch
from capfilt.settings import Bootstrap, Decoding, SettledDecoding
from capfilt.stages.evaluate.answers import AnswersRequest, evaluate_answers
from capfilt.stages.evaluate.results import as_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.stages.evaluate.results import Evaluation

FIXTURES = Path(__file__).parents[2] / "data" / "instructions" / "fixtures"
OUT, IN = "held out, zero-shot", "held in"
OWN = """
class Always:
    digest = "always"

    def caption(self, batch, decoding, *, seed, candidates):
        answer = "Yes." if "dog" in decoding.prompt else decoding.prompt
        return [[answer] * candidates for _ in batch.pictures]


def captioner(device, precision):
    return Always()
"""
"""A captioner of a user's own that says yes where a dog is asked for, and else repeats the question."""
PICTURES, QUESTIONS = 5, ("is there a dog", "what sleeps under the table", "which colour is the circle")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompted_folder("t5", tmp_path_factory.mktemp("model") / "instructblip", "instructblip")


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets in their published formats, their pictures, and a registry that says where they lie."""
    folder = tmp_path_factory.mktemp("data sets")
    images = folder / "images"
    (images / "img").mkdir(parents=True)
    for number, name in enumerate(
        (
            "COCO_val2014_000000000007.jpg",
            "000000000009.jpg",
            "000000000010.jpg",
            "VisualDialog_val2018_000000000007.jpg",
            "img/01234.png",
            "img/01235.png",
            *(f"{n}.jpg" for n in range(PICTURES)),
        )
    ):
        (images / name).write_bytes(drawn.png(number))
    for file in FIXTURES.iterdir():
        shutil.copyfile(file, folder / file.name)
    # The model is right every other time, where it says something.
    answers = alone(model, [(images / f"{n}.jpg", f"{q} Answer briefly.") for n, q in asked()])
    rows = {
        f"{number:04}": {"question": q, "imageId": str(n), "answer": (number % 2 == 0 and answer) or "no"}
        for number, ((n, q), answer) in enumerate(zip(asked(), answers, strict=True))
    }
    (folder / "gqa_own.json").write_text(json.dumps(rows))
    (folder / "mine.toml").write_text(
        "\n".join(
            f'[[dataset]]\nname = "{name}"\nannotations = {json.dumps(files)}\nimages = "images"\n{more}'
            for name, files, more in (
                ("gqa", ["gqa_own.json"], ""),
                ("coco_caption", ["coco_captions.json"], ""),
                ("aokvqa", ["aokvqa.json"], ""),
                ("hateful_memes", ["hateful_memes.jsonl"], ""),
                ("visdial", ["visdial_val.json"], ""),
                ("llava_conversation", ["llava.json"], ""),
                ("msvd_qa", ["gqa.json"], ""),
            )
        )
    )
    return folder


def asked() -> list[tuple[int, str]]:
    return [(n, question) for n in range(PICTURES) for question in QUESTIONS]


def picture(path: Path) -> ImageBatch:
    data = path.read_bytes()
    return ImageBatch(
        [decode(data, max_pixels=1_000_000)],
        [hashlib.sha256(data).hexdigest()],
    )


def alone(model: Path, every: Sequence[tuple[Path, str]], method: Any = "greedy") -> list[str]:
    """Answer one by one, each with a batch of its own."""
    captioner = captioner_of(model, "cpu", "fp32")
    decoding = SettledDecoding(method=method, min_tokens=4, max_tokens=6)
    return [
        captioner.caption(picture(path), decoding.of(words), seed=0, candidates=1)[0][0]
        for path, words in every
    ]


def evaluated(
    model: Path, folder: Path, *datasets: str, registry: str = "mine.toml", **more: Any
) -> Evaluation:
    given = {"compute": {"device": "cpu", "precision": "fp32", "batch_size": 2}}
    method = more.pop("method", "greedy")
    settings = world.changed(Bootstrap(decoding=Decoding(method=method, min_tokens=4, max_tokens=6)), given)
    settings = world.changed(settings, more.pop("settings", {}))
    request = AnswersRequest(str(model), folder / registry, settings, datasets, **more)
    return evaluate_answers(request, world.InProcess(), world.QUIET)


def rows(evaluation: Evaluation, dataset: str) -> list[dict[str, Any]]:
    return [row for row in evaluation.found.items if row["dataset"] == dataset]


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_answers_are_those_of_each_example_alone(model: Path, folder: Path, method: Any) -> None:
    evaluation = evaluated(model, folder, "gqa", "coco_caption", method=method)
    mine = rows(evaluation, "gqa")
    words = [f"{question} Answer briefly." for _, question in asked()]
    paths = [folder / "images" / f"{n}.jpg" for n, _ in asked()]
    expected = alone(model, list(zip(paths, words, strict=True)), method)
    assert [row["instruction"] for row in mine] == words
    assert [row["image"] for row in mine] == [str(path) for path in paths]
    assert [row["answer"] for row in mine] == expected
    assert len(set(expected)) > 5  # pictures and questions both matter
    coco = rows(evaluation, "coco_caption")
    assert {row["instruction"] for row in coco} == {"A short caption of this picture:"}
    paths = [Path(row["image"]) for row in coco]
    assert [row["answer"] for row in coco] == alone(
        model, [(path, "A short caption of this picture:") for path in paths], method
    )


def test_a_figure_is_that_of_its_metric_and_the_commonest_answer_stands_beside_it(
    model: Path, folder: Path
) -> None:
    evaluation = evaluated(model, folder, "gqa", "coco_caption")
    found = drawn.figures(evaluation)
    said = [row["said"] for row in rows(evaluation, "gqa")]
    right = sum(row["answer"] in row["said"] for row in rows(evaluation, "gqa"))
    figure = found[OUT, "gqa: exact answers", "model"]
    assert 4 <= right <= 8
    assert figure.value == pytest.approx(right / 15)
    assert figure.low < figure.value < figure.high
    assert found[OUT, "gqa: exact answers", "without a picture"].value == pytest.approx(
        said.count(["no"]) / 15
    )
    coco = [
        Answered(row["image"], row["answer"], said=tuple(row["said"]))
        for row in rows(evaluation, "coco_caption")
    ]
    expected = measure("cider", coco, seed=0)
    assert found[IN, "coco_caption: CIDEr-D", "model"] == expected
    facts = evaluation.found.facts["datasets"]
    assert list(facts) == ["gqa", "coco_caption"]  # held out first
    assert (facts["gqa"]["examples"], facts["gqa"]["pictures"], facts["gqa"]["held"]) == (15, 5, "out")
    assert facts["gqa"]["templates"] == ["{question}[ Choose from {choices}.] Answer briefly."]
    assert facts["coco_caption"]["refused"] == {
        "text_empty": 1,
        "field_missing": 1,
        "picture_name": 1,
        "no_picture": 1,
        "no_answer": 1,
    }


def test_an_answer_may_be_one_token_unless_another_length_is_chosen(model: Path, folder: Path) -> None:
    for given, lengths in (
        ({"min_tokens": None}, (1, 6)),
        ({"min_tokens": None, "max_tokens": None}, (1, 20)),
        ({}, (4, 6)),
    ):
        evaluation = evaluated(model, folder, "gqa", limit=1, settings={"decoding": given})
        decoding = evaluation.found.facts["decoding"]
        assert (decoding["min_tokens"], decoding["max_tokens"]) == lengths


def test_candidates_are_ranked_by_their_likelihood(model: Path, folder: Path) -> None:
    evaluation = evaluated(model, folder, "aokvqa", "hateful_memes", "visdial")
    bundle: Any = open_bundle(model)
    answering = Answering(bundle, torch.device("cpu"))
    for row in evaluation.found.items:
        [expected] = answering.log_likelihoods(
            picture(Path(row["image"])), [0], [row["instruction"]], [row["candidates"]]
        )
        assert row["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
        assert row["answer"] == row["candidates"][expected.index(max(expected))]
    found = drawn.figures(evaluation)
    [tea] = rows(evaluation, "aokvqa")
    assert tea["candidates"] == ["tea", "sand", "bread", "wool"]
    figure = found[IN, "aokvqa: right one first", "model"]
    assert figure.value == float(tea["answer"] == "tea")
    assert found[IN, "aokvqa: right one first", "without a picture"].value == 0.25
    places = [
        1 + sum(score > row["log_likelihoods"][row["right"]] for score in row["log_likelihoods"])
        for row in rows(evaluation, "visdial")
    ]
    assert [len(row["candidates"]) for row in rows(evaluation, "visdial")] == [3, 3]
    assert found[OUT, "visdial: MRR", "model"].value == pytest.approx(sum(1 / p for p in places) / 2)
    assert found[OUT, "visdial: MRR", "without a picture"].value == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    hateful, harmless = (
        next(r for r in rows(evaluation, "hateful_memes") if r["right"] == right) for right in (0, 1)
    )
    margins = [r["log_likelihoods"][0] - r["log_likelihoods"][1] for r in (hateful, harmless)]
    assert found[OUT, "hateful_memes: AUROC", "model"].value == float(margins[0] > margins[1])
    assert found[OUT, "hateful_memes: AUROC", "without a picture"].value == 0.5


def test_a_picture_is_encoded_once_for_its_questions_and_a_shared_instruction_is_asked_together(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, str]] = []
    encoded = []
    caption = PromptedCaptioner.caption

    def counted(self: Any, batch: Any, decoding: Any, **more: Any) -> Any:
        calls.append((len(batch), decoding.prompt))
        before = self.model.vision_model.passes
        found = caption(self, batch, decoding, **more)
        encoded.append(self.model.vision_model.passes - before)
        return found

    monkeypatch.setattr(PromptedCaptioner, "caption", counted)
    own = folder / "own.json"
    own.write_text(
        json.dumps(
            {
                f"{n}{k}": {"question": f"{words} {n}", "imageId": str(n), "answer": "yes"}
                for n in range(3)
                for k, words in enumerate(QUESTIONS)
            }
        )
    )
    (folder / "own.toml").write_text(
        '[[dataset]]\nname = "gqa"\nannotations = ["own.json"]\nimages = "images"\n'
        '[[dataset]]\nname = "coco_caption"\nannotations = ["coco_captions.json"]\nimages = "images"\n'
    )
    evaluated(model, folder, registry="own.toml")
    questions = [call for call in calls if call[1] != "A short caption of this picture:"]
    assert questions == [(1, f"{words} {n} Answer briefly.") for n in range(3) for words in QUESTIONS]
    assert [call[0] for call in calls if call not in questions] == [2]
    assert sum(encoded) == 3 + 2


def test_what_is_not_asked_is_told_with_its_reason(model: Path, folder: Path) -> None:
    evaluation = evaluated(model, folder)
    assert evaluation.found.facts["skipped"] == {
        "llava_conversation": "its answers are free text, which no metric measures",
        "msvd_qa": "needs reader",
    }
    assert "msvd_qa is left out: needs reader." in evaluation.found.notes
    tables = {table for table, _, _ in drawn.figures(evaluation)}
    assert tables == {OUT, IN}


def test_a_captioner_that_only_writes_is_asked_what_is_written(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    data = tmp_path / "data.json"
    answers = ("yes", "no", "Yes", "which")
    data.write_text(
        json.dumps(
            {
                str(n): {"question": q, "imageId": str(n), "answer": a}
                for n, (q, a) in enumerate(
                    zip(("is it a dog", "a dog", "no dog", "which"), answers, strict=True)
                )
            }
        )
    )
    (tmp_path / "own.toml").write_text(
        "\n".join(
            f'[[dataset]]\nname = "{name}"\nannotations = ["{file}"]\nimages = "{folder / "images"}"'
            for name, file in (("gqa", "data.json"), ("aokvqa", folder / "aokvqa.json"))
        )
    )
    evaluation = evaluated(own, tmp_path, registry="own.toml")
    # It says yes to the first three, of which two are yes, and repeats the last question.
    assert drawn.figures(evaluation)[OUT, "gqa: exact answers", "model"].value == 0.5
    assert list(evaluation.found.facts["datasets"]) == ["gqa"]
    assert "candidates to rank" in evaluation.found.facts["skipped"]["aokvqa"]
    with pytest.raises(CapfiltError, match="no data set could be measured: aokvqa: it has candidates"):
        evaluated(own, tmp_path, "aokvqa", registry="own.toml")


def test_some_examples_are_drawn_by_the_seed(model: Path, folder: Path) -> None:
    def ids(seed: int) -> list[str]:
        evaluation = evaluated(model, folder, "gqa", limit=4, settings={"seed": seed})
        assert evaluation.found.facts["is_cut"]
        return [row["id"] for row in evaluation.found.items]

    assert ids(0) == ids(0) == sorted(ids(0))
    assert len(ids(0)) == 4
    assert ids(0) != ids(1)


def test_pictures_that_cannot_be_used_are_counted_and_the_others_answered(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    whole = {row["id"]: row for row in rows(evaluated(model, folder, "gqa", "aokvqa"), "gqa")}
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "images" / "2.jpg").write_bytes(b"no picture")
    PIL.Image.new("RGB", (900, 900)).save(tmp_path / "damaged" / "images" / "3.jpg")
    evaluation = evaluated(model, tmp_path / "damaged", "gqa", settings={"input": {"max_pixels": 100_000}})
    left = rows(evaluation, "gqa")
    assert [row["id"] for row in left] == [i for i, r in whole.items() if r["image"][-5] not in "23"]
    assert [row["answer"] for row in left] == [whole[row["id"]]["answer"] for row in left]
    refused = evaluation.found.facts["datasets"]["gqa"]["refused"]
    assert refused == {"unreadable_image": 3, "too_many_pixels": 3}  # of each its questions
    assert evaluation.found.facts["pictures"] == 3


def test_a_set_none_of_whose_pictures_can_be_used_is_left_out(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "damaged")
    for n in range(PICTURES):
        (tmp_path / "damaged" / "images" / f"{n}.jpg").write_bytes(b"no picture")
    found = evaluated(model, tmp_path / "damaged", "gqa", "aokvqa").found
    assert "no example can be used: 15 unreadable_image" in found.facts["skipped"]["gqa"]
    assert list(found.facts["datasets"]) == ["aokvqa"]


def test_a_model_that_diverged_ranks_nothing(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answering, "log_likelihoods", lambda *_: [[float("nan")] * 4])
    with pytest.raises(RunFailedError, match="no finite numbers"):
        evaluated(model, folder, "aokvqa")


def test_what_the_model_was_trained_on_is_said_beside_the_figure(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = read_registry(folder / "mine.toml")
    # Of its pictures one was held out from training on gqa's files, and none of those on A-OKVQA's.
    trained = [registry.dataset(name) for name in ("gqa", "aokvqa")]
    record = record_of(trained, {"gqa": ["0003", "0004", "0005"]})
    names = frozenset({*record, "coco_caption"})
    monkeypatch.setattr(Trainings, "on_card", lambda _: Trainings((record,), names))
    found = evaluated(model, folder, "gqa", "aokvqa", "coco_caption", "hateful_memes")

    assert [row["id"] for row in rows(found, "gqa")] == ["0003", "0004", "0005"]
    assert {one.row.partition(":")[0] for one in found.found.measured} == {
        "gqa (held out of its training)",
        "aokvqa (trained on)",
        "coco_caption (perhaps trained on)",
        "hateful_memes",
    }
    learnt = {name: one["learnt"] for name, one in as_json(found)["datasets"].items()}
    assert learnt == {
        "gqa": "held_out",
        "aokvqa": "yes",
        "coco_caption": "perhaps",
        "hateful_memes": "no",
    }
    notes = " ".join(found.found.notes)
    assert "gqa: the model was trained on its files; asked are 3 of the examples" in notes
    assert "aokvqa: the model was trained on these very examples" in notes
    assert "coco_caption: the model was trained on a data set of this name" in notes
    assert "hateful_memes:" not in notes


def test_a_registry_of_nothing_that_can_be_measured_is_refused_with_what_each_row_lacks(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "free.toml").write_text(
        '[[dataset]]\nname = "mine"\ncategory = "image_captioning"\nreader = "instructions"\n'
        'annotations = ["rows.json"]\nimages = "pictures"\n'
        '[[dataset]]\nname = "msvd_qa"\nannotations = ["rows.json"]\nimages = "pictures"\n'
    )
    with pytest.raises(CapfiltError) as refused:
        evaluated(model, tmp_path, registry="free.toml")
    assert "mine: its answers are free text, which no metric measures; msvd_qa: needs" in refused.value.what
    assert 'metric = "exact"' in (refused.value.fix or "")


def test_what_cannot_be_evaluated_is_the_users_error(model: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    for what, datasets, more in (
        ("names the files of no data set", (), {"registry": str(tmp_path / "empty.toml")}),
        ("there is no data set nowhere", ("nowhere",), {}),
        ("data set llava_conversation has no metric", ("llava_conversation",), {}),
        ("data set msvd_qa needs a reader", ("msvd_qa",), {}),
        ("data set vizwiz: 0 annotation files", ("vizwiz",), {}),
        ("cannot be read", (), {"registry": "nowhere.toml"}),
        ("a prompt is given", ("gqa",), {"settings": {"decoding": {"prompt": "Describe it."}}}),
    ):
        with pytest.raises(CapfiltError, match=what):
            evaluated(model, folder, *datasets, **more)
    matcher = qformer_folder(tmp_path / "filter", "filter", ("itc", "itm"))
    with pytest.raises(CapfiltError, match="filter cannot write captions"):
        evaluated(matcher, folder, "gqa")
    stage1 = qformer_folder(tmp_path / "stage1", "joint", ("itc", "itm", "lm"))
    with pytest.raises(CapfiltError, match="stage1 cannot write captions"):
        evaluated(stage1, folder, "gqa")
