"""Every choice a run takes, named, with its unit and range, and refused where it is out of range."""

from __future__ import annotations

from capfilt.settings.models import Images, Model, Text, Vision
from capfilt.settings.run import Bootstrap, Bundles, Compute, Export, Input, Judge
from capfilt.settings.training import Augment, Clean, Phase, Stream, Training
from capfilt.settings.use import Decoding, Matching, SettledDecoding

__all__ = [
    "Augment",
    "Bootstrap",
    "Bundles",
    "Clean",
    "Compute",
    "Decoding",
    "Export",
    "Images",
    "Input",
    "Judge",
    "Matching",
    "Model",
    "Phase",
    "SettledDecoding",
    "Stream",
    "Text",
    "Training",
    "Vision",
]
