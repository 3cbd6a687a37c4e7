"""Pairs to train on: an index of usable pairs, split so that near copies stay on one side.

Every picture is decoded once to know that it can be. Pixels are kept where they fit in memory, as
the model will see them; beyond that they are read again from the shard by their byte offset.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.data.images import RefusedImage, decode, to_square
from capfilt.data.sources import read_bytes, read_shard
from capfilt.draws import permutation
from capfilt.errors import CapfiltError
from capfilt.records import Refusal, Sample, Shard

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from capfilt.settings import Clean, Images, Input


@dataclass(frozen=True, slots=True)
class CleanPair:
    """A picture, where its bytes lie, and its right caption."""

    path: Path
    offset: int
    size: int
    image_sha256: str
    text: str
    image_id: int
    """Equal for equal images."""
    caption_id: int
    """Equal for captions that differ in nothing but case and white space."""
    group_id: int
    """Equal for pairs connected by an image, a caption or the metadata's `group`."""

    def picture(self, limits: Input) -> Image:
        """Decode the picture: upright, RGB, or RGBA where a pixel is transparent."""
        try:
            return decode(read_bytes(self.path, self.offset, self.size), max_pixels=limits.max_pixels)
        except RefusedImage as error:
            raise CapfiltError(
                f"{self.path} changed while it was read: the picture at byte {self.offset} is no longer one",
                fix="leave the shards as they are while capfilt runs, and give the same command again",
            ) from error


class CleanSet:
    """Usable pairs, in the order of their shards, and what was refused on the way."""

    def __init__(self, pairs: list[CleanPair], refused: Counter[str], limits: Input) -> None:
        self.pairs = pairs
        self.refused = refused
        """Samples that cannot be used, counted by reason."""
        self._limits = limits
        self._images: Images | None = None
        self._squares: NDArray[np.uint8] | None = None

    @property
    def digest(self) -> str:
        """Digest of the pairs: images and texts, in order."""
        whole = hashlib.sha256()
        for pair in self.pairs:
            whole.update(f"{pair.image_sha256}\0{pair.text}\0".encode("utf-8", "surrogatepass"))
        return whole.hexdigest()

    def picture(self, index: int) -> Image:
        """Decode the picture of one pair: upright, RGB, or RGBA where a pixel is transparent."""
        return self.pairs[index].picture(self._limits)

    def squares(self, indices: Sequence[int], images: Images) -> NDArray[np.uint8]:
        """Return pixels of pairs, uint8, shape (pairs, 3, side, side)."""
        import numpy as np

        if self._squares is not None and images == self._images:
            kept: NDArray[np.uint8] = self._squares[np.asarray(indices)]
            return kept
        return np.stack([to_square(self.picture(index), images) for index in indices])

    def keep(self, images: Images, squares: list[NDArray[np.uint8]]) -> None:
        """Keep the pixels of all pairs in memory."""
        import numpy as np

        self._images, self._squares = images, np.stack(squares)


def read_clean(shards: Iterable[Shard], limits: Input, images: Images, *, cache_mb: int) -> CleanSet:
    """Read every pair of picture and text; what cannot be used is counted by its reason.

    Pixels are kept as `images` asks while all of them take `cache_mb` at most.
    """
    index = _Index()
    refused: Counter[str] = Counter()
    squares: list[NDArray[np.uint8]] = []
    room = cache_mb * 2**20 // (3 * images.size_px**2)
    for shard in shards:
        for sample in read_shard(shard, limits):
            usable = _usable_picture(sample, limits)
            if isinstance(usable, str):
                refused[usable] += 1
                continue
            index.add(shard.path, sample)
            if len(squares) <= room:
                squares.append(to_square(usable, images))
    clean = CleanSet(index.pairs(), refused, limits)
    if squares and len(squares) <= room:
        clean.keep(images, squares)
    return clean


def split(
    clean: CleanSet, settings: Clean, *, seed: int, held_out_from: int | None = None
) -> tuple[list[int], list[int]]:
    """Return indices to train on and indices held out, each group on one side.

    Groups are held out in a drawn order until the share is reached. Of two groups or more at least one
    is held out and one is not; a single group is trained on. With `held_out_from` only the first so many
    pairs may be held out (clean pairs that stand before web pairs), and pairs of a held-out group are
    then in neither list.
    """
    count = len(clean.pairs) if held_out_from is None else held_out_from
    members: dict[int, list[int]] = {}
    for index in range(count):
        members.setdefault(clean.pairs[index].group_id, []).append(index)
    wanted = min(settings.held_out_most, max(1, round(count * settings.held_out)))
    groups = sorted(members)
    held_out: list[int] = []
    # Half of the groups at most: a set of few large groups must still leave something to train on.
    for place in permutation(len(groups), "held out", seed)[: len(groups) // 2]:
        mine = members[groups[place]]
        if len(held_out) >= wanted:
            break
        if len(held_out) + len(mine) <= max(wanted, count // 2):
            held_out += mine
    if not held_out and len(groups) > 1:
        # The drawn groups are all larger than half of the set: the smallest one cannot be.
        held_out = members[min(groups, key=lambda group: len(members[group]))]
    outside = {clean.pairs[index].group_id for index in held_out}
    train = [index for index, pair in enumerate(clean.pairs) if pair.group_id not in outside]
    return train, sorted(held_out)


def _usable_picture(sample: Sample, limits: Input) -> Image | str:
    """Return the decoded picture of a pair, or why it cannot be used."""
    if sample.reason is not None or sample.image is None:
        return (sample.reason or Refusal.MISSING_IMAGE).value
    try:
        return decode(sample.image, max_pixels=limits.max_pixels)
    except RefusedImage as error:
        return error.reason.value


class _Index:
    """Pairs without their bytes, and which of them are connected (union-find)."""

    def __init__(self) -> None:
        self._rows: list[tuple[Path, int, int, str, str]] = []
        self._owners: dict[tuple[str, Hashable], int] = {}
        self._parents: list[int] = []

    def add(self, path: Path, sample: Sample) -> None:
        """Take a usable pair in."""
        number = len(self._rows)
        image, text, sha256 = sample.image or b"", sample.web_text or "", sample.image_sha256 or ""
        self._rows.append((path, sample.image_offset or 0, len(image), sha256, text))
        self._parents.append(number)
        group = sample.metadata.get("group")
        links: list[tuple[str, Hashable]] = [("image", sha256), ("caption", same_caption(text))]
        if isinstance(group, (str, int)) and group != "":
            links.append(("group", group))
        for link in links:
            self._parents[self._root(number)] = self._root(self._owners.setdefault(link, number))

    def pairs(self) -> list[CleanPair]:
        """Return all pairs with the numbers of what they share."""
        return [
            CleanPair(
                *row,
                image_id=self._owners["image", row[3]],
                caption_id=self._owners["caption", same_caption(row[4])],
                group_id=self._root(number),
            )
            for number, row in enumerate(self._rows)
        ]

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number


def same_caption(text: str) -> str:
    """Return what two captions have in common that differ in nothing but case and white space."""
    return " ".join(text.casefold().split())
