from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from small_models import SMALL, small_med, small_packed

from capfilt.errors import CapfiltError
from capfilt.models.bundle import load_bundle
from capfilt.models.checkpoints.resizing import resized
from capfilt.models.vision import interpolated
from capfilt.settings import Vision

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.bundle import Packed
    from capfilt.models.vocabulary import Vocabulary


@pytest.mark.parametrize("side", [3, 6, 9])
def test_position_embeddings_are_interpolated_as_the_released_code_does(repository: Path, side: int) -> None:
    """It recorded them in float32; in float64 they are those of the cubic written out by hand."""
    recorded = load_file(repository / "tests/models/golden/blip_pos_embed.safetensors")
    before = recorded["pos_embed_4x4"]
    made = interpolated(before, 16, side * side)
    torch.testing.assert_close(made, recorded[f"pos_embed_{side}x{side}"], atol=5e-6, rtol=0.0)
    weights = cubic(4, side)
    grid = torch.einsum("ai,bj,ijw->abw", weights, weights, before[0, 1:].double().view(4, 4, -1))
    exact = torch.cat([before[0, :1].double(), grid.flatten(0, 1)])[None]
    torch.testing.assert_close(interpolated(before.double(), 16, side * side), exact, atol=1e-9, rtol=0.0)


def cubic(before: int, after: int) -> Tensor:
    """Weights (after, before) of Keys' cubic with a = -0.75 between centres of cells, the border repeated."""
    weights = torch.zeros(after, before, dtype=torch.float64)
    for row in range(after):
        place = (row + 0.5) * before / after - 0.5
        for near in range(math.floor(place) - 1, math.floor(place) + 3):
            away = abs(place - near)
            if away <= 1:
                weight = 1.25 * away**3 - 2.25 * away**2 + 1
            else:
                weight = -0.75 * (away**3 - 5 * away**2 + 8 * away - 4)
            weights[row, min(max(near, 0), before - 1)] += weight
    return weights


def test_interpolation_is_the_cubic_of_the_four_nearest_patches() -> None:
    """Worked by hand: four patches in a row of each colour, halved in number."""
    row = torch.tensor([0.0, 1.0, 4.0, 9.0], dtype=torch.float64)
    grid = row.expand(4, 4).reshape(1, 16, 1)
    made = interpolated(torch.cat([torch.full((1, 1, 1), 7.0, dtype=torch.float64), grid], 1), 16, 4)
    # Each new patch lies in the middle of two old ones: weights (-0.09375, 0.59375, 0.59375, -0.09375).
    first = -0.09375 * (0 + 4) + 0.59375 * (0 + 1)
    last = -0.09375 * (1 + 9) + 0.59375 * (4 + 9)
    expected = torch.tensor([7.0, first, last, first, last], dtype=torch.float64)
    torch.testing.assert_close(made.flatten(), expected, atol=1e-9, rtol=0.0)


def test_rows_before_the_patches_are_kept_and_the_same_number_changes_nothing() -> None:
    positions = torch.randn(1, 2 + 9, 5, dtype=torch.float64)
    made = interpolated(positions, 9, 25)
    assert made.shape == (1, 27, 5)
    assert torch.equal(made[:, :2], positions[:, :2])
    torch.testing.assert_close(interpolated(positions, 9, 9), positions, atol=1e-12, rtol=0.0)


@pytest.fixture
def made(tmp_path: Path, vocabulary: Vocabulary) -> Packed:
    model = small_med(["itc", "itm", "lm"], len(vocabulary))
    return small_packed(tmp_path / "b", "joint", model, vocabulary)


def test_a_bundle_takes_pictures_of_another_side_and_says_from_which(made: Packed, tmp_path: Path) -> None:
    made.write({"rows": []})
    resized(load_bundle(tmp_path / "b"), tmp_path / "c", 40).write()
    before, after = load_bundle(tmp_path / "b"), load_bundle(tmp_path / "c")
    assert after.card.model.images.size_px == 40
    assert (after.card.resized_from_px, after.card.parent) == (16, before.card.weights)
    assert after.card.weights != before.card.weights
    assert after.card.image_encoder != before.card.image_encoder
    assert after.calibration is None
    old, new = before.model.state_dict(), after.model.state_dict()
    name = "image.vit.pos_embed"
    assert torch.equal(new[name], interpolated(old[name], 4, 25))
    assert all(torch.equal(new[other], old[other]) for other in old if other != name)
    states = after.model.eval().encode_image(torch.randn(2, 3, 40, 40))
    assert states.shape == (2, 26, 32)
    # Twice resized, it was still trained on 16 px.
    assert resized(after, tmp_path / "d", 24).bundle.card.resized_from_px == 16


@pytest.mark.parametrize(
    "vision",
    [
        Vision(patch_px=8, width=32, layers=1, heads=4, stem="convolution"),
        Vision(timm="vit_tiny_patch16_224"),
    ],
    ids=["convolution", "timm"],
)
def test_other_encoders_with_position_embeddings_are_resized_too(
    tmp_path: Path, vocabulary: Vocabulary, vision: Vision
) -> None:
    settings = SMALL.model_copy(
        update={"vision": vision, "images": SMALL.images.model_copy(update={"size_px": 32})}
    )
    model = small_med(["lm"], len(vocabulary), settings)
    bundle = small_packed(tmp_path / "b", "captioner", model, vocabulary, settings).bundle
    resized(bundle, tmp_path / "c", 48).write()
    read = load_bundle(tmp_path / "c")
    patches = 9 if vision.timm else 36
    assert read.model.eval().encode_image(torch.randn(1, 3, 48, 48)).shape[1] == 1 + patches


def test_an_encoder_with_more_that_depends_on_the_side_is_refused(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    settings = SMALL.model_copy(
        update={
            "vision": Vision(timm="vit_relpos_small_patch16_224"),
            "images": SMALL.images.model_copy(update={"size_px": 32}),
        }
    )
    model = small_med(["lm"], len(vocabulary), settings)
    bundle = small_packed(tmp_path / "b", "captioner", model, vocabulary, settings).bundle
    with pytest.raises(CapfiltError, match="vit_relpos_small_patch16_224 cannot take pictures of 48 px"):
        resized(bundle, tmp_path / "c", 48)


def test_a_side_that_the_patches_do_not_divide_is_refused(made: Packed, tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="a side of 30 px cannot be cut into patches of 8 px") as refused:
        resized(made.bundle, tmp_path / "c", 30)
    assert refused.value.fix == "set bundles.size_px to a multiple of 8, e.g. 32"
