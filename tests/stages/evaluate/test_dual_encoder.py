"""The dual encoder beside a filter, against transformers' own logits on the same files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import drawn
import numpy as np
import pytest
import small_clip
import torch
from qformer_folders import prompted_folder
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessorPil, SiglipImageProcessorPil

from capfilt.errors import CapfiltError
from capfilt.stages.evaluate.dual_encoder import DualEncoder
from capfilt.stages.evaluate.filtering import FilterChoices
from capfilt.stages.evaluate.retrieval import RetrievalChoices

if TYPE_CHECKING:
    from pathlib import Path

OWN = """
from capfilt.records import Scores


class Even:
    digest = "even"

    def score(self, batch, texts):
        return [[Scores(itc=0.0) for _ in mine] for mine in texts]


def filter(device, precision):
    return Even()
"""
"""A filter of a user's own that gives every pair the same score."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip.siglip(tmp_path_factory.mktemp("siglip"))


def logits(folder: Path, pairs: Any, processor: Any, padding: Any) -> np.ndarray:
    """What transformers gives for every picture and text: shape (pictures, texts), scale and bias undone."""
    model = AutoModel.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels = processor.from_pretrained(folder)(
        images=[picture.convert("RGB") for picture in pairs.batch(range(pairs.pictures)).pictures],
        return_tensors="pt",
    )
    words = tokenizer(pairs.texts, padding=padding, truncation=True, max_length=12, return_tensors="pt")
    with torch.inference_mode():
        found = model(
            pixel_values=pixels["pixel_values"],
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"] if padding is True else None,
        ).logits_per_image
        bias = getattr(model, "logit_bias", torch.zeros(()))
        cosines: np.ndarray = ((found - bias) / model.logit_scale.exp()).numpy()
    return cosines


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_cosines_are_those_of_transformers(kind: str, test_set: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    pairs = drawn.pairs(test_set)
    theirs = logits(
        folder,
        pairs,
        CLIPImageProcessorPil if kind == "clip" else SiglipImageProcessorPil,
        True if kind == "clip" else "max_length",
    )
    ours = DualEncoder(str(folder), "cpu")
    pictures = np.concatenate([ours.image_features(pairs.batch([n]).pictures) for n in range(pairs.pictures)])
    texts = np.concatenate([ours.text_features(pairs.texts[:10]), ours.text_features(pairs.texts[10:])])
    assert theirs.std(axis=0).min() > 1e-3  # what is seen matters
    assert theirs.std(axis=1).min() > 1e-3  # what is read matters
    assert pictures @ texts.T == pytest.approx(theirs, abs=2e-6)


def test_it_ranks_and_scores_beside_the_filter(
    clip: Path, bundles: dict[str, Path], test_set: Path, noisy_set: Path
) -> None:
    theirs = logits(clip, drawn.pairs(test_set), CLIPImageProcessorPil, True)
    right = drawn.pairs(test_set).right_texts()
    evaluation = drawn.evaluated("retrieval", bundles["filter"], test_set, RetrievalChoices(), clip=str(clip))
    for k in (1, 5):
        first = np.argsort(-theirs, axis=1)[:, :k]
        hits = [bool(set(mine) & set(found.tolist())) for mine, found in zip(right, first, strict=True)]
        figure = drawn.figures(evaluation)["image to text", "dual encoder", f"R@{k}"]
        assert figure.value == pytest.approx(np.mean(hits))
    facts = evaluation.found.facts["dual_encoder"]
    assert (facts["source"], facts["kind"], facts["revision"]) == (str(clip), "clip", None)

    pairs = drawn.pairs(noisy_set, kind_field="noise_kind")
    theirs = logits(clip, pairs, CLIPImageProcessorPil, True)
    found = drawn.evaluated(
        "filter", bundles["filter"], noisy_set, FilterChoices("noise_kind"), clip=str(clip)
    )
    mine = [row["dual_encoder"] for row in found.found.items]
    assert mine == pytest.approx([theirs[p.image_id, p.caption_id] for p in pairs.pairs], abs=2e-6)
    assert found.found.facts["encoder_passes"] == 30  # the filter's own, as without it


def test_given_as_the_model_it_is_ranked_and_measured_by_its_cosine(clip: Path, test_set: Path) -> None:
    """As the filter of a run: the same candidates, ranks and hardest wrong texts as transformers' numbers."""
    pairs = drawn.pairs(test_set)
    theirs = logits(clip, pairs, CLIPImageProcessorPil, True)
    evaluation = drawn.evaluated("retrieval", clip, test_set, RetrievalChoices(top_k=4))
    assert {row for _, row, _ in drawn.figures(evaluation)} == {"ITC", "chance"}
    for rows, table in (
        (evaluation.found.items[: pairs.pictures], theirs),
        (evaluation.found.items[pairs.pictures :], theirs.T),
    ):
        firsts = [row["best_itc"] for row in rows]
        names = pairs.texts if table is theirs else [pairs.key(n) for n in range(pairs.pictures)]
        assert firsts == [names[best] for best in table.argmax(1)]
    assert evaluation.found.facts["encoder_passes"] == pairs.pictures

    measured = drawn.evaluated("filter", clip, test_set, FilterChoices())
    assert {row for _, row, _ in drawn.figures(measured)} == {"ITC", "text alone", "random"}
    pictures = {pairs.sha256(n): n for n in range(pairs.pictures)}
    for row in measured.found.items:
        picture = pictures[row["image_sha256"]]
        assert row["itc"] == pytest.approx(theirs[picture, pairs.texts.index(row["text"])], abs=2e-6)
        if row["kind"] == "the hardest by ITC":
            own = {pair.group_id for pair in pairs.pairs if pair.image_id == picture}
            wrong = [pair.caption_id for pair in pairs.pairs if pair.group_id not in own]
            assert row["itc"] == pytest.approx(theirs[picture, wrong].max(), abs=2e-6)


def test_a_filter_without_features_is_refused_by_the_name_it_was_given(
    test_set: Path, tmp_path: Path
) -> None:
    own = tmp_path / "mine.py"
    own.write_text(OWN)
    for task, choices in (("retrieval", RetrievalChoices()), ("filter", FilterChoices())):
        with pytest.raises(CapfiltError, match=f"^{own} gives scores and no features"):
            drawn.evaluated(task, own, test_set, choices)


def test_a_model_that_answers_questions_has_no_features_either(test_set: Path, tmp_path: Path) -> None:
    model = prompted_folder("t5", tmp_path / "model", "instructblip")
    short = {"filter": {"question": "is it {text} ?"}}  # this Q-Former reads 12 tokens
    with pytest.raises(CapfiltError, match="model gives scores and no features"):
        drawn.evaluated("filter", model, test_set, FilterChoices(), settings=short)
    with pytest.raises(CapfiltError, match="cannot score pairs"):
        drawn.evaluated("filter", prompted_folder("t5", tmp_path / "blip2"), test_set, FilterChoices())


def test_a_text_that_is_too_long_is_cut(clip: Path) -> None:
    ours = DualEncoder(str(clip), "cpu")
    long = ours.text_features(["a red dog and " * 20])
    assert np.isfinite(long).all()


def test_what_is_no_dual_encoder_is_refused(bundles: dict[str, Path], test_set: Path, tmp_path: Path) -> None:
    for source, what in (
        (tmp_path / "nowhere", "there is no"),
        (tmp_path, "cannot be loaded"),
        (bundles["captioner"], "is a blip without "),
    ):
        with pytest.raises(CapfiltError, match=what):
            drawn.evaluated("retrieval", bundles["filter"], test_set, clip=str(source))
