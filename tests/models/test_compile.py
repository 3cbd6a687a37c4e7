"""A step that has no graph break can be compiled whole, and captured on a GPU: backend "eager" proves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from small_models import SMALL, small_med

from capfilt.models.decoding import draw, nucleus, shaped
from capfilt.models.memory import TokenCache
from capfilt.models.text import Packed
from capfilt.settings import SettledDecoding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from torch import Tensor

    from capfilt.models.med import MED

SIDE = SMALL.images.size_px


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled as one graph; a break in it raises."""
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, backend="eager", dynamic=False)
    return compiled


@pytest.fixture(scope="module")
def model() -> MED:
    return small_med(["itc", "itm", "lm"], 40)


@pytest.fixture(scope="module")
def states(model: MED) -> Tensor:
    with torch.no_grad():
        return model.encode_image(torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("absorbed", [True, False], ids=["absorbed", "keys and values"])
@torch.no_grad()
def test_a_decoding_step_is_one_graph_of_one_shape(model: MED, states: Tensor, absorbed: bool) -> None:
    from torch._dynamo.testing import CompileCounter

    decoding = SettledDecoding(min_tokens=2, max_tokens=8, top_p=0.9, top_k=20, repetition_penalty=1.1)
    memory = [layer for layer in model.memory(states) if not absorbed] or model.memory(states, absorbed=True)
    if absorbed:
        for layer in memory:
            layer._by_state = layer._by_width = None  # type: ignore[union-attr]  # as on a GPU

    def step(ids: Tensor, token: Tensor, number: Tensor, caches: list[TokenCache], at: Tensor) -> Tensor:
        logits = shaped(model.next_logits(token, memory, caches, at), ids, decoding, 3, 5)
        return draw(nucleus(logits, decoding), number)

    counter = CompileCounter()
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=False)
    drawn = []
    for run in (step, compiled):
        caches = [TokenCache(12) for _ in memory]
        start = torch.tensor([[5, 7]]).expand(8, -1)
        model.next_logits(start, memory, caches, torch.zeros((), dtype=torch.long))
        ids, mine = torch.zeros(8, 12, dtype=torch.long), []
        for position in range(6):
            token = torch.full((8, 1), 9 + position)
            numbers = torch.full((8,), 0.13 * position, dtype=torch.float64)
            mine.append(run(ids, token, numbers, caches, torch.tensor(2 + position)).tolist())
        drawn.append(mine)
    assert drawn[0] == drawn[1]
    assert counter.frame_count == 1  # six steps, one graph: nothing in it depends on how far one is


@torch.no_grad()
def test_images_are_encoded_in_one_graph(model: MED) -> None:
    pixels = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(whole(model.encode_image)(pixels), model.encode_image(pixels))


@torch.no_grad()
def test_packed_texts_are_scored_in_one_graph(model: MED, states: Tensor) -> None:
    text = torch.tensor([[0, 0, 0, 1, 1, -1]]).expand(4, -1)
    packed = Packed(
        ids=torch.randint(5, 40, (4, 6)),
        text=text,
        places=torch.tensor([[0, 1, 2, 0, 1, 0]]).expand(4, -1),
        firsts=torch.tensor([[0, 3]]).expand(4, -1),
    )

    def scores(packed: Packed, states: Tensor) -> tuple[Tensor, Tensor]:
        return model.packed_itm_logits(packed, model.memory(states)), model.packed_features(packed)

    for ours, expected in zip(whole(scores)(packed, states), scores(packed, states), strict=True):
        torch.testing.assert_close(ours, expected)
