"""The image encoder stays as it came, whatever it is; the norm after it learns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import enlarge
from torch import nn
from torch.nn import functional as F

from capfilt.errors import CapfiltError
from capfilt.models.frozen import FrozenImageEncoder
from capfilt.settings import Blip2, Images, Vision

OWN = Vision(patch_px=8, width=32, layers=2, heads=4)
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 16,
}
TRANSFORMERS = {
    kind: {**TINY, "model_type": kind} for kind in ("vit", "clip_vision_model", "siglip_vision_model")
}
TRANSFORMERS["dinov2"] = {**TINY, "model_type": "dinov2", "mlp_ratio": 2}
TRANSFORMERS["clip"] = {"model_type": "clip", "vision_config": TRANSFORMERS["clip_vision_model"]}
STATES = {"own": 5, "stem": 5, "timm": 5, "vit": 5, "clip_vision_model": 5, "siglip_vision_model": 4} | {
    "dinov2": 5,
    "clip": 5,
}
"""Four patches of a picture, and the [class] row of those that have one."""


def settings(kind: str) -> Blip2:
    images = Images(size_px=16)
    if kind == "own":
        return Blip2(images=images, vision=OWN)
    if kind == "stem":
        return Blip2(images=images, vision=OWN.model_copy(update={"stem": "convolution"}))
    if kind == "timm":
        return Blip2(images=Images(size_px=32), vision=Vision(timm="vit_tiny_patch16_224"))
    return Blip2(images=images, vision_config=TRANSFORMERS[kind])


def encoder(kind: str) -> FrozenImageEncoder:
    made = FrozenImageEncoder(settings(kind))
    enlarge(made)
    return made


def pixels(kind: str, count: int = 3) -> torch.Tensor:
    side = settings(kind).images.size_px
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", list(STATES))
def test_every_kind_of_encoder_gives_a_sequence_of_normed_states(kind: str) -> None:
    made = encoder(kind)
    states = made(pixels(kind))
    assert states.shape == (3, STATES[kind], made.width)
    norm = made.post_layernorm
    assert norm.eps == 1e-5
    plain = (states - norm.bias) / norm.weight
    torch.testing.assert_close(plain.mean(-1), torch.zeros(3, STATES[kind]), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(plain.var(-1, correction=0), torch.ones(3, STATES[kind]), atol=1e-2, rtol=0.0)
    assert not torch.allclose(states[0], states[1], atol=0.1)
    assert made.passes == 3


@pytest.mark.parametrize("kind", list(STATES))
def test_a_step_of_training_moves_the_norm_and_nothing_before_it(kind: str) -> None:
    made = encoder(kind).train()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    trained = [p for p in made.parameters() if p.requires_grad]
    assert [p.shape for p in trained] == [(made.width,), (made.width,)]
    states = made(pixels(kind))
    (states * torch.arange(made.width)).sum().backward()
    torch.optim.SGD(made.parameters(), lr=0.1).step()
    moved = {name for name, tensor in made.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"post_layernorm.weight", "post_layernorm.bias"}


@pytest.mark.parametrize("kind", list(STATES))
def test_the_encoder_is_in_evaluation_mode_whatever_the_model_is_in(kind: str) -> None:
    made = encoder(kind).eval()
    expected = made(pixels(kind))
    made.train()
    assert made.post_layernorm.training
    assert not any(part.training for part in made.encoder.modules())
    torch.testing.assert_close(made(pixels(kind)), expected, atol=0.0, rtol=0.0)


def test_the_encoder_of_the_family_is_that_of_transformers_under_its_names() -> None:
    from transformers import Blip2VisionConfig, Blip2VisionModel

    made = encoder("own").double()
    theirs = Blip2VisionModel(
        Blip2VisionConfig(
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
        )
    )
    theirs.load_state_dict(made.state_dict())
    theirs = theirs.double().eval()
    theirs.post_layernorm.eps = 1e-5
    with torch.no_grad():
        expected = theirs(pixels("own").double()).last_hidden_state
        found = made(pixels("own").double())
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("kind", ["vit", "clip_vision_model", "siglip_vision_model", "dinov2"])
def test_an_encoder_of_transformers_gives_its_own_last_states(kind: str) -> None:
    from transformers import AutoConfig, AutoModel

    made = encoder(kind)
    values = {name: value for name, value in TRANSFORMERS[kind].items() if name != "model_type"}
    theirs: nn.Module = AutoModel.from_config(AutoConfig.for_model(kind, **values)).eval()
    lacking, odd = theirs.load_state_dict(made.encoder.state_dict(), strict=False)
    assert (lacking, odd) == (["pooler.dense.weight", "pooler.dense.bias"] if kind == "vit" else [], [])
    with torch.no_grad():
        states = theirs(pixel_values=pixels(kind)).last_hidden_state
        norm = made.post_layernorm
        expected = F.layer_norm(states, (32,), norm.weight, norm.bias, 1e-5)
        torch.testing.assert_close(made(pixels(kind)), expected, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("kind", ["vit", "clip_vision_model", "siglip_vision_model", "dinov2"])
def test_pictures_of_another_side_are_taken_where_the_encoder_was_made_for_fewer_pixels(kind: str) -> None:
    made = FrozenImageEncoder(Blip2(images=Images(size_px=32), vision_config=TRANSFORMERS[kind]))
    has_class = STATES[kind] - 4
    assert made(torch.zeros(1, 3, 32, 32)).shape == (1, 16 + has_class, 32)


def test_other_numbers_are_for_the_frozen_part_alone() -> None:
    for kind in ("own", "vit", "stem"):
        made = encoder(kind)
        expected = made(pixels(kind))
        made.convert(torch.bfloat16)
        assert made.dtype == torch.bfloat16
        assert made.post_layernorm.weight.dtype == torch.float32
        found = made(pixels(kind))
        assert found.dtype == torch.float32
        assert 0 < float((found - expected).detach().abs().mean()) < 0.05


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "no_such_thing"}, "no_such_thing"),
        ({"hidden_size": 32}, "None"),
        ({**TINY, "model_type": "clip_vision_model", "num_attention_heads": 5}, "clip_vision_model"),
        ({**TINY, "model_type": "vit", "hidden_size": "wide"}, "vit"),
        ({"model_type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1]}, "resnet"),
    ],
)
def test_what_transformers_cannot_build_is_told(config: dict[str, Any], word: str) -> None:
    with pytest.raises(CapfiltError, match=word) as caught:
        FrozenImageEncoder(Blip2(vision_config=config))
    assert "ViT" in caught.value.fix


class Maps(nn.Module):
    """An encoder whose states are a picture still."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(1))
        self.config = SimpleNamespace(model_type="maps")

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=pixel_values)


def test_an_encoder_that_gives_maps_and_no_sequence_is_refused() -> None:
    made = encoder("vit")
    made.encoder = Maps()
    with pytest.raises(CapfiltError, match=r"maps gives \(3, 16, 16\)"):
        made(pixels("vit"))
