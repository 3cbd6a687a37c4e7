"""What measuring came to: seconds of each part, operations, memory, and what follows for a whole run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from capfilt.stages.bench.compare import Comparison

PartName = Literal["read", "decode", "resize", "image encoder", "captions", "scores", "commit"]
PARTS: tuple[PartName, ...] = ("read", "decode", "resize", "image encoder", "captions", "scores", "commit")
"""In the order of the loop."""
AHEAD: tuple[PartName, ...] = ("decode", "resize")
"""What threads do ahead, where there are any."""


@dataclass(frozen=True)
class Part:
    """What one part took for all the pictures that were measured."""

    name: PartName
    model: str
    """Whose image encoder it is: captioner, filter or both; empty for other parts."""
    wall_s: float
    cpu_s: float
    """CPU seconds of all the worker's threads."""
    flops: int = 0
    """Operations of its matrix products; 0 where there is no model."""
    peak: float = 0.0
    """Operations per second of a plain matrix product in the same numbers, on the same device and threads."""

    @property
    def share_of_peak(self) -> float | None:
        """How much of the peak it reached; None where there is no model."""
        return self.flops / (self.peak * self.wall_s) if self.flops and self.wall_s > 0 else None


@dataclass(frozen=True)
class Counters:
    """Work that was done, and work that had to be done."""

    encoder_passes: int = 0
    """Pictures that went through an image encoder, one after another of both models."""
    tokens_computed: int = 0
    """Tokens that went through the captioner's decoder."""
    tokens_needed: int = 0
    """Tokens that stand in captions, ends included."""
    texts_scored: int = 0


@dataclass(frozen=True)
class Measured:
    """What one worker came to, and what the run would use."""

    images: int
    samples: int
    """Samples they were found in, refused ones included."""
    megapixels: float
    """Of a decoded picture, on average."""
    parts: tuple[Part, ...]
    """Each by itself, one after another."""
    whole_wall_s: float
    """Seconds from the tar to the committed rows: all parts', or less where pictures are decoded ahead."""
    decoders: int
    """Threads that decode and resize ahead; 0 where that is done in turn."""
    counters: Counters
    device: str
    device_name: str
    precision: str
    has_native_bf16: bool
    batch_size: int
    candidates: int
    peak_memory: int
    """Bytes of the worker."""
    device_peak_memory: int | None
    """Bytes of the GPU's memory that tensors held; None on a CPU."""
    comparison: Comparison | None
    why_not: str
    """Why there is no comparison; empty where there is one."""
    workers: int = 1
    """Workers that a run with these settings would have."""
    at_once: int = 1
    """Those of them that do not take turns: one to a GPU, or as many as there are cores for their threads."""

    @property
    def wall_s(self) -> float:
        """Seconds of all parts, one after another."""
        return sum(part.wall_s for part in self.parts)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all parts."""
        return sum(part.cpu_s for part in self.parts)

    @property
    def images_per_s(self) -> float:
        """Pictures per second of one worker, from the tar to the committed rows."""
        return self.images / self.whole_wall_s

    @property
    def images_per_s_at_once(self) -> float:
        """Pictures per second of the run, if each worker is as fast as the one that was measured."""
        return self.images_per_s * self.at_once

    @property
    def share_of_peak(self) -> float | None:
        """Share of the matmul peak in the parts that are models' work, together; None without a model."""
        parts = [part for part in self.parts if part.flops]
        spent = sum(part.wall_s for part in parts)
        return sum(part.flops / part.peak for part in parts) / spent if spent > 0 else None

    @property
    def bottleneck(self) -> PartName:
        """The part that takes the most time; both image encoders count as one.

        What is done ahead holds nothing up as long as its threads are done before the rest is.
        """
        ahead = [name for name in PARTS if self.decoders and name in AHEAD]
        rest = [name for name in PARTS if name not in ahead]
        ahead_share = sum(map(self.share, ahead)) / max(1, self.decoders)
        return max(ahead if ahead_share > sum(map(self.share, rest)) else rest, key=self.share)

    def share(self, name: PartName) -> float:
        """Return the share of a part in the seconds of all parts."""
        return sum(part.wall_s for part in self.parts if part.name == name) / self.wall_s

    @property
    def encoders(self) -> int:
        """Image encoders that a picture goes through."""
        return sum(part.name == "image encoder" for part in self.parts)

    def hours(self, images: int) -> float:
        """Return how long a run over so many pictures takes."""
        return images / self.images_per_s_at_once / 3600
