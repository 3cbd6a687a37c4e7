"""What is in a picture, found in its pixels and in the SVG's words; and curves to draw."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from capfilt.reports.filter_charts import Bin, KindOfNoise, ScoreCurve

if TYPE_CHECKING:
    from capfilt.reports.drawing import Chart


def pixels(chart: Chart) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(chart.as_bytes())) as image:
        return np.asarray(image.convert("RGB"))


def words(chart: Chart) -> str:
    """Texts stand in the SVG as comments beside their outlines."""
    return chart.as_bytes("svg").decode("utf-8")


def places_of(colour: str, chart: Chart) -> np.ndarray[Any, Any]:
    """Return (row, column) of the pixels of one colour."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere((pixels(chart) == rgb).all(axis=-1))


def curve(label: str, baseline: bool = False) -> ScoreCurve:
    return ScoreCurve(label, [(0, 0), (0.1, 0.8), (1, 1)], [(0.1, 1), (1, 0.4)], 0.85, 0.7, baseline)


def bins(count: int = 10) -> list[Bin]:
    return [
        Bin(i / 10, (i + 1) / 10, i / 10 + 0.05, i / 10 + 0.1, 40, i / 10, i / 10 + 0.15)
        for i in range(count)
    ]


def kind_of_noise(label: str, score: str = "ITM", right: int = 50, wrong: int = 50) -> KindOfNoise:
    return KindOfNoise(label, right, wrong, [curve(score), curve("random", baseline=True)])
