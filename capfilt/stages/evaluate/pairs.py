"""The pairs that a model is evaluated on: each picture once, each text once, and which belong together.

A picture that stands in several samples is one picture with several texts, and a text that was written of
several pictures is one text that is right for all of them. To count such a text as wrong would punish a
model for being right.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from capfilt.canonical import digest_of
from capfilt.data.clean import CleanPair, same_caption
from capfilt.data.images import RefusedImage, decode
from capfilt.data.sources import read_shard
from capfilt.errors import CapfiltError
from capfilt.models.protocols import ImageBatch
from capfilt.records import Refusal

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence
    from pathlib import Path

    from capfilt.records import Sample, Shard
    from capfilt.settings import Input

RIGHT = "right"
"""What the field of a sample's metadata says of a text that is right for its picture."""
UNLABELLED = "unlabelled"
"""Why a sample is left out that does not say whether its text is right."""


@dataclass
class Pairs:
    """Usable pairs in the order of their shards; pictures and texts are numbered as they first appear."""

    pairs: list[CleanPair]
    """Of each, `image_id` is the number of its picture and `caption_id` that of its text."""
    keys: list[str]
    """Key of each pair's sample."""
    kinds: list[str]
    """`right`, or what is wrong with each pair's text."""
    refused: Counter[str]
    """Samples that cannot be used, counted by reason."""
    limits: Input
    is_cut: bool = False
    """Whether there was more than was asked for."""
    firsts: list[int] = field(default_factory=list)
    """Number of the first pair of each picture."""
    texts: list[str] = field(default_factory=list)
    """As they stand where they first appear; others may differ in case and white space."""

    def __post_init__(self) -> None:
        for number, pair in enumerate(self.pairs):
            if pair.image_id == len(self.firsts):
                self.firsts.append(number)
            if pair.caption_id == len(self.texts):
                self.texts.append(pair.text)

    @property
    def pictures(self) -> int:
        """How many different pictures there are."""
        return len(self.firsts)

    @property
    def digest(self) -> str:
        """Digest of the pairs, in their order: pictures, texts and what is said of them."""
        rows = [
            [pair.image_sha256, pair.text, kind] for pair, kind in zip(self.pairs, self.kinds, strict=True)
        ]
        return digest_of(rows)

    def sha256(self, picture: int) -> str:
        """Return the sha256 of a picture's encoded bytes."""
        return self.pairs[self.firsts[picture]].image_sha256

    def key(self, picture: int) -> str:
        """Return the key of the first sample that a picture stands in."""
        return self.keys[self.firsts[picture]]

    def right_texts(self) -> list[list[int]]:
        """Return the numbers of each picture's right texts, in ascending order."""
        right: list[set[int]] = [set() for _ in self.firsts]
        for pair, kind in zip(self.pairs, self.kinds, strict=True):
            if kind == RIGHT:
                right[pair.image_id].add(pair.caption_id)
        return [sorted(mine) for mine in right]

    def batch(self, pictures: Sequence[int]) -> ImageBatch:
        """Decode pictures, by their numbers."""
        decoded = [self.pairs[self.firsts[n]].picture(self.limits) for n in pictures]
        return ImageBatch(decoded, [self.sha256(n) for n in pictures])


def read_pairs(
    shards: Iterable[Shard], limits: Input, *, limit: int | None = None, kind_field: str | None = None
) -> Pairs:
    """Read every pair of picture and text; what cannot be used is counted by its reason.

    With `limit` reading ends where the next picture would be one too many. With `kind_field` a pair is what
    that field of its metadata says; without, every pair is right. Raises CapfiltError where nothing is left.
    """
    index = _Index()
    refused: Counter[str] = Counter()
    is_cut = False
    for path, sample in _samples(shards, limits):
        reason = _unusable(sample)
        kind = RIGHT if kind_field is None else sample.metadata.get(kind_field)
        if reason is None and (not isinstance(kind, str) or not kind):
            reason = UNLABELLED
        if reason is None and not index.has_picture(sample):
            reason = _undecodable(sample, limits)
            if reason is None and limit is not None and index.pictures >= limit:
                is_cut = True
                break
        if reason is None:
            index.add(path, sample, str(kind))
        else:
            refused[reason] += 1
    if not index.pictures:
        raise _nothing(refused, kind_field)
    return Pairs(index.pairs(), index.keys, index.kinds, refused, limits, is_cut)


def _samples(shards: Iterable[Shard], limits: Input) -> Iterator[tuple[Path, Sample]]:
    for shard in shards:
        for sample in read_shard(shard, limits):
            yield shard.path, sample


def _unusable(sample: Sample) -> str | None:
    if sample.reason is None and sample.image is not None:
        return None
    return (sample.reason or Refusal.MISSING_IMAGE).value


def _undecodable(sample: Sample, limits: Input) -> str | None:
    try:
        decode(sample.image or b"", max_pixels=limits.max_pixels)
    except RefusedImage as error:
        return error.reason.value
    return None


def _nothing(refused: Counter[str], kind_field: str | None) -> CapfiltError:
    reasons = ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
    if kind_field is not None and refused[UNLABELLED]:
        return CapfiltError(
            f"no sample says of its text what is wrong with it: {reasons}",
            fix=f'have "{kind_field}" in each KEY.json, as "{RIGHT}" or the kind of noise, or leave out '
            "--kind-field where all texts are right",
        )
    return CapfiltError(
        "there is no usable pair of picture and text" + (f": {reasons}" if reasons else ""),
        fix="give WebDataset tars with KEY.jpg and KEY.txt, or a caption in KEY.json",
    )


class _Index:
    """Pairs without their bytes, and which of them are connected (union-find)."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.kinds: list[str] = []
        self._rows: list[tuple[Path, int, int, str, str]] = []
        self._pictures: dict[str, int] = {}
        self._texts: dict[str, int] = {}
        self._ids: dict[tuple[int, int], int] = {}
        self._owners: dict[tuple[str, Hashable], int] = {}
        self._parents: list[int] = []

    @property
    def pictures(self) -> int:
        """How many different pictures there are so far."""
        return len(self._pictures)

    def has_picture(self, sample: Sample) -> bool:
        """Whether the sample's picture is there already."""
        return (sample.image_sha256 or "") in self._pictures

    def add(self, path: Path, sample: Sample, kind: str) -> None:
        """Take a usable pair in, unless the same picture has the same text already."""
        image, text, sha256 = sample.image or b"", sample.web_text or "", sample.image_sha256 or ""
        picture = self._pictures.setdefault(sha256, len(self._pictures))
        words = self._texts.setdefault(same_caption(text), len(self._texts))
        if (picture, words) in self._ids:
            return
        number = self._ids.setdefault((picture, words), len(self._ids))
        self._rows.append((path, sample.image_offset or 0, len(image), sha256, text))
        self.keys.append(sample.key)
        self.kinds.append(kind)
        self._parents.append(number)
        group = sample.metadata.get("group")
        links: list[tuple[str, Hashable]] = [("picture", picture), ("text", words)]
        if isinstance(group, (str, int)) and group != "":
            links.append(("group", group))
        for link in links:
            self._parents[self._root(number)] = self._root(self._owners.setdefault(link, number))

    def pairs(self) -> list[CleanPair]:
        """Return all pairs with the numbers of what they share."""
        return [
            CleanPair(*row, image_id=picture, caption_id=words, group_id=self._root(number))
            for number, (row, (picture, words)) in enumerate(zip(self._rows, self._ids, strict=True))
        ]

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number
