"""Draw a small world of pictures whose truth is known: 1 or 2 coloured shapes on a coloured ground.

    python examples/scenes.py --out scenes --seed 0

makes `clean/` (right captions), `web/` (about 55% noise, planted in known ways) and `truth.jsonl`
(what was planted), beside each other. capfilt is given the first two and never the third. With
`--labelled 500` it also makes `labelled/`, other noisy pairs whose KEY.json says what was planted, for

    capfilt evaluate filter MODEL scenes/labelled --kind-field noise_kind
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Iterator

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
GROUNDS = ((25, 25, 30), (95, 100, 105), (60, 45, 30), (20, 60, 65), (160, 140, 130), (70, 70, 110))
ONE = (
    "a picture of {0}",
    "there is {0} here",
    "{0} on a plain ground",
    "a drawing that shows {0}",
)
TWO = (
    "{0} and {1}",
    "a picture of {0} and {1}",
    "there is {0} next to {1}",
    "a drawing that shows {0} with {1}",
)
JUNK = (
    "IMG_{n:04d}.JPG",
    "DSC{n:05d}",
    "buy now and save {n} percent",
    "click here to enlarge",
    "photo {n} of our gallery",
    "free shipping on all orders",
    "untitled-{n}.png",
    "image may be subject to copyright",
)
NOISE = {"swap": 0.20, "colour": 0.10, "shape": 0.10, "junk": 0.10, "empty": 0.05}
"""Shares of the web set that get another picture's caption, one wrong colour, one wrong shape, ..."""
SIDE_PX = 64

Item = tuple[str, str]
"""A colour and a shape."""
UNSEEN: frozenset[Item] = frozenset({("red", "star"), ("blue", "cross"), ("white", "triangle")})
"""Combinations that the clean set lacks."""


@dataclass(frozen=True)
class Scene:
    """What is in a picture, left to right."""

    items: tuple[Item, ...]

    @property
    def unseen(self) -> bool:
        """Whether it holds a combination that the clean set lacks."""
        return bool(UNSEEN & set(self.items))


def described(text: str) -> tuple[Item, ...] | None:
    """Read a caption back into its items, in any order; None when it is not such a caption."""
    words = text.lower().split()
    items = [(a, b) for a, b in itertools.pairwise(words) if a in COLOURS and b in SHAPES]
    named = sum(word in COLOURS or word in SHAPES for word in words)
    return tuple(sorted(items)) if items and named == 2 * len(items) else None


def is_right(scene: Scene, text: str) -> bool:
    """Whether a caption names every item of the scene and no other."""
    return described(text) == tuple(sorted(scene.items))


def caption(scene: Scene, rng: random.Random) -> str:
    """Return a right caption of a scene, in one of several phrasings."""
    names = [f"a {colour} {shape}" for colour, shape in scene.items]
    return rng.choice(ONE if len(names) == 1 else TWO).format(*names)


def draw_scene(rng: random.Random, *, unseen: bool) -> Scene:
    """Draw 1 or 2 items; with `unseen` at least one is a combination that the clean set lacks."""
    every = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    known = [item for item in every if item not in UNSEEN]
    count = rng.choice((1, 2))
    items = [rng.choice(known) for _ in range(count)]
    if unseen:
        items[rng.randrange(count)] = rng.choice(sorted(UNSEEN))
    return Scene(tuple(items))


def picture(scene: Scene, rng: random.Random) -> bytes:
    """Draw a scene as PNG bytes; place, size, ground and tint vary."""
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), _tinted(rng.choice(GROUNDS), rng))
    draw = ImageDraw.Draw(image)
    columns = len(scene.items)
    for column, (colour, shape) in enumerate(scene.items):
        radius = rng.uniform(10.5, 14.5)
        width = SIDE_PX / columns
        x = width * column + rng.uniform(radius + 1, width - radius - 1)
        y = rng.uniform(radius + 2, SIDE_PX - radius - 2)
        draw.polygon(_outline(shape, x, y, radius), fill=_tinted(COLOURS[colour], rng))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _tinted(colour: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    r, g, b = (max(0, min(255, value + rng.randint(-14, 14))) for value in colour)
    return r, g, b


def _outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    def ring(points: int, start: float, radii: tuple[float, ...]) -> list[tuple[float, float]]:
        angles = [math.radians(start + 360 * n / points) for n in range(points)]
        return [
            (x + radii[n % len(radii)] * math.cos(a), y + radii[n % len(radii)] * math.sin(a))
            for n, a in enumerate(angles)
        ]

    if shape == "circle":
        return ring(40, 0, (radius,))
    if shape == "square":
        return ring(4, 45, (radius * 1.2,))
    if shape == "triangle":
        return ring(3, -90, (radius * 1.25,))
    if shape == "star":
        return ring(10, -90, (radius * 1.25, radius * 0.5))
    arm, half = radius * 1.1, radius * 0.36
    corners = [(-half, -arm), (half, -arm), (half, -half), (arm, -half), (arm, half), (half, half)]
    corners += [(half, arm), (-half, arm), (-half, half), (-arm, half), (-arm, -half), (-half, -half)]
    return [(x + dx, y + dy) for dx, dy in corners]


def planted_text(scene: Scene, kind: str, rng: random.Random, others: list[Scene]) -> str:
    """Return a web text of a scene with one kind of noise; `right` has none."""
    if kind == "right":
        return caption(scene, rng)
    if kind == "empty":
        return ""
    if kind == "junk":
        return rng.choice(JUNK).format(n=rng.randrange(10000))
    if kind == "swap":
        while True:
            text = caption(rng.choice(others), rng)
            if not is_right(scene, text):
                return text
    return caption(_one_wrong(scene, kind, rng), rng)


def _one_wrong(scene: Scene, kind: str, rng: random.Random) -> Scene:
    while True:
        items = list(scene.items)
        place = rng.randrange(len(items))
        colour, shape = items[place]
        if kind == "colour":
            items[place] = (rng.choice([c for c in COLOURS if c != colour]), shape)
        else:
            items[place] = (colour, rng.choice([s for s in SHAPES if s != shape]))
        if sorted(items) != sorted(scene.items):
            return Scene(tuple(items))


def samples(
    count: int, rng: random.Random, *, noisy: bool, unseen_share: float
) -> Iterator[tuple[Scene, str, str, bytes]]:
    """Yield (scene, kind of noise, text, PNG bytes)."""
    scenes = [draw_scene(rng, unseen=rng.random() < unseen_share) for _ in range(count)]
    kinds = ["right"] * count
    if noisy:
        kinds = [kind for kind, share in NOISE.items() for _ in range(round(count * share))]
        kinds += ["right"] * (count - len(kinds))
        rng.shuffle(kinds)
    for scene, kind in zip(scenes, kinds, strict=True):
        yield scene, kind, planted_text(scene, kind, rng, scenes), picture(scene, rng)


def write_shards(folder: Path, rows: list[tuple[str, dict[str, bytes]]], per_shard: int) -> None:
    """Write rows of (key, {extension: bytes}) as WebDataset tars, the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(rows), per_shard)):
        with tarfile.open(folder / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, members in rows[start : start + per_shard]:
                for extension, data in members.items():
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def make_labelled(out: Path, *, seed: int, count: int) -> None:
    """Draw noisy pairs that say themselves what was planted, to evaluate a filter on."""
    rng = random.Random(f"labelled {seed}")
    rows: list[tuple[str, dict[str, bytes]]] = []
    for number, (_, kind, text, png) in enumerate(samples(count, rng, noisy=True, unseen_share=0.1)):
        metadata = json.dumps({"noise_kind": kind, "licence": "CC0-1.0"}, sort_keys=True)
        rows.append((f"{number:06d}", {"png": png, "txt": text.encode(), "json": metadata.encode()}))
    write_shards(out / "labelled", rows, 500)


def make(out: Path, *, seed: int, clean: int, web: int, per_shard: int = 500) -> None:
    """Draw the clean set, the web set and the truth about the latter."""
    rng = random.Random(f"scenes {seed}")
    for name, count, noisy, unseen in (("clean", clean, False, 0.0), ("web", web, True, 0.1)):
        rows: list[tuple[str, dict[str, bytes]]] = []
        truth: list[str] = []
        for number, (scene, kind, text, png) in enumerate(
            samples(count, rng, noisy=noisy, unseen_share=unseen)
        ):
            key = f"{number:06d}"
            metadata = json.dumps({"key": key, "licence": "CC0-1.0"}, sort_keys=True)
            rows.append((key, {"png": png, "txt": text.encode(), "json": metadata.encode()}))
            truth.append(json.dumps({"key": key, "kind": kind, "items": scene.items, "unseen": scene.unseen}))
        write_shards(out / name, rows, per_shard)
        if noisy:
            (out / "truth.jsonl").write_text("\n".join(truth) + "\n", encoding="utf-8")


def main() -> None:
    """Draw the world."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("scenes"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clean", type=int, default=3000, help="clean pairs")
    parser.add_argument("--web", type=int, default=2000, help="web pairs")
    parser.add_argument("--labelled", type=int, default=0, help="noisy pairs with labels")
    options = parser.parse_args()
    if options.labelled:
        make_labelled(options.out, seed=options.seed, count=options.labelled)
    make(options.out, seed=options.seed, clean=options.clean, web=options.web)
    print(f"drew {options.clean} clean and {options.web} web pairs in {options.out}")


if __name__ == "__main__":
    main()
