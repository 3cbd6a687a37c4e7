"""What stages ask of a captioner and a filter, whatever is behind it.

Both get decoded pictures, not tensors: every model has an image processing of its own, and a picture
is decoded once for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from capfilt.data.images import to_square
from capfilt.errors import RunFailedError
from capfilt.settings import Matching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from capfilt.records import Scores, Unfinished
    from capfilt.settings import Images, SettledDecoding


AS_MADE = Matching()
"""Nothing chosen: a filter reads texts as its card says."""


@dataclass
class ImageBatch:
    """Decoded pictures, side by side, each known by the sha256 of its encoded bytes."""

    pictures: Sequence[Image]
    """As `capfilt.data.images.decode` gives them: upright, RGB, or RGBA where a pixel is transparent."""
    sha256: Sequence[str]
    resized: Sequence[Mapping[Images, NDArray[np.uint8]]] = ()
    """Squares of each picture that were made before; others are made when they are asked for."""
    _squares: dict[Images, NDArray[np.uint8]] = field(default_factory=dict, repr=False)
    _states: dict[tuple[str, ...], Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.pictures)

    def squares(self, images: Images) -> NDArray[np.uint8]:
        """Return pixels, uint8, shape (pictures, 3, side, side); made once for equal image settings."""
        import numpy as np

        if images not in self._squares:
            made = self.resized or [{}] * len(self.pictures)
            self._squares[images] = np.stack(
                [
                    there[images] if images in there else to_square(picture, images)
                    for picture, there in zip(self.pictures, made, strict=True)
                ]
            )
        return self._squares[images]

    def states(self, encoder: tuple[str, ...], encode: Callable[[], Tensor]) -> Tensor:
        """Return what an image encoder makes of the pictures; made once for encoders of one name.

        The name says everything that the states depend on: weights, image settings, precision, device.
        """
        if encoder not in self._states:
            self._states[encoder] = encode()
        return self._states[encoder]


def refuse_infinite(what: str, *rows: Iterable[float]) -> None:
    """RunFailedError where what a filter gives are not all finite numbers, with what may mend it."""
    if not all(math.isfinite(value) for row in rows for value in row):
        raise RunFailedError(
            f"the filter's {what} are no finite numbers",
            fix="give a filter whose training did not diverge, or try --precision fp32",
        )


def seen_as(models: Iterable[Captioner | Filter | None]) -> set[Images]:
    """Return how models see a picture that take it as a square; others prepare it themselves."""
    found = (getattr(model, "images", None) for model in models)
    return {images for images in found if images is not None}


@dataclass(frozen=True, slots=True)
class Written:
    """A caption, and how writing it ended."""

    text: str
    unfinished: Unfinished | None = None
    """Why the captioner did not end it by itself."""
    said: str = ""
    """What it said of a refusal."""


class Captioner(Protocol):
    """Writes captions."""

    @property
    def digest(self) -> str:
        """Name of the weights: their sha256."""
        ...

    def caption(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> list[list[str]]:
        """Return `candidates` captions for each picture, without the prompt.

        A caption depends on the model, the decoding, and (seed, image sha256, candidate number) alone.
        """
        ...


@runtime_checkable
class TellingCaptioner(Captioner, Protocol):
    """A captioner that may refuse single pictures, and says of each caption how writing it ended."""

    def write(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> list[list[Written]]:
        """Return what `caption` does; a picture that it refuses alone has empty captions that say so."""
        ...


class Filter(Protocol):
    """Scores how well texts fit their picture."""

    @property
    def digest(self) -> str:
        """Name of the weights: their sha256."""
        ...

    def score(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scores]]:
        """Return the scores of each picture's texts, in their order; a picture may have none."""
        ...


@runtime_checkable
class FeatureFilter(Filter, Protocol):
    """A filter whose features of pictures and texts can be asked for, each without the other (ITC)."""

    @property
    def has_itc(self) -> bool:
        """Whether it gives a cosine; without, it has no features."""
        ...

    @property
    def has_itm(self) -> bool:
        """Whether it gives a probability of a match; then it is a `PairFilter`."""
        ...

    @property
    def encoder_passes(self) -> int:
        """Pictures that its image encoder encoded so far."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def image_features(self, batch: ImageBatch) -> Tensor:
        """Return ITC features of pictures, (pictures, embed) or (pictures, queries, embed), unit length."""
        ...

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return ITC features of texts, (texts, embed), unit length."""
        ...


@runtime_checkable
class PairFilter(FeatureFilter, Protocol):
    """A filter that looks at picture and text together as well (ITM), over states that can be kept."""

    @property
    def images(self) -> Images:
        """How it sees a picture."""
        ...

    def image_states(self, batch: ImageBatch) -> Tensor:
        """Return a batch's image states, (pictures, states, width)."""
        ...

    def itm_logits(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> Tensor:
        """Return (pictures, most texts of a picture, 2) logits in fp32, column 1 for a match."""
        ...
