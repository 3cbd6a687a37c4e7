"""What an instruction makes a Q-Former extract, told by linear probes.

The same pictures go through the Q-Former with a question about colours and with one about shapes. A linear
probe reads the colours of both shapes from the mean of the queries' states, and another probe the two forms.
What an instruction asks for should be easier to read with that instruction than with the other; where it is
not, the Q-Former extracts the same whatever it is asked.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import scenes
import torch
from small_language_models import QUESTIONS
from torch.nn import functional

from capfilt.evaluation.intervals import Figure, bootstrap

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from scenes import Scene
    from torch import Tensor

ASPECTS = {"colour": tuple(scenes.COLOURS), "shape": scenes.SHAPES}
WEIGHT_DECAY = 1e-3


@dataclass(frozen=True)
class Gain:
    """How well a probe reads an aspect of both shapes of a picture, by instruction."""

    about: str
    own: Figure
    """Share of pictures read right where the instruction asked for this aspect."""
    other: Figure
    """The same where it asked for the other one."""
    gain: Figure
    """Own less other, picture by picture."""


def gains(model: Path, pictures: int, seed: int) -> list[Gain]:
    """Probe an InstructBLIP on pictures of two shapes: probes fitted to two thirds of them read the others.

    A probe is a softmax regression for each of the two places, on states with one scale, and is right where
    both places are.
    """
    rng = random.Random(f"probe {seed}")
    drawn: list[Scene] = []
    while len(drawn) < pictures:
        scene = scenes.draw_scene(rng, unseen=False)
        if len(scene.items) == 2:
            drawn.append(scene)
    states = extracted(model, [scenes.picture(scene, rng) for scene in drawn], rng)
    fitted = pictures * 2 // 3
    found = []
    for number, (about, other) in enumerate((("colour", "shape"), ("shape", "colour"))):
        names = ASPECTS[about]
        labels = torch.tensor([[names.index(item[number]) for item in scene.items] for scene in drawn])
        own, others = (read_right(states[asked], labels, len(names), fitted) for asked in (about, other))
        figures = [
            bootstrap(len(each), partial(_mean, each), seed=seed, key=f"probe {about}")
            for each in (own, others, own - others)
        ]
        found.append(Gain(about, *figures))
    return found


def _mean(values: NDArray[np.float64], some: NDArray[np.int64]) -> float:
    return float(values[some].mean())


def extracted(model: Path, pictures: list[bytes], rng: random.Random) -> dict[str, Tensor]:
    """Return the mean of the queries' states of each picture, (pictures, width), for each of the aspects."""
    from capfilt.data.images import decode, normalise, to_square
    from capfilt.models.loading import open_bundle
    from capfilt.models.prompted import read_instructions

    bundle = open_bundle(model)
    assert bundle.reader is not None, f"{model} is no InstructBLIP"
    settings = bundle.card.blip2
    squares = [to_square(decode(data, max_pixels=10**6), settings.images) for data in pictures]
    pixels = normalise(torch.from_numpy(np.stack(squares)), settings.images)
    asked = {about: [rng.choice(QUESTIONS[about]) for _ in pictures] for about in ASPECTS}
    found: dict[str, list[Tensor]] = {about: [] for about in ASPECTS}
    bundle.model.eval()
    with torch.no_grad():
        for start in range(0, len(pictures), 100):
            image_states = bundle.model.encode_image(pixels[start : start + 100])
            for about, questions in asked.items():
                some = questions[start : start + 100]
                read = read_instructions(bundle.reader, some, settings.qformer.max_tokens)
                found[about].append(bundle.model.query_states(image_states, read).mean(1))
    return {about: torch.cat(parts) for about, parts in found.items()}


def read_right(states: Tensor, labels: Tensor, classes: int, fitted: int) -> NDArray[np.float64]:
    """Fit probes to the first `fitted` pictures; return for each other one whether all its labels are read.

    `states` is (pictures, width), `labels` (pictures, places); the result is of float, 0 or 1.
    """
    states = (states - states[:fitted].mean(0)) / states[:fitted].std()
    right = torch.ones(len(states) - fitted, dtype=torch.bool)
    for place in labels.unbind(1):
        weights, bias = _probe(states[:fitted], place[:fitted], classes)
        right &= (states[fitted:] @ weights + bias).argmax(1) == place[fitted:]
    read: NDArray[np.float64] = right.double().numpy()
    return read


def _probe(states: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return weights and bias of a softmax regression, fitted to its end."""
    weights = torch.zeros(states.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = functional.cross_entropy(states @ weights + bias, labels)
        found = found + WEIGHT_DECAY * weights.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return weights.detach(), bias.detach()
