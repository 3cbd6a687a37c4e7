"""How long the stages took, how fast they were, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.provenance.statistics.reading import rows

if TYPE_CHECKING:
    import duckdb

_UNITS = {
    "train": "steps",
    "pretrain": "steps",
    "recaption": "images",
    "score": "images",
    "judge": "texts",
    "export": "samples",
}
"""What a stage counts, by the first word of its name."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage of one start of the run."""

    stage: str
    start: int
    """Which start of the run, from 1."""
    status: str
    """running, done, withheld, failed or interrupted."""
    detail: str
    seconds: float | None
    """None while it runs, and where it was killed: nobody wrote down when."""
    count: int | None
    """What this start did of it; what an earlier one did is not in it."""
    unit: str | None
    """images, steps, texts or samples; None for a stage of a pipeline's own."""
    per_second: float | None
    cost: float | None
    """At the price given; None without one."""


@dataclass(frozen=True, slots=True)
class Spent:
    """All stages of all starts together."""

    seconds: float
    """Wall time of the stages that ended."""
    images: int
    """Pictures that were captioned or scored."""
    images_per_s: float | None
    """Of the stages that caption or score; None where none ended."""
    price_per_hour: float | None
    cost: float | None
    """Of all stages; None without a price."""
    cost_per_million_images: float | None
    """Of captioning and scoring alone, trainings left out; None without a price or a picture."""


def timings(
    catalog: duckdb.DuckDBPyConnection, *, price_per_hour: float | None = None
) -> tuple[list[StageTime], Spent]:
    """Return the stages in their order, and what they sum up to.

    `price_per_hour` is that of all machines of the run together, in any currency. It is paid for wall
    time, however busy the machine was.
    """
    stages = [
        StageTime(
            **row,
            unit=_UNITS.get(row["stage"].split("_")[0]),
            cost=_cost(row["seconds"], price_per_hour),
        )
        for row in rows(
            catalog,
            "SELECT stage, start, status, detail, ended - started AS seconds, count, per_second"
            " FROM stages ORDER BY start, started, stage",
        )
    ]
    seen = [(one.count, one.seconds) for one in stages if one.unit == "images" and one.count and one.seconds]
    images, of_images = sum(count for count, _ in seen), sum(seconds for _, seconds in seen)
    cost = _cost(of_images, price_per_hour)
    seconds = sum(one.seconds or 0.0 for one in stages)
    return stages, Spent(
        seconds=seconds,
        images=images,
        images_per_s=images / of_images if of_images else None,
        price_per_hour=price_per_hour,
        cost=_cost(seconds, price_per_hour),
        cost_per_million_images=cost / images * 1e6 if cost is not None and images else None,
    )


def _cost(seconds: float | None, price_per_hour: float | None) -> float | None:
    return None if seconds is None or price_per_hour is None else seconds / 3600 * price_per_hour
