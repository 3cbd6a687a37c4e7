"""Captions as the captioner writes them one by one, and figures that the metrics give of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import drawn
import numpy as np
import pytest
import world
from qformer_folders import prompted_folder, qformer_folder

from capfilt.errors import CapfiltError
from capfilt.evaluation.caption_metrics import Bleu, CiderD, diversity, tokenised
from capfilt.models.cards import read_card
from capfilt.settings import SettledDecoding
from capfilt.stages.evaluate.caption import DIFFERENCE, NEARNESS
from capfilt.stages.shard import load_captioner

if TYPE_CHECKING:
    from pathlib import Path

COMMONEST, ANOTHER = "commonest caption of the data", "another picture's caption"


@pytest.fixture(scope="module")
def found(bundles: dict[str, Path], test_set: Path) -> Any:
    return drawn.evaluated("caption", bundles["captioner"], test_set)


def test_captions_are_those_of_each_picture_alone(
    found: Any, bundles: dict[str, Path], test_set: Path
) -> None:
    pairs = drawn.pairs(test_set)
    decoding = read_card(bundles["captioner"]).conventions.decoding(world.DECODING)
    captioner = load_captioner(bundles["captioner"], "cpu", "fp32", False)
    alone = [
        captioner.caption(pairs.batch([n]), decoding, seed=0, candidates=1)[0][0]
        for n in range(pairs.pictures)
    ]
    assert [row["caption"] for row in found.found.items] == alone
    assert len(set(alone)) > 10


def test_figures_are_those_of_the_metrics_over_all_references(found: Any, test_set: Path) -> None:
    pairs = drawn.pairs(test_set)
    rows = found.found.items
    references = [[tokenised(pairs.texts[text]) for text in mine] for mine in pairs.right_texts()]
    written = [tokenised(row["caption"]) for row in rows]
    commonest = [tokenised(drawn.text(1))] * 20  # the only text of two pictures
    figures = drawn.figures(found)
    scores = CiderD(references)
    for name, captions in (("model", written), (COMMONEST, commonest)):
        assert figures[NEARNESS, name, "CIDEr-D"].value == pytest.approx(scores.scores(captions).mean())
        bleu = Bleu(captions, references)
        assert figures[NEARNESS, name, "BLEU-4"].value == pytest.approx(bleu.value())
    assert [row["cider"] for row in rows] == pytest.approx(scores.scores(written).tolist())
    assert figures[NEARNESS, COMMONEST, "CIDEr-D"].value > 0


def test_a_right_caption_is_far_nearer_than_either_baseline(found: Any, test_set: Path) -> None:
    pairs = drawn.pairs(test_set)
    references = [[tokenised(pairs.texts[text]) for text in mine] for mine in pairs.right_texts()]
    right = CiderD(references).scores([mine[0] for mine in references]).mean()
    figures = drawn.figures(found)
    for name in (COMMONEST, ANOTHER):
        assert figures[NEARNESS, name, "CIDEr-D"].high < right / 2


def test_another_pictures_caption_is_never_right(found: Any, test_set: Path) -> None:
    pairs = drawn.pairs(test_set)
    references = [[tokenised(pairs.texts[text]) for text in mine] for mine in pairs.right_texts()]
    own = CiderD(references).scores([mine[0] for mine in references])
    another = np.array([row["cider_of_another"] for row in found.found.items])
    assert (another < own).all()


def test_different_captions_are_counted_and_their_interval_holds_the_figure(
    found: Any, tmp_path: Path, bundles: dict[str, Path]
) -> None:
    members = [part for n in range(12) for part in drawn.sample(f"k{n}", n, drawn.text(n // 3))]
    twice = drawn.evaluated("caption", bundles["captioner"], world.write_tar(tmp_path / "set.tar", members))
    for one, texts in (
        (twice, [row["references"][0] for row in twice.found.items]),
        (found, [row["references"][0] for row in found.found.items]),
    ):
        of_all = diversity([tokenised(text) for text in texts])
        figures = drawn.figures(one)
        row = "references, the first of each"
        for measure, name in (
            ("different captions", "distinct_captions"),
            ("commonest", "most_frequent"),
            ("words each", "mean_length"),
            ("different words", "vocabulary"),
        ):
            figure = figures[DIFFERENCE, row, measure]
            assert figure.value == pytest.approx(of_all[name])
            if measure != "different words":
                assert figure.low <= figure.value <= figure.high
            else:
                assert math.isnan(figure.low)
        assert any(note.startswith("Different words have no interval") for note in one.found.notes)


@pytest.mark.parametrize("method", ["beam", "nucleus"])
def test_captions_are_decoded_as_asked(bundles: dict[str, Path], test_set: Path, method: Any) -> None:
    decoding = {"decoding": {"method": method}}
    mine = drawn.evaluated("caption", bundles["captioner"], test_set, settings=decoding)
    again = drawn.evaluated("caption", bundles["captioner"], test_set, settings=decoding)
    assert mine.found.facts["decoding"]["method"] == method
    assert mine.found.items == again.found.items


def test_a_joint_model_writes_captions(joint: Path, test_set: Path) -> None:
    whole = drawn.evaluated("caption", joint, test_set).found
    half = drawn.evaluated("caption", joint / "captioner", test_set).found
    assert whole.items == half.items


def test_a_filter_writes_none_and_one_picture_is_too_few(bundles: dict[str, Path], test_set: Path) -> None:
    with pytest.raises(CapfiltError, match="cannot write captions"):
        drawn.evaluated("caption", bundles["filter"], test_set)
    with pytest.raises(CapfiltError, match="there is one picture"):
        drawn.evaluated("caption", bundles["captioner"], test_set, limit=1)


@pytest.mark.parametrize(
    ("kind", "family"), [("opt", "blip2"), ("t5", "blip2"), ("llama", "instructblip"), ("t5", "instructblip")]
)
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_captioners_with_a_language_model_are_measured_alike(
    test_set: Path, tmp_path: Path, kind: Any, family: Any, method: str
) -> None:
    model = prompted_folder(kind, tmp_path / "model", family)
    asked = {"decoding": {"method": method, "prompt": "a red"}}
    found = drawn.evaluated("caption", model, test_set, settings=asked, limit=6).found
    decoding = SettledDecoding(method=method, prompt="a red", min_tokens=2, max_tokens=8)
    captioner = load_captioner(model, "cpu", "fp32", False)
    pairs = drawn.pairs(test_set, limit=6)
    alone = [captioner.caption(pairs.batch([n]), decoding, seed=0, candidates=1)[0][0] for n in range(6)]
    assert [row["caption"] for row in found.items] == alone
    assert len(set(alone)) > 2
    assert (found.facts["decoding"]["method"], found.facts["decoding"]["prompt"]) == (method, "a red")


def test_stage_1_of_blip_2_writes_no_captions_to_measure(test_set: Path, tmp_path: Path) -> None:
    model = qformer_folder(tmp_path / "stage1", "joint", ("itc", "itm", "lm"))
    with pytest.raises(CapfiltError, match="stage1 cannot write captions: it is a joint"):
        drawn.evaluated("caption", model, test_set)
