"""How a model of LAVIS is built, from the shapes of its weights; LAVIS's own values where they do not say it.

Shapes say widths, layers, queries, patches and the side of pictures, and names say which layers look at the
picture. No weight says how many heads share a width, nor an epsilon.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Literal

from capfilt.errors import CapfiltError
from capfilt.models.checkpoints.configs import mlp_ratio
from capfilt.models.checkpoints.lavis_names import PLACES, VISION, WORDS, Stack
from capfilt.models.checkpoints.names import few
from capfilt.models.checkpoints.qformer_configs import LONGEST
from capfilt.shell import shell_word

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Shapes = dict[str, tuple[int, ...]]

EVA_LAYERS = 39
"""Of the 40 layers of EVA-CLIP's ViT-g LAVIS takes all but the last (create_eva_vit_g: depth=39)."""
CLIP_LAYERS = 23
"""And of the 24 of CLIP's ViT-L (create_clip_vit_L: layers=23)."""
EVA_HEAD = 88
"""Width of a head of EVA-CLIP's ViT (create_eva_vit_g: num_heads=1408//88)."""
_EVA_EPSILON = 1e-6
"""Of its norms, but not of the one after it (`frozen.STATES_NORM_EPSILON`)."""
_BERT_HEAD = 64
"""Width of a head of the Q-Former, which is bert-base-uncased's."""
_BERT_EPSILON = 1e-12
_BERT_DROPOUT = 0.1
_PLACES = 512
"""Of a Q-Former that reads nothing, whose file has no table of places (bert-base-uncased)."""
_QFORMER = "Qformer.bert.encoder.layer."
_PUBLISHED: dict[tuple[Stack, int], str] = {
    ("opt", 2560): "facebook/opt-2.7b",
    ("opt", 4096): "facebook/opt-6.7b",
    ("t5", 2048): "google/flan-t5-xl",
    ("t5", 4096): "google/flan-t5-xxl",
    ("llm", 4096): "lmsys/vicuna-7b-v1.1",
    ("llm", 5120): "lmsys/vicuna-13b-v1.1",
}
"""Language models that LAVIS's files were trained before, by the width they are given queries in."""


def lavis_language(stack: Stack, shapes: Shapes) -> str:
    """Return the hub id of the language model that a published file of these shapes was trained before."""
    width = shapes.get(f"{stack}_proj.weight", (0, 0))[0]
    return _PUBLISHED.get((stack, width), "FOLDER")


def family_of(stack: Stack, shapes: Shapes) -> Literal["blip2", "instructblip"]:
    """Return which of the two a file is: InstructBLIP's Q-Former reads, though it writes for a model."""
    return "instructblip" if stack == "llm" or (stack and WORDS in shapes) else "blip2"


def settings_of(stack: Stack, shapes: Shapes, heads: int | None, where: str) -> dict[str, Any]:
    """Return the settings of a Q-Former and what stands around it, image encoder and language model left out.

    `heads` are the Q-Former's; without them a head is as wide as BERT's. Raises CapfiltError for shapes that
    no Q-Former has; KeyError for a weight that says a size and is missing.
    """
    family = family_of(stack, shapes)
    queries, width = shapes["query_tokens"][1:]
    places = shapes[PLACES][0] if PLACES in shapes else _PLACES
    words = {"vocabulary": shapes[WORDS][0]} if WORDS in shapes else {}
    return {
        "family": family,
        # LAVIS had its pictures' transparency dropped.
        "images": {"size_px": 224, "transparency": "drop"},
        "qformer": {
            "queries": queries,
            "width": width,
            "layers": _layers(shapes, _QFORMER),
            "heads": heads or _usual_heads(width, _BERT_HEAD, where, "Q-Former"),
            "feed_forward": shapes[f"{_QFORMER}0.intermediate_query.dense.weight"][0],
            "cross_every": _cross_every(shapes, where),
            **words,
            "max_tokens": min(LONGEST[family], places),
            "places": places,
            "norm_epsilon": _BERT_EPSILON,
            "dropout": _BERT_DROPOUT,
        },
        "language": {"max_tokens": LONGEST[family]},
        "embed": shapes["vision_proj.weight"][0] if "vision_proj.weight" in shapes else 256,
    }


def image_width(shapes: Shapes) -> int:
    """Return how wide the image states are that a file's Q-Former was trained on."""
    return shapes["ln_vision.weight"][0]


def vision_settings_of(shapes: Shapes, heads: int | None, where: str) -> dict[str, Any]:
    """Return the settings of LAVIS's ViT, its names as in a whole model, and of the pictures it takes.

    `heads` are its own; without them a head is as wide as EVA-CLIP's. Raises as `settings_of` does.
    """
    width, _, patch, _ = shapes[f"{VISION}patch_embed.proj.weight"]
    grid = math.isqrt(shapes[f"{VISION}pos_embed"][1] - 1)
    vision = {
        "patch_px": patch,
        "width": width,
        "layers": min(EVA_LAYERS, _layers(shapes, f"{VISION}blocks.")),
        "heads": heads or _usual_heads(width, EVA_HEAD, where, "image encoder"),
        "mlp_ratio": mlp_ratio(width, shapes[f"{VISION}blocks.0.mlp.fc1.weight"][0]),
        "norm_epsilon": _EVA_EPSILON,
        "timm": None,
        "stem": "patch",
    }
    return {"images": {"size_px": grid * patch}, "vision": vision, "vision_config": {}}


def shapes_of(weights: Mapping[str, Any]) -> Shapes:
    """Return the shapes of weights by name."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def has_usual_heads(shapes: Shapes) -> bool:
    """Return whether the width of LAVIS's ViT says its heads, as that of EVA-CLIP's does."""
    return shapes[f"{VISION}patch_embed.proj.weight"][0] % EVA_HEAD == 0


def _usual_heads(width: int, head: int, where: str, part: str) -> int:
    if width % head:
        raise CapfiltError(
            f"{where}: its {part} is {width} wide, and nothing says how many attention heads share that",
            fix="write it as a bundle first, with the numbers of heads of its image encoder and of its "
            f"Q-Former: capfilt models convert {shell_word(where)} --heads V,Q --out BUNDLE",
        )
    return width // head


def _cross_every(shapes: Shapes, where: str) -> int:
    """Return in every how many layers queries look at the picture: such layers alone have these weights."""
    found = sorted(_numbers(shapes, _QFORMER, ".crossattention.self.query.weight"))
    layers = _layers(shapes, _QFORMER)
    every = found[1] - found[0] if len(found) > 1 else max(1, layers)
    if found != list(range(0, layers, every)):
        told = f"in layers {few(map(str, found), 5)}" if found else "nowhere"
        raise CapfiltError(
            f"{where} looks at the picture {told} of {layers}, a Q-Former in every so many from the first",
            fix="give a checkpoint as LAVIS wrote it, whole",
        )
    return every


def _layers(shapes: Iterable[str], prefix: str) -> int:
    return len(_numbers(shapes, prefix, ""))


def _numbers(names: Iterable[str], prefix: str, ending: str) -> set[int]:
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\..+")
    found = (pattern.fullmatch(name) for name in names if name.endswith(ending))
    return {int(one[1]) for one in found if one is not None}
