"""One checkpoint here and in transformers: the largest differences on a picture that is drawn on the spot.

Both sides load the folder, each by its own code, and compute in fp32; here as a run does, with matrices laid
out for the processor.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from capfilt.models.checkpoints.configs import ARCHITECTURES, PREPROCESSOR_FILE, PROCESSOR_FILE
from capfilt.settings import SettledDecoding

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

    from capfilt.models.bundle import Bundle
    from capfilt.models.protocols import ImageBatch
    from capfilt.settings import Images

WITHIN = 1e-4
"""Largest difference of states, cosines and logits that is put down to the order of additions."""
WITHIN_LEVELS = 1.0
"""Largest difference of a channel after resizing, of 255 levels."""
TEXTS = ("a red circle above a blue square", "two dogs run on the beach", "a circle")
_SIZE = (120, 90)


@dataclass(frozen=True)
class Parity:
    """How far apart both are."""

    architecture: str
    """Class of transformers."""
    differences: dict[str, float]
    """Largest absolute difference by what was compared."""
    pixels: float | None
    """Largest difference of the resized picture, of 255 levels; None where the folder says nothing of
    pictures."""
    tokens_are_equal: bool
    captions: tuple[str, str] | None = None
    """Greedy captions, ours and theirs; None for a filter."""
    not_loaded: tuple[str, ...] = field(default=())
    """Weights that transformers misses in the folder, or finds there and does not know."""

    @property
    def holds(self) -> bool:
        """Whether the checkpoint is the same model on both sides."""
        return (
            max(self.differences.values()) <= WITHIN
            and (self.pixels is None or self.pixels <= WITHIN_LEVELS)
            and self.tokens_are_equal
            and (self.captions is None or self.captions[0] == self.captions[1])
            and not self.not_loaded
        )

    def record(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return {**asdict(self), "holds": self.holds, "within": WITHIN}


def parity(bundle: Bundle, folder: Path) -> Parity:
    """Compare a captioner or a filter with the model that transformers loads from the folder.

    The bundle's model is made ready for scoring in place.
    """
    import torch
    import transformers

    from capfilt.data.images import normalise
    from capfilt.models.captioner import MedCaptioner
    from capfilt.models.filter import MedFilter
    from capfilt.models.protocols import ImageBatch

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind = bundle.card.kind
    theirs, loading = getattr(transformers, ARCHITECTURES[kind]).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    theirs = theirs.eval()
    images = bundle.card.med.images
    batch = ImageBatch([built_in_picture()], ["0" * 64])
    pixels = normalise(torch.from_numpy(batch.squares(images)), images)
    cpu = torch.device("cpu")
    with torch.inference_mode():
        if kind == "captioner":
            captioner = MedCaptioner(bundle, cpu)
            differences = _states(captioner.model, theirs, pixels) | _lm(bundle, theirs, pixels)
            captions = _captions(captioner, bundle, theirs, batch, pixels)
        else:
            scorer = MedFilter(bundle, cpu)
            differences = _states(scorer.model, theirs, pixels) | _matching(bundle, theirs, pixels)
            captions = None
    return Parity(
        architecture=ARCHITECTURES[kind],
        differences=differences,
        pixels=pixel_difference(batch, images, folder),
        tokens_are_equal=_tokens_are_equal(bundle, folder),
        captions=captions,
        not_loaded=tuple(sorted(str(name) for names in loading.values() for name in names)),
    )


def built_in_picture() -> Image:
    """Return a picture with slopes, edges and colours: a disc above a square, before a gradient."""
    from PIL import Image, ImageDraw

    width, height = _SIZE
    picture = Image.merge(
        "RGB",
        [
            Image.linear_gradient("L").resize(_SIZE),
            Image.linear_gradient("L").rotate(90).resize(_SIZE),
            Image.radial_gradient("L").resize(_SIZE),
        ],
    )
    pen = ImageDraw.Draw(picture)
    pen.ellipse((width // 2, 8, width // 2 + 30, 38), fill=(220, 30, 40))
    pen.rectangle((width // 2 + 4, height - 36, width // 2 + 32, height - 8), fill=(20, 60, 200))
    return picture


def _states(model: Any, theirs: Any, pixels: Tensor) -> dict[str, float]:
    expected = theirs.vision_model(pixel_values=pixels).last_hidden_state
    return {"image_states": apart(model.encode_image(pixels), expected)}


def _lm(bundle: Bundle, theirs: Any, pixels: Tensor) -> dict[str, float]:
    model = bundle.model
    ids, real = bundle.vocabulary.encode(TEXTS, "dec", bundle.card.med.text.max_tokens)
    every = pixels.expand(len(TEXTS), -1, -1, -1)
    expected = theirs(pixel_values=every, input_ids=ids, attention_mask=real.long()).logits
    logits = model.lm_logits(ids, model.memory(model.encode_image(every)))
    return {"lm_logits": apart(logits[real], expected[real])}


def _matching(bundle: Bundle, theirs: Any, pixels: Tensor) -> dict[str, float]:
    model = bundle.model
    ids, real = bundle.vocabulary.encode(TEXTS, "cls", bundle.card.med.text.max_tokens)
    every = pixels.expand(len(TEXTS), -1, -1, -1)
    given = {"input_ids": ids, "attention_mask": real.long()}
    cosines = theirs(**given, pixel_values=pixels, use_itm_head=False).itm_score
    logits = theirs(**given, pixel_values=every).itm_score
    states = model.encode_image(every)
    own_cosines = model.image_features(states[:1]) @ model.text_features(ids, real).T
    own_logits = model.itm_logits(ids, real, model.memory(states))
    return {"itc": apart(own_cosines, cosines), "itm_logits": apart(own_logits, logits)}


def _captions(
    captioner: Any, bundle: Bundle, theirs: Any, batch: ImageBatch, pixels: Tensor
) -> tuple[str, str]:
    """Return both greedy captions, of 5 to 20 tokens: transformers counts [DEC] among them."""
    decoding = SettledDecoding(method="greedy", min_tokens=5, max_tokens=20)
    [[ours]] = captioner.caption(batch, decoding, seed=0, candidates=1)
    asked = {"do_sample": False, "num_beams": 1, "min_length": 6, "max_length": 21}
    ids = theirs.generate(pixel_values=pixels, **asked)[0].tolist()[1:]
    end = bundle.vocabulary.sep
    return ours, bundle.vocabulary.decode(ids[: ids.index(end)] if end in ids else ids)


def pixel_difference(batch: ImageBatch, images: Images, folder: Path) -> float | None:
    """Return how far the resized pictures are from those of transformers' processor, of 255 levels.

    None where the folder says nothing of pictures.
    """
    import torch
    from transformers import BlipImageProcessor

    if not any((folder / name).is_file() for name in (PREPROCESSOR_FILE, PROCESSOR_FILE)):
        return None
    made = BlipImageProcessor.from_pretrained(folder)(images=list(batch.pictures), return_tensors="pt")
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (images.mean, images.std))
    theirs = (made["pixel_values"] * std + mean) * 255
    # What they made is whole levels too, but for the arithmetic above.
    return round(apart(torch.from_numpy(batch.squares(images)).float(), theirs), 3)


def _tokens_are_equal(bundle: Bundle, folder: Path) -> bool:
    from transformers import AutoTokenizer

    ids, real = bundle.vocabulary.encode(TEXTS, "cls", bundle.card.med.text.max_tokens)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError):
        return False
    theirs = tokenizer(list(TEXTS), truncation=True, max_length=bundle.card.med.text.max_tokens)
    ours = [row[keep].tolist() for row, keep in zip(ids, real, strict=True)]
    return bool(ours == theirs["input_ids"])


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference of two tensors of one shape."""
    return float((ours - theirs).abs().max())
