"""Training pairs from any number of shards, as places in files: no picture's bytes are read here.

The order of a pass is a function of the seed and the pass alone. So every process of a training can walk the
whole stream and take its own rows, and one that is resumed goes on where it stopped, with no state kept.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from capfilt.data.clean import same_caption
from capfilt.data.sources import read_without_images
from capfilt.draws import permutation, seed_of, uniforms
from capfilt.errors import CapfiltError
from capfilt.records import Refusal, Status

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from capfilt import settings
    from capfilt.records import Sample, Shard

Item = TypeVar("Item")

_HIGHEST = 1 << 63
"""One past the largest number that seed_of gives."""
_NUMBERS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a picture, and where it comes from."""

    source: Literal["clean", "web", "synthetic"]
    text: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture by where its bytes lie, and the texts it may be trained with."""

    path: Path
    offset: int
    """First byte of the encoded picture in the file."""
    size: int
    """Bytes of the encoded picture."""
    shard: str
    key: str
    texts: tuple[Text, ...]
    """At least one."""
    group: str | None = None
    """The metadata's `group`, where the sample has one: pairs of a group are near copies of each other."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One training pair."""

    reference: Reference
    text: str
    number: int
    """Number of the pair in its pass, from 0."""


@dataclass(frozen=True)
class Survey:
    """What the shards of a stream hold, known from their headers and texts."""

    pictures: tuple[int, ...]
    """Usable pictures of each pool, those that are held out or never drawn included."""
    pairs: int
    """Pairs of a pass: the same number in every one."""
    refused: Counter[str]
    """Samples that cannot be used, counted by reason."""
    apart: int
    """Pictures that are not trained on since they share a group or a caption with one that is held out."""
    held_out: tuple[Drawn, ...]
    """Pairs kept from training: each picture with its first text, in the order of the shards."""


class Pool(Protocol):
    """Numbered shards of references: a plain value that can be pickled, since it crosses processes."""

    def __len__(self) -> int:
        """Return how many shards there are."""

    def read(self, shard: int, refused: Counter[str]) -> Iterator[Reference]:
        """Yield the references of one shard in an order of its own, always the same.

        What cannot be used is counted in `refused` by its reason. Raises CapfiltError if it cannot be read.
        """

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What the pairs depend on: name, bytes and digest of each shard."""


@dataclass(frozen=True)
class TarPool:
    """Shards that are tars; one that capfilt exported gives the texts that were kept, each by its source."""

    shards: tuple[Shard, ...]
    limits: settings.Input
    source: Literal["clean", "web"]
    """What the text of a sample is, where it is not an export's."""

    def __len__(self) -> int:
        return len(self.shards)

    def read(self, shard: int, refused: Counter[str]) -> Iterator[Reference]:
        """Yield the samples of one tar that have a picture and a text, as Pool says."""
        path = self.shards[shard].path
        for sample in read_without_images(self.shards[shard], self.limits):
            texts = () if sample.status is Status.REFUSED else self._texts(sample)
            if not texts or sample.image_offset is None or sample.image_size is None:
                refused[(sample.reason or Refusal.MISSING_TEXT).value] += 1
                continue
            yield Reference(
                path=path,
                offset=sample.image_offset,
                size=sample.image_size,
                shard=sample.shard,
                key=sample.key,
                texts=texts,
                group=_group(sample.metadata),
            )

    def _texts(self, sample: Sample) -> tuple[Text, ...]:
        own = () if sample.web_text is None else (Text(self.source, sample.web_text),)
        return _kept_texts(sample.metadata, self.limits) or own

    @property
    def facts(self) -> list[dict[str, Any]]:
        """Name, bytes and digest of each tar."""
        return [{"name": shard.name, "bytes": shard.size, "digest": shard.digest} for shard in self.shards]


class Stream:
    """Pairs of all pools, pass after pass; a plain value that keeps its survey when it is pickled.

    A picture is met in a pass as often as the largest weight of its texts says: the whole part for certain,
    and once more with the chance of the rest, which is drawn for the picture and not for the pass, so that
    every pass is equally long. Each time one of its texts is drawn by their weights, anew in every pass.

    Held out are the pairs of `held_out_pools` (numbers of pools) whose group, or else whose first text, has a
    low number: a share of `held_out.held_out`, `held_out.held_out_most` at most. Of two groups or more one at
    least is held out. What shares its group or a caption with one of them is not trained on, in whichever
    pool it stands; should that leave nothing of `held_out_pools` to train on, none is held out.
    Raises CapfiltError for a weight that is no finite number.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        settings: settings.Stream,
        seed: int,
        held_out: settings.Clean,
        held_out_pools: Collection[int],
    ) -> None:
        self.pools = tuple(pools)
        self.settings = settings
        self.seed = seed
        self._weights = {"clean": settings.clean, "web": settings.web, "synthetic": settings.synthetic}
        self._held_out = held_out
        self._held_out_pools = frozenset(held_out_pools)
        self._survey: Survey | None = None
        self._apart: frozenset[str] = frozenset()
        """Groups and captions of the pairs that are held out."""
        for source, weight in self._weights.items():
            if not math.isfinite(weight):
                raise CapfiltError(
                    f"the weight of {source} texts is {weight}; a picture cannot be met that often",
                    fix=f"give the weight of {source} texts a number, such as 1",
                )

    def survey(self) -> Survey:
        """Read the headers and texts of every shard, once, and those of `held_out_pools` twice.

        Holds one shard's index and the held-out pairs, however many shards there are.
        """
        if self._survey is None:
            held_out = self._choose_held_out()
            self._apart = frozenset(name for reference in held_out for name in _names(reference))
            survey, clean_is_left = self._count(held_out)
            if held_out and not clean_is_left:
                self._apart = frozenset()
                survey, _ = self._count([])
            self._survey = survey
        return self._survey

    def epoch(self, number: int) -> Iterator[Drawn]:
        """Yield the pairs of one pass, `survey().pairs` of them.

        The shards of all pools come in one drawn order, and the next pair is drawn among
        `shuffle_buffer` ones.
        """
        self.survey()
        chances = _numbers(self.seed, "stream order", number)
        pairs = _shuffled(self._pairs(number), self.settings.shuffle_buffer, chances)
        for place, (reference, text) in enumerate(pairs):
            yield Drawn(reference, text, number=place)

    def texts(self) -> Iterator[str]:
        """Yield every text that a pass may draw, once for each picture, in the order of the shards."""
        self.survey()
        for pool, shard in self._shards():
            for reference, visits in self._visited(pool, shard, Counter()):
                if visits and not self._is_apart(reference):
                    yield from (text.text for text in reference.texts if self._weights[text.source])

    def _shards(self) -> list[tuple[int, int]]:
        return [(number, shard) for number, pool in enumerate(self.pools) for shard in range(len(pool))]

    def _visited(self, pool: int, shard: int, refused: Counter[str]) -> Iterator[tuple[Reference, int]]:
        """Yield the pictures of a shard, each with how often a pass meets it."""
        chances = _numbers(self.seed, "stream visits", pool, shard)
        for reference, chance in zip(self.pools[pool].read(shard, refused), chances, strict=False):
            weight = max(self._weights[text.source] for text in reference.texts)
            yield reference, int(weight) + (chance < weight % 1)

    def _pairs(self, number: int) -> Iterator[tuple[Reference, str]]:
        """Yield the pairs of a pass, one shard after the other."""
        shards = self._shards()
        for place in permutation(len(shards), self.seed, "stream shards", number).tolist():
            pool, shard = shards[place]
            chances = _numbers(self.seed, "stream texts", number, pool, shard)
            for reference, visits in self._visited(pool, shard, Counter()):
                if visits and not self._is_apart(reference):
                    for _ in range(visits):
                        yield reference, self._draw_text(reference.texts, next(chances))

    def _draw_text(self, texts: tuple[Text, ...], chance: float) -> str:
        """Return the text at a place on the line where each is as long as its weight."""
        left = chance * sum(self._weights[text.source] for text in texts)
        drawn = ""
        for text in texts:
            weight = self._weights[text.source]
            if weight:
                drawn, left = text.text, left - weight
            if left < 0:
                break
        return drawn

    def _choose_held_out(self) -> list[Reference]:
        """Return the pairs with the lowest numbers, in the order of the shards."""
        lowest: list[tuple[int, tuple[int, int, int], Reference]] = []
        least, greatest = _HIGHEST, -1
        for pool, shard in self._shards():
            if pool not in self._held_out_pools:
                continue
            for place, reference in enumerate(self.pools[pool].read(shard, Counter())):
                number = seed_of(self.seed, "held out", next(_names(reference)))
                least, greatest = min(least, number), max(greatest, number)
                # Negative, since heapq drops the lowest: the highest number goes first, and the last place.
                heapq.heappush(lowest, (-number, (-pool, -shard, -place), reference))
                if len(lowest) > self._held_out.held_out_most:
                    heapq.heappop(lowest)
        below = min(int(self._held_out.held_out * _HIGHEST), greatest)
        if least >= below and least < greatest:
            below = least + 1
        chosen = [(place, reference) for number, place, reference in lowest if -number < below]
        return [reference for _, reference in sorted(chosen, key=lambda pair: pair[0], reverse=True)]

    def _count(self, held_out: list[Reference]) -> tuple[Survey, bool]:
        """Return the survey, and whether any pair of the pools that are held out from is trained on.

        A pool whose texts all have weight 0 counts as trained on: nothing of it was to be.
        """
        pictures = [0] * len(self.pools)
        refused: Counter[str] = Counter()
        pairs = of_clean = left_of_clean = apart = 0
        for pool, shard in self._shards():
            for reference, visits in self._visited(pool, shard, refused):
                left = 0 if self._is_apart(reference) else visits
                pictures[pool] += 1
                pairs += left
                apart += visits > left
                if pool in self._held_out_pools:
                    of_clean, left_of_clean = of_clean + visits, left_of_clean + left
        drawn = tuple(Drawn(one, one.texts[0].text, number) for number, one in enumerate(held_out))
        survey = Survey(tuple(pictures), pairs, refused, max(0, apart - len(held_out)), drawn)
        return survey, left_of_clean > 0 or of_clean == 0

    def _is_apart(self, reference: Reference) -> bool:
        """Whether it shares its group or a caption with a pair that is held out."""
        return bool(self._apart) and not self._apart.isdisjoint(_names(reference))


def _names(reference: Reference) -> Iterator[str]:
    """Yield what near copies of a pair share: its group, where it has one, and its captions."""
    if reference.group is not None:
        yield f"group\0{reference.group}"
    for text in reference.texts:
        yield f"caption\0{same_caption(text.text)}"


def _numbers(*key: str | int) -> Iterator[float]:
    """Yield numbers in [0, 1) without end: a function of the key alone."""
    for block in itertools.count():
        yield from uniforms(_NUMBERS_AT_ONCE, *key, block).tolist()


def _shuffled(items: Iterable[Item], size: int, chances: Iterator[float]) -> Iterator[Item]:
    """Yield the items, each drawn among `size` of them that are held here."""
    held: list[Item] = []
    for item in items:
        if len(held) < size:
            held.append(item)
            continue
        place = int(next(chances) * size)
        yield held[place]
        held[place] = item
    while held:
        place = int(next(chances) * len(held))
        held[place], held[-1] = held[-1], held[place]
        yield held.pop()


def _kept_texts(metadata: dict[str, Any], limits: settings.Input) -> tuple[Text, ...]:
    """Return the texts that an export kept; none where anything differs from what an export writes."""
    own = metadata.get("capfilt")
    captions = own.get("captions") if isinstance(own, dict) else None
    if not isinstance(captions, list):
        return ()
    texts = []
    for caption in captions:
        if not isinstance(caption, dict) or caption.get("source") not in ("web", "synthetic"):
            return ()
        text = caption.get("text")
        if not isinstance(text, str) or not text.strip() or not _can_be_read(text, limits):
            return ()
        texts.append(Text(caption["source"], text.strip()))
    return tuple(texts)


def _can_be_read(text: str, limits: settings.Input) -> bool:
    try:
        return len(text.encode("utf-8")) <= limits.max_text_bytes
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON may hold
        return False


def _group(metadata: dict[str, Any]) -> str | None:
    group = metadata.get("group")
    if not isinstance(group, (str, int)) or group == "":
        return None
    return str(group).encode("utf-8", "backslashreplace").decode("utf-8")
