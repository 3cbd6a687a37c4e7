"""A small test set: pictures of noise with texts that share words, pictures and texts that come twice."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import world

from capfilt.data.sources import find_shards
from capfilt.reports.progress import QuietProgress
from capfilt.settings import Input
from capfilt.stages.evaluate.measure import EvaluationRequest, evaluate
from capfilt.stages.evaluate.pairs import Pairs, read_pairs

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.stages.evaluate.results import Evaluation

WORDS = ("red", "blue", "dog", "cat", "house", "boat", "tree", "street", "man", "woman", "night", "snow")


def png(number: int) -> bytes:
    """A picture of its own for each number."""
    colours = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(colours).save(file, "PNG")
    return file.getvalue()


def text(number: int) -> str:
    """A text of its own for each number below 144."""
    return f"a {WORDS[number % 12]} and a {WORDS[number // 12]}"


def sample(key: str, picture: int, words: str, **metadata: Any) -> list[tuple[str, bytes | str]]:
    return [(f"{key}.png", png(picture)), (f"{key}.txt", words), (f"{key}.json", json.dumps(metadata))]


def tar(path: Path) -> Path:
    """20 pictures, 23 texts: picture 0 has three texts, 1 and 2 share one, and 3 comes under two keys."""
    members = [part for n in range(20) for part in sample(f"k{n:02}", n, text(n))]
    members += sample("more0", 0, text(40))
    members += sample("more1", 0, text(41))
    members += sample("shared", 2, text(1).upper().replace(" ", "  "))
    members += sample("again", 3, text(42))
    members += sample("same", 3, text(3))
    members += [("broken.png", b"no picture"), ("broken.txt", "a text")]
    return world.write_tar(path, members)


def noisy_tar(path: Path) -> Path:
    """30 pictures; the text of every second is wrong: another picture's, or junk with words of its own."""
    members = []
    for n in range(30):
        kind = ("right", "swap", "right", "junk")[n % 4]
        words = {"right": text(n), "swap": text(n + 50), "junk": f"IMG {n} jpg {text(n)}"}[kind]
        members += sample(f"k{n:02}", n, words, noise_kind=kind)
    return world.write_tar(path, [*members, *sample("silent", 99, "of unknown kind")])


def pairs(path: Path, **more: Any) -> Pairs:
    return read_pairs(find_shards(path), Input(), **more)


def evaluated(task: Any, model: Path, data: Path, choices: Any = None, **more: Any) -> Evaluation:
    """Evaluate in this process, in fp32, five pictures at a time."""
    given = {"compute": {"device": "cpu", "precision": "fp32", "batch_size": 5}}
    settings = world.changed(world.Bootstrap(decoding=world.DECODING), given, more.pop("settings", {}))
    request = EvaluationRequest(task, str(model), str(data), settings, choices, **more)
    return evaluate(request, world.InProcess(), QuietProgress())


def figures(evaluation: Evaluation) -> dict[tuple[str, str, str], Any]:
    return {(one.table, one.row, one.measure): one.figure for one in evaluation.found.measured}
