"""Operations counted from shapes, against torch's own counter on the operations that were run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from small_models import SMALL, pictures, small_bundle, small_med, small_packed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from capfilt.layers import changed
from capfilt.models import packed
from capfilt.models.captioner import MedCaptioner
from capfilt.models.filter import MedFilter
from capfilt.models.flops import CountedText, image_encoder_cost
from capfilt.settings import Model, SettledDecoding, Vision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.models.cards import Objective
    from capfilt.models.vocabulary import Vocabulary

CPU = torch.device("cpu")
TEXTS = [["a red circle", "two dogs"], ["the small green cat sleeps under the table"], []]


@pytest.fixture(autouse=True)
def plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's counter knows nothing of products whose matrix is laid out for the processor."""
    monkeypatch.setattr(packed, "IS_THERE", False)


def counted_by_torch(work: Callable[[], object]) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    "vision",
    [
        Vision(patch_px=8, width=32, layers=2, heads=4),
        Vision(patch_px=4, width=40, layers=1, heads=2, mlp_ratio=2.5),
        Vision(patch_px=8, width=32, layers=2, heads=4, stem="convolution"),
        Vision(timm="test_vit"),
    ],
    ids=["plain", "uneven", "convolutional stem", "of timm"],
)
def test_an_image_encoder_costs_what_torch_counts_for_one_picture(
    vision: Vision, vocabulary: Vocabulary
) -> None:
    side = 160 if vision.timm else 16
    model = changed(SMALL, {"vision": vision.model_dump(), "images": {"size_px": side}})
    med = small_med(["lm"], len(vocabulary), model)
    found = []
    with torch.inference_mode():
        flops = counted_by_torch(lambda: found.append(med.encode_image(torch.zeros(3, 3, side, side))))

    cost = image_encoder_cost(model)

    assert 3 * cost.flops == flops > 0
    assert (cost.states, cost.width) == tuple(found[0].shape[1:])


@pytest.mark.parametrize(
    ("decoding", "candidates"),
    [
        (SettledDecoding(min_tokens=8, max_tokens=8), 1),
        (SettledDecoding(min_tokens=1, max_tokens=8), 3),
        (SettledDecoding(min_tokens=8, max_tokens=8), 9),
        (SettledDecoding(prompt="two dogs run", min_tokens=4, max_tokens=6), 2),
        (SettledDecoding(method="greedy", max_tokens=6), 1),
        (SettledDecoding(method="beam", beams=3, prompt="a red", max_tokens=6), 1),
    ],
    ids=["one", "captions that end", "keys and values", "a prompt", "greedy", "beam"],
)
def test_captions_cost_what_torch_counts(
    decoding: SettledDecoding, candidates: int, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    bundle = small_bundle(tmp_path / "b", "captioner", ["lm"], vocabulary)
    captioner = MedCaptioner(bundle, CPU)
    with CountedText(captioner.model, bundle.card) as counted:
        flops = counted_by_torch(
            lambda: captioner.caption(pictures(3), decoding, seed=0, candidates=candidates)
        )
    rows = sum(one.rows for one in counted.passes)

    assert 3 * image_encoder_cost(SMALL).flops + counted.batch_cost() == flops
    # The captioner's own counter, which has a row and a step for each.
    assert rows == captioner.tokens.computed
    assert counted.batch_cost() == 0


@pytest.mark.parametrize("objectives", [("itc", "itm"), ("itm",), ("itc",)], ids=str)
@pytest.mark.parametrize("times", [1, 20], ids=["absorbed", "keys and values"])
def test_scores_cost_what_torch_counts(
    objectives: tuple[Objective, ...], times: int, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    bundle = small_bundle(tmp_path / "b", "filter", objectives, vocabulary)
    model = MedFilter(bundle, CPU)
    texts = [mine * times for mine in TEXTS]
    with CountedText(model.model, bundle.card) as counted:
        flops = counted_by_torch(lambda: model.score(pictures(3), texts))
    absorbed = {one.absorbed for one in counted.passes if one.images}

    assert 3 * image_encoder_cost(SMALL).flops + counted.batch_cost() == flops
    assert absorbed == ({times == 1} if "itm" in objectives else set())


def test_one_layer_is_the_first_and_the_last(tmp_path: Path, vocabulary: Vocabulary) -> None:
    shallow: Model = changed(SMALL, {"text": {"layers": 1}})
    med = small_med(["itc", "itm"], len(vocabulary), shallow)
    bundle = small_packed(tmp_path / "b", "filter", med, vocabulary, shallow).bundle
    model = MedFilter(bundle, CPU)
    with CountedText(model.model, bundle.card) as counted:
        flops = counted_by_torch(lambda: model.score(pictures(3), TEXTS))

    assert 3 * image_encoder_cost(shallow).flops + counted.batch_cost() == flops


def test_nothing_is_counted_once_the_counter_is_closed(tmp_path: Path, vocabulary: Vocabulary) -> None:
    bundle = small_bundle(tmp_path / "b", "filter", ["itc", "itm"], vocabulary)
    model = MedFilter(bundle, CPU)
    with CountedText(model.model, bundle.card) as counted:
        pass
    model.score(pictures(3), TEXTS)

    assert counted.passes == []
