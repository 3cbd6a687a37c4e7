from __future__ import annotations

import pytest
import torch
from blip_names import transformers_vision_weights
from small_models import enlarge

from capfilt.errors import CapfiltError
from capfilt.models.vision import ImageEncoder
from capfilt.settings import Images, Vision

WITHIN = {torch.float32: 1e-5, torch.float64: 1e-9}


@pytest.mark.parametrize("dtype", WITHIN)
@torch.no_grad()
def test_image_states_are_those_of_transformers_blip(dtype: torch.dtype) -> None:
    from transformers import BlipVisionConfig, BlipVisionModel

    theirs = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=48,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=6,
            image_size=32,
            patch_size=8,
            layer_norm_eps=1e-6,  # its default is 1e-5, BLIP's is not
            initializer_range=0.1,  # its default, 1e-10, makes every picture the same
        )
    )
    enlarge(theirs)
    ours = ImageEncoder(Vision(patch_px=8, width=48, layers=3, heads=6), Images(size_px=32)).eval()
    weights = transformers_vision_weights(theirs.state_dict(), "")
    ours.load_state_dict({name.removeprefix("image."): tensor for name, tensor in weights.items()})
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = theirs.eval().to(dtype)(pixel_values=pixels).last_hidden_state
    states = ours.to(dtype)(pixels)
    assert states.shape == (5, 17, 48)
    torch.testing.assert_close(states, expected, atol=WITHIN[dtype], rtol=0.0)
    assert states[:, 0].std(0).mean() > 0.05  # the pictures differ


def test_every_image_that_passes_is_counted() -> None:
    encoder = ImageEncoder(Vision(patch_px=8, width=32, layers=1, heads=2), Images(size_px=16))
    for images in (1, 3, 2):
        encoder(torch.zeros(images, 3, 16, 16))
    assert encoder.passes == 6


@pytest.mark.parametrize(("patch_px", "size_px"), [(2, 8), (4, 16), (8, 24), (16, 64)])
def test_a_convolutional_stem_gives_as_many_patches_as_a_linear_one(patch_px: int, size_px: int) -> None:
    def states(stem: str) -> torch.Size:
        vision = Vision.model_validate(
            {"patch_px": patch_px, "width": 32, "layers": 1, "heads": 2, "stem": stem}
        )
        shape: torch.Size = ImageEncoder(vision, Images(size_px=size_px))(
            torch.rand(2, 3, size_px, size_px)
        ).shape
        return shape

    assert states("convolution") == states("patch") == (2, 1 + (size_px // patch_px) ** 2, 32)


@pytest.mark.parametrize("patch_px", [1, 6, 12])
def test_a_convolutional_stem_refuses_a_patch_that_is_no_power_of_two(patch_px: int) -> None:
    vision = Vision(patch_px=patch_px, width=32, layers=1, heads=2, stem="convolution")
    with pytest.raises(CapfiltError, match=f"patch_px is {patch_px}") as refused:
        ImageEncoder(vision, Images(size_px=patch_px * 8))
    assert "model.vision.stem=patch" in refused.value.fix


def test_a_vit_of_timm_brings_its_own_sizes() -> None:
    encoder = ImageEncoder(Vision(timm="vit_tiny_patch16_224"), Images(size_px=32))
    assert encoder.width == 192
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 5, 192)
    assert encoder.training


@pytest.mark.parametrize("name", ["no_such_model", "resnet18"])
def test_a_name_that_is_no_vit_is_refused_with_its_mend(name: str) -> None:
    with pytest.raises(CapfiltError, match=name) as refused:
        ImageEncoder(Vision(timm=name), Images(size_px=32))
    assert "ViT" in refused.value.fix
