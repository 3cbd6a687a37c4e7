"""Clean pairs for a pre-training, without those that a fine-tuning on the same set is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.data.apart import Apart, held_out_places
from capfilt.data.stream import TarPool
from capfilt.stages.worker import in_a_worker

if TYPE_CHECKING:
    from capfilt.data.apart import Place
    from capfilt.records import Shard
    from capfilt.settings import Bootstrap, Clean, Input
    from capfilt.stages.context import Engine, Tell


def clean_pool(clean: tuple[Shard, ...], settings: Bootstrap, seed: int, engine: Engine) -> Apart:
    """Return the pool of clean shards whose held-out pairs, by the seed of the later training, are apart."""
    later = _Later(clean, settings.input, settings.clean, seed)
    places = in_a_worker(engine, _held_out, later, threads=settings.compute.threads)
    return Apart(TarPool(clean, settings.input, "clean"), places)


@dataclass(frozen=True)
class _Later:
    """Clean pairs, and how a later training splits them."""

    shards: tuple[Shard, ...]
    limits: Input
    clean: Clean
    seed: int


def _held_out(job: _Later, _device: str, _tell: Tell) -> frozenset[Place]:
    """Find them; done by a worker, which decodes every picture once."""
    return held_out_places(job.shards, job.limits, job.clean, seed=job.seed)
