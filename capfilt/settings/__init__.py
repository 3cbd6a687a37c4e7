"""Every choice a run takes, named, with its unit and range, and refused where it is out of range."""

from __future__ import annotations

from capfilt.settings.models import (
    Blip2,
    Foreign,
    Images,
    Language,
    Model,
    QFormer,
    Structure,
    Text,
    Trainable,
    Vision,
)
from capfilt.settings.run import Bootstrap, Bundles, Compute, Export, Input, Judge
from capfilt.settings.training import Augment, Clean, Phase, Stream, Training
from capfilt.settings.use import Decoding, Matching, Server, SettledDecoding

__all__ = [
    "Augment",
    "Blip2",
    "Bootstrap",
    "Bundles",
    "Clean",
    "Compute",
    "Decoding",
    "Export",
    "Foreign",
    "Images",
    "Input",
    "Judge",
    "Language",
    "Matching",
    "Model",
    "Phase",
    "QFormer",
    "Server",
    "SettledDecoding",
    "Stream",
    "Structure",
    "Text",
    "Trainable",
    "Training",
    "Vision",
]
