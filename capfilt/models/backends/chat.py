"""Any image-text-to-text model of transformers as a captioner, asked by its chat template.

The prompt is the question, so that instructable models write what they are asked for. Decoding is capfilt's
own over the model's caches, not `generate`: a draw is named by (seed, image, candidate), and a picture goes
through the model once for all its candidates. Pictures whose prompts have the same shapes are read together,
so that nothing is ever padded: positions and masks of padded prompts are where models differ most.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from capfilt.errors import CapfiltError
from capfilt.models import decoding as search
from capfilt.models.backends.answers import PROMPT, caption_of
from capfilt.models.backends.folders import LOCAL, first_line, load, load_model, presentable
from capfilt.models.bundle_files import check_files
from capfilt.models.captioner import caption_numbers
from capfilt.models.cards import Conventions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from capfilt.models.cards import Card, Kind
    from capfilt.models.protocols import ImageBatch
    from capfilt.settings import SettledDecoding

CONVENTIONS = Conventions(prompt=PROMPT, min_tokens=1, max_tokens=60)
"""How such a model is used while nothing is chosen: a sentence ends by itself long before so many tokens."""
ROWS_AT_ONCE = 128
"""Captions that are written side by side; each keeps a copy of its picture's keys and values."""
_OTHERS = ("blip", "blip-2", "instructblip", "git", "pix2struct", "vision-encoder-decoder", "udop", "pi0")
"""In transformers' list of models from image and text to text, and none that is asked by a chat."""
_OPTIONS = ("processor", "template")
"""What a user may choose: arguments of the processor (such as max_pixels), and of the chat template."""
_MEND = "give a folder, or a hub id, of an image-text-to-text model of transformers, with its processor"
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def recognises(config: Mapping[str, Any]) -> Kind | None:
    """Return "captioner" for the config.json of an image-text-to-text model, None for any other."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind = config.get("model_type")
    known = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and kind not in _OTHERS
    return "captioner" if known else None


def check(folder: Path, options: Mapping[str, Any]) -> None:
    """Refuse options that nobody knows, and a folder without a chat template, by its files alone."""
    from capfilt.models.checkpoints.configs import read_json

    for name, value in options.items():
        if name not in _OPTIONS or not isinstance(value, dict):
            raise CapfiltError(
                f"{folder}: an image-text-to-text model has no option {name} = {value!r}",
                fix=f"give groups of arguments by the names {' and '.join(_OPTIONS)}",
            )
    if any((folder / name).is_file() for name in _TEMPLATE_FILES):
        return
    for name in ("tokenizer_config.json", "processor_config.json"):
        if (folder / name).is_file() and read_json(folder / name).get("chat_template"):
            return
    raise CapfiltError(
        f"{folder} has no chat template, so that nobody knows how this model is to be asked",
        fix="give a model that was trained to follow instructions (often named -Instruct, -chat or -it), or "
        "put its chat_template.jinja into the folder",
    )


def captioner(bundle: Path, card: Card, device: str, precision: str) -> ChatCaptioner:
    """Return the captioner of a bundle, whose files are looked at; raises as `ChatCaptioner` does."""
    check_files(bundle, card.files)
    return ChatCaptioner(bundle, card.digest, device, precision, **card.foreign.options)


class ChatCaptioner:
    """Writes captions with a model that is asked by its chat template; see `protocols.Captioner`."""

    def __init__(
        self,
        folder: Path,
        digest: str,
        device: str,
        precision: str = "fp32",
        *,
        processor: Mapping[str, Any] | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> None:
        """Load a folder; CapfiltError where it holds no such model, or cannot be asked by a chat."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        check(folder, {})
        self.digest = digest
        self._folder = folder
        self._model = load_model(
            AutoModelForImageTextToText, folder, device, precision, called=str(folder), fix=_MEND
        )
        if self._model.config.is_encoder_decoder:
            raise CapfiltError(
                f"{folder} is a {self._model.config.model_type}, whose decoder sees no chat",
                fix="give a model whose decoder reads the whole chat, as nearly all do",
            )
        self._processor = load(
            lambda: AutoProcessor.from_pretrained(folder, **LOCAL, **(processor or {})),
            str(folder),
            _MEND,
        )
        self._template = dict(template or {})
        self._ends = _ends(self._model, self._processor, folder)
        self.passes = 0
        """Pictures that went through the model."""

    @torch.inference_mode()
    def caption(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> list[list[str]]:
        """Return captions by picture and candidate; see `protocols.Captioner`."""
        asked = [self._asked(picture, decoding.prompt or PROMPT) for picture in batch.pictures]
        each = candidates if decoding.method == "nucleus" else 1
        rows = decoding.beams if decoding.method == "beam" else each
        texts: list[list[str]] = [[] for _ in asked]
        for together in _alike(asked, max(1, ROWS_AT_ONCE // rows)):
            inputs = {name: torch.cat([asked[n][name] for n in together]) for name in asked[together[0]]}
            numbers = None
            if decoding.method == "nucleus":
                numbers = caption_numbers([batch.sha256[n] for n in together], decoding, seed, each)
            ids = self._written(inputs, decoding, numbers, each)
            for place, number in enumerate(together):
                texts[number] = [self._text(row) for row in ids[place].tolist()]
        # Greedy and beam search have one answer: every candidate is that one.
        return [(mine * candidates)[:candidates] for mine in texts]

    def _asked(self, picture: Image, prompt: str) -> dict[str, Tensor]:
        """Return what the model reads of one picture and the question: tensors of one row, on its device."""
        from jinja2 import TemplateError

        content = [{"type": "image", "image": presentable(picture)}, {"type": "text", "text": prompt}]
        try:
            inputs = self._processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **self._template,
            )
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise CapfiltError(
                f"the chat template of {self._folder} cannot ask about a picture: {first_line(error)}",
                fix="give a model whose template takes a user's message of an image and a text",
            ) from error
        inputs = inputs.to(self._model.device, self._model.dtype)
        return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}

    def _written(
        self, inputs: dict[str, Tensor], decoding: SettledDecoding, numbers: Tensor | None, each: int
    ) -> Tensor:
        """Return ids, (pictures, captions of each, max_tokens), by `numbers`, or of the one best caption."""
        writing = Writing(self._model, inputs)
        start = writing.start
        self.passes += len(start)

        def next_logits(new: Tensor) -> Tensor:
            return with_one_end(writing.next_logits(new), self._ends, likeliest=decoding.method == "greedy")

        end = self._ends[0]
        if decoding.method == "beam":
            return search.beam(next_logits, writing.reorder, start, decoding, end)[:, None]
        if numbers is not None:
            numbers = numbers.to(start.device).flatten(0, 1)
        ids = search.write(next_logits, start, decoding, end, numbers, each=each, keep=writing.keep)
        return ids.view(len(start), each, -1)

    def _text(self, ids: list[int]) -> str:
        """Return a caption on one line, without thoughts, its end and other special tokens."""
        end = self._ends[0]
        ids = ids[: ids.index(end)] if end in ids else ids
        text: str = self._processor.decode(ids, skip_special_tokens=True)
        return caption_of(text)


class Writing:
    """The model in the middle of an answer: rows are captions, as many to each picture, side by side.

    What a model needs beside the tokens (positions, masks) is prepared and moved on by its own methods, as
    its `generate` does it.
    """

    def __init__(self, model: Any, inputs: dict[str, Tensor]) -> None:
        from transformers import DynamicCache

        self._model = model
        self._prompts = inputs.pop("input_ids")
        self._rows = len(self._prompts)
        self._is_begun = False
        config = model.config.get_text_config(decoder=True)
        self._state: dict[str, Any] = {
            **inputs,
            "use_cache": True,
            "past_key_values": DynamicCache(config=config),
        }
        accepted = inspect.signature(model.forward).parameters
        self._has_positions = "position_ids" in accepted
        if "logits_to_keep" in accepted:
            self._state["logits_to_keep"] = 1

    @property
    def start(self) -> Tensor:
        """The prompts as tokens that can be written, (pictures, tokens): a penalty on repetition reads them.

        A model may have no logit for the token that stands for a picture (Mllama); the first token, which
        stands there anyway, takes its place.
        """
        known = self._model.get_output_embeddings().weight.shape[0]
        return torch.where(self._prompts < known, self._prompts, self._prompts[:, :1])

    def next_logits(self, new: Tensor) -> Tensor:
        """Return the logits after new tokens, (rows, vocabulary); more rows than before copy theirs."""
        if not self._is_begun:
            return self._begin(len(new))
        if len(new) != self._rows:
            self._spread(len(new))
        return self._step(new, next_sequence_length=1)

    def _begin(self, rows: int) -> Tensor:
        """Read the prompts: each picture's once, however many rows it has."""
        own = self._prompts
        if self._has_positions:
            given = {name: value for name, value in self._state.items() if name != "past_key_values"}
            positions = self._model._prepare_position_ids_for_generation(own, given)
            # What is the same for every row comes once; rows will be picked of it.
            self._state["position_ids"] = positions.expand(*positions.shape[:-2], *own.shape)
        mask = self._state.get("attention_mask")
        if mask is not None and mask.all():
            self._state["attention_mask"] = None  # without one attention takes its faster ways
        logits = self._step(own, is_first_iteration=True)
        self._is_begun = True
        # Pictures have been seen; what is as long as the text goes on with it.
        length = own.shape[1] + 1
        self._state = {
            name: value
            for name, value in self._state.items()
            if not isinstance(value, Tensor) or length in (value.shape[-1], *value.shape[1:2])
        }
        if rows != self._rows:
            self._spread(rows)
            logits = logits.repeat_interleave(rows // len(own), 0)
        return logits

    def _step(self, new: Tensor, **how: Any) -> Tensor:
        inputs = self._model.prepare_inputs_for_generation(new, **how, **self._state)
        outputs = self._model(**inputs, return_dict=True)
        self._state = self._model._update_model_kwargs_for_generation(
            outputs, self._state, is_encoder_decoder=False
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def _spread(self, rows: int) -> None:
        """Go on with more rows, as many to each that there is."""
        self.reorder(
            torch.arange(self._rows, device=self._model.device).repeat_interleave(rows // self._rows)
        )

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was."""
        self._state["past_key_values"].reorder_cache(rows)
        for name, value in self._state.items():
            if isinstance(value, Tensor):
                # Positions may have several axes, which come before the rows.
                self._state[name] = value.index_select(-2 if name == "position_ids" else 0, rows)
        self._rows = len(rows)

    def keep(self, _images: Tensor, rows: Tensor, of: int) -> None:
        """Go on with these rows: nothing else is left of the pictures."""
        if of != self._rows:
            self._spread(of)
        self.reorder(rows)


def with_one_end(logits: Tensor, ends: Sequence[int], *, likeliest: bool) -> Tensor:
    """Return logits (rows, vocabulary) in which the first of several end tokens stands for all of them.

    A caption is the same whichever of them ends it, so that its end is as likely as all together; or as
    `likeliest` of them, so that the best token stays the best. A repetition penalty is that of the first.
    """
    if len(ends) == 1:
        return logits
    own = logits[:, ends]
    folded = logits.clone()
    folded[:, ends] = -torch.inf
    folded[:, ends[0]] = own.amax(1) if likeliest else own.logsumexp(1)
    return folded


def _ends(model: Any, processor: Any, folder: Path) -> list[int]:
    """Return the ids that end an answer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = processor.tokenizer.eos_token_id
    if ends is None:
        raise CapfiltError(
            f"{folder} does not say which token ends an answer",
            fix="put a generation_config.json with its eos_token_id into the folder",
        )
    return list(ends) if isinstance(ends, (list, tuple)) else [ends]


def _alike(asked: Sequence[Mapping[str, Tensor]], most: int) -> Iterator[list[int]]:
    """Yield numbers of pictures, `most` at a time, whose tensors have the same names and shapes."""
    kinds: dict[tuple[tuple[str, torch.Size], ...], list[int]] = {}
    for number, inputs in enumerate(asked):
        kinds.setdefault(tuple((name, one.shape) for name, one in inputs.items()), []).append(number)
    for numbers in kinds.values():
        for first in range(0, len(numbers), most):
            yield numbers[first : first + most]
