"""One BLIP-2 or InstructBLIP here and in transformers: the largest differences, and the same greedy caption.

Both sides load the folder, each by its own code, and compute in fp32; here as a run does. The norm after the
image encoder keeps the epsilon that each side has there, LAVIS's 1e-5 or the encoder's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.evaluation.parity import TEXTS, Parity, apart, built_in_picture, pixel_difference
from capfilt.models.checkpoints.qformer_configs import GENERATION, INSTRUCTED, RETRIEVAL
from capfilt.models.qformer_bundle import READER_FOLDER
from capfilt.settings import SettledDecoding

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.bundle_files import BundleOf
    from capfilt.models.cards import Card
    from capfilt.models.protocols import ImageBatch

_INSTRUCTION = "Write a short description of the image."
_SHORTEST, _LONGEST = 5, 20
"""Tokens of the greedy caption."""


def architecture_of(card: Card) -> str:
    """Return the class of transformers that loads such a model."""
    if card.kind != "captioner":
        return RETRIEVAL
    return INSTRUCTED if card.is_instructed else GENERATION


def qformer_parity(bundle: BundleOf[Any, Any], folder: Path) -> Parity:
    """Compare a model with a Q-Former with the one that transformers loads from the folder.

    Image states; of a filter cosines and ITM's logits, of a captioner what stands before the text's words,
    the logits of the first token and the greedy caption. The bundle's model is made ready in place.
    """
    import torch
    import transformers

    from capfilt.data.images import normalise
    from capfilt.models.loading import captioner_from, filter_from
    from capfilt.models.protocols import ImageBatch

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    card, architecture = bundle.card, architecture_of(bundle.card)
    theirs, loading = getattr(transformers, architecture).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    theirs = theirs.eval()
    images = card.blip2.images
    batch = ImageBatch([built_in_picture()], ["0" * 64])
    pixels = normalise(torch.from_numpy(batch.squares(images)), images)
    captions = None
    with torch.inference_mode():
        if card.kind == "captioner":
            captioner = captioner_from(bundle, "cpu", "fp32")
            asked = _Asked(bundle, theirs, pixels)
            differences = _states(bundle.model, theirs, pixels) | asked.differences()
            captions = _captions(captioner, asked, batch)
        else:
            filter_from(bundle, "cpu", "fp32")
            differences = _states(bundle.model, theirs, pixels) | _matching(bundle, theirs, pixels)
    return Parity(
        architecture=architecture,
        differences=differences,
        pixels=pixel_difference(batch, images, folder),
        tokens_are_equal=_tokens_are_equal(bundle, folder),
        captions=captions,
        not_loaded=tuple(sorted(str(name) for names in loading.values() for name in names)),
    )


def _states(model: Any, theirs: Any, pixels: Tensor) -> dict[str, float]:
    expected = theirs.vision_model(pixel_values=pixels).last_hidden_state
    return {"image_states": apart(model.encode_image(pixels), expected)}


def _matching(bundle: BundleOf[Any, Any], theirs: Any, pixels: Tensor) -> dict[str, float]:
    model = bundle.model
    ids, real = bundle.vocabulary.encode(TEXTS, "cls", bundle.card.blip2.qformer.max_tokens)
    every = pixels.expand(len(TEXTS), -1, -1, -1)
    given = {"pixel_values": every, "input_ids": ids, "attention_mask": real.long()}
    logits = theirs(**given, use_image_text_matching_head=True).logits_per_image
    cosines = theirs(**{**given, "pixel_values": pixels}).logits_per_image
    states = model.encode_image(every)
    own = model.similarity(model.image_features(states[:1]), model.text_features(ids, real))
    return {
        "itc": apart(own, cosines),
        "itm_logits": apart(model.itm_logits(ids, real, model.memory(states)), logits),
    }


class _Asked:
    """A captioner, here and there, in front of one picture and a prompt."""

    def __init__(self, bundle: BundleOf[Any, Any], theirs: Any, pixels: Tensor) -> None:
        import torch

        from capfilt.models.prompted import read_instructions

        self.bundle, self.theirs = bundle, theirs
        # Where it was made to be asked with none, InstructBLIP's Q-Former would not read here.
        self.prompt = bundle.card.conventions.prompt or ("" if bundle.reader is None else _INSTRUCTION)
        ids = bundle.vocabulary.prompt(self.prompt)
        self.read = torch.tensor([ids], dtype=torch.long)
        if theirs.config.image_token_index is None:  # as in folders of older versions
            theirs.config.image_token_index = min(set(range(len(ids) + 1)) - set(ids))
        places = torch.full((1, bundle.model.queries), theirs.config.image_token_index)
        self.whole = torch.cat([places, self.read], 1)
        self.instruction = None
        self.inputs: dict[str, Any] = {
            "pixel_values": pixels,
            "input_ids": self.whole,
            "attention_mask": torch.ones_like(self.whole),
        }
        if bundle.reader is not None:
            longest = bundle.card.blip2.qformer.max_tokens
            asked = self.instruction = read_instructions(bundle.reader, [self.prompt], longest)
            self.inputs |= {"qformer_input_ids": asked.ids, "qformer_attention_mask": asked.real.long()}

    def differences(self) -> dict[str, float]:
        """Return how far the logits of the first token are apart."""
        import torch

        model = self.bundle.model
        states = model.encode_image(self.inputs["pixel_values"])
        _, own = model.begin(model.soft_prompts(states, self.instruction), self.read)
        more = {}
        if model.is_encoder_decoder:
            more["decoder_input_ids"] = torch.tensor([[model.decoder_start]])
        return {"first_token_logits": apart(own, self.theirs(**self.inputs, **more).logits[:, -1])}

    def written(self, decoding: SettledDecoding) -> str:
        """Return what transformers writes, greedily."""
        end = self.bundle.vocabulary.sep
        ids = self.theirs.generate(
            **self.inputs,
            do_sample=False,
            num_beams=1,
            min_new_tokens=decoding.min_tokens,
            max_new_tokens=decoding.max_tokens,
            eos_token_id=end,
            pad_token_id=end,
        )[0].tolist()
        # A decoder-only model repeats what it was given, an encoder-decoder its start token.
        ids = ids[1 if self.bundle.model.is_encoder_decoder else self.whole.shape[1] :]
        text: str = self.bundle.vocabulary.decode(ids[: ids.index(end)] if end in ids else ids)
        return text


def _captions(captioner: Any, asked: _Asked, batch: ImageBatch) -> tuple[str, str]:
    """Return both greedy captions, as long as the language model has places for."""
    from capfilt.models.language_model import longest_text

    model = asked.bundle.model
    places = longest_text(model.language_model)
    room = _LONGEST if places is None else places - 1
    if places is not None and not model.is_encoder_decoder:
        room = places - asked.whole.shape[1]
    most = max(1, min(_LONGEST, room))
    decoding = SettledDecoding(
        method="greedy", min_tokens=min(_SHORTEST, most), max_tokens=most, prompt=asked.prompt
    )
    [[ours]] = captioner.caption(batch, decoding, seed=0, candidates=1)
    return ours, asked.written(decoding)


def _tokens_are_equal(bundle: BundleOf[Any, Any], folder: Path) -> bool:
    from transformers import AutoTokenizer

    structure, vocabulary = bundle.card.blip2, bundle.vocabulary
    readers = {READER_FOLDER: bundle.reader} if bundle.reader is not None else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        theirs = {name: AutoTokenizer.from_pretrained(folder / name) for name in readers}
    except (OSError, ValueError):
        return False
    if bundle.card.kind != "captioner":
        readers, theirs = {"": vocabulary}, {"": tokenizer}
    else:
        after = [] if vocabulary.is_encoder else vocabulary.closing
        if [[*vocabulary.prompt(text), *after] for text in TEXTS] != tokenizer(list(TEXTS))["input_ids"]:
            return False
    longest = structure.qformer.max_tokens
    return all(
        _read(reader, longest) == theirs[name](list(TEXTS), truncation=True, max_length=longest)["input_ids"]
        for name, reader in readers.items()
    )


def _read(reader: Any, longest: int) -> list[list[int]]:
    ids, real = reader.encode(TEXTS, "cls", longest)
    return [row[keep].tolist() for row, keep in zip(ids, real, strict=True)]
