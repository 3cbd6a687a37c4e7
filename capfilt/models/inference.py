"""A model made ready to caption and score: matrices laid out for the processor, in the numbers asked for.

What is trained stays as it is; this is done to a model in memory, once, after it was loaded. On a GPU
only the type of the numbers changes. On a CPU a linear map through oneDNN with its matrix laid out
beforehand does the same arithmetic about a fifth faster than torch's own in fp32 and bf16, and GELU comes
free of a pass over memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from capfilt.data.images import normalise
from capfilt.models.devices import inference_type
from capfilt.models.packed import can_lay_out, laid_out, product
from capfilt.models.text import FeedForward, attend

if TYPE_CHECKING:
    from capfilt.models.cards import Card
    from capfilt.models.med import MED
    from capfilt.models.protocols import ImageBatch


class PackedLinear(nn.Module):
    """A linear map whose matrix oneDNN has laid out, in fp32 or bf16, with GELU after it where asked."""

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self._blocks = laid_out(linear.weight)
        self._gelu = gelu
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Return the map of states, shape (..., outputs)."""
        return product(states, self._blocks, self.bias, gelu=self._gelu)


class Int8Linear(nn.Module):
    """A linear map in 8-bit whole numbers: a scale for each output, and one for each row as it comes.

    Both are symmetric, so that sums of products are scaled and nothing else; sums are exact in int32.
    """

    matrix: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)
        self.register_buffer("matrix", (weight / scale[:, None]).round().to(torch.int8).t())
        self.register_buffer("scale", scale)
        self.bias = nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        """Return the map of states, shape (..., outputs), in fp32."""
        rows = states.flatten(0, -2)
        each = (rows.abs().amax(-1, keepdim=True).float() / 127).clamp(min=1e-12)
        whole = (rows / each).round_().to(torch.int8)
        sums: Tensor = torch._int_mm(whole, self.matrix)
        mapped = torch.addcmul(self.bias, sums.float().mul_(each), self.scale)
        return mapped.view(*states.shape[:-1], -1)


class HeadwiseAttention(nn.Module):
    """Attention of a ViT in bf16 on a CPU, head by head, so that the scores of a head stay in its cache."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.qkv, self.proj = attention.qkv, attention.proj

    def forward(self, states: Tensor, **_: Any) -> Tensor:
        """Return new states, same shape; timm's mask is never given."""
        images, seen = states.shape[:2]
        qkv = self.qkv(states).to(torch.bfloat16).view(images, seen, 3, self.heads, -1)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        heads = [
            attend(q, k, v, None, 0.0)
            for q, k, v in zip(queries.split(1, 1), keys.split(1, 1), values.split(1, 1), strict=True)
        ]
        new: Tensor = self.proj(torch.cat(heads, 1).transpose(1, 2).reshape(images, seen, -1))
        return new


def image_states(batch: ImageBatch, model: MED, card: Card, precision: str) -> Tensor:
    """Return a batch's image states, (pictures, 1 + patches, width); computed once for equal encoders."""
    images, device = card.med.images, model.device

    def encode() -> Tensor:
        pixels = torch.from_numpy(batch.squares(images))
        if device.type == "cuda":
            pixels = pixels.pin_memory().to(device, non_blocking=True)
        return model.encode_image(normalise(pixels, images))

    return batch.states((card.image_encoder or card.weights, precision, str(device)), encode)


def prepare(model: MED, device: torch.device, precision: str, *, compiled: bool = False) -> MED:
    """Make a model ready, in place: `precision` is fp32, bf16 or int8 (bf16 with an int8 image encoder).

    `compiled` leaves the layout of matrices to torch.compile, which takes minutes at the first batch.
    """
    model = model.to(device=device, dtype=inference_type(precision)).eval().requires_grad_(False)
    if compiled:
        for name in ("encode_image", "next_logits"):
            setattr(model, name, torch.compile(getattr(model, name), fullgraph=True))
    elif device.type == "cpu":
        _lay_out(model, precision)
    return model


def _lay_out(model: MED, precision: str) -> None:
    if precision == "int8":
        model.image.float()
    vit: Any = model.image.vit
    for block in getattr(vit, "blocks", ()):
        # Blocks of other kinds than the plain one lack some of these, and keep what they have.
        attention = getattr(block, "attn", None)
        if precision != "fp32" and _is_plain(attention):
            attention = block.attn = HeadwiseAttention(attention)
        _replace(attention, "qkv", precision)
        _replace(attention, "proj", precision)
        _replace_feed_forward(getattr(block, "mlp", None), "fc1", "fc2", precision)
    text_precision = "fp32" if precision == "fp32" else "bf16"
    layers: Any = model.text.layers
    for layer in layers:
        for attention in layer.attention.values():
            _replace(attention, "qkv", text_precision)
            _replace(attention, "out", text_precision)
        if layer.cross is not None:
            # Its keys' and values' matrix is looked into, and stays as it is.
            _replace(layer.cross, "query", text_precision)
            _replace(layer.cross, "out", text_precision)
        _replace_feed_forward(layer.feed_forward, "up", "down", text_precision)
    if "lm" in model.objectives and can_lay_out(model.text.words.weight):
        model.word_head.blocks = laid_out(model.text.words.weight)


def _is_plain(attention: Any) -> bool:
    """Whether this is timm's plain attention: nothing between its parts that we would leave out."""
    return type(attention) is Attention and not any(
        isinstance(getattr(attention, name, None), nn.Module)
        and not isinstance(getattr(attention, name), nn.Identity)
        for name in ("q_norm", "k_norm", "norm", "gate")
    )


def _replace_feed_forward(module: Any, up: str, down: str, precision: str) -> None:
    act = getattr(module, "act", None)
    # Gated kinds have a GELU too, and not right after the first map.
    is_plain = type(module) in (Mlp, FeedForward)
    is_gelu = is_plain and isinstance(act, nn.GELU) and act.approximate == "none"
    if is_gelu and precision != "int8" and _replace(module, up, precision, gelu=True):
        module.act = nn.Identity()
    else:
        _replace(module, up, precision)
    _replace(module, down, precision)


def _replace(module: Any, name: str, precision: str, *, gelu: bool = False) -> bool:
    """Put a faster map in the place of a linear one; a place that holds something else is left alone."""
    linear = getattr(module, name, None)
    if type(linear) is not nn.Linear or linear.bias is None:
        return False
    if precision == "int8":
        setattr(module, name, Int8Linear(linear))
    elif can_lay_out(linear.weight):
        setattr(module, name, PackedLinear(linear, gelu=gelu))
    else:
        return False
    return True
