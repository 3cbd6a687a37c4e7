"""Bundles in transformers and its checkpoints here: the same numbers, through folders, both ways."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_models import SMALL, small_med, small_packed
from theirs import transformers_folder

from capfilt.data.images import normalise
from capfilt.models.bundle import Bundle, load_bundle
from capfilt.models.captioner import MedCaptioner
from capfilt.models.checkpoints.foreign import import_checkpoint
from capfilt.models.filter import MedFilter
from capfilt.models.losses import lm_loss
from capfilt.models.protocols import ImageBatch
from capfilt.settings import Images, Model, SettledDecoding, Text, Vision

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.cards import Kind
    from capfilt.models.vocabulary import Vocabulary

CLOSE = {"atol": 1e-5, "rtol": 0.0}
CLOSE_LOGITS = {"atol": 5e-5, "rtol": 0.0}
"""Logits over the words are sums of many terms, up to 20 here."""
TEXTS = ["a red circle", "the small green cat sleeps under the long table", "two dogs", ""]
ARCHITECTURES: dict[Kind, str] = {
    "captioner": "BlipForConditionalGeneration",
    "filter": "BlipForImageTextRetrieval",
}
OURS = Model(
    images=Images(size_px=32),
    vision=Vision(patch_px=8, width=32, layers=2, heads=4),
    text=Text(width=48, layers=2, heads=12, feed_forward=96, vocabulary=160, max_tokens=16, dropout=0.0),
    embed=16,
)


@pytest.fixture(scope="module")
def said() -> Iterator[list[str]]:
    """Collect what transformers says while a folder is loaded: nothing may be said."""
    from transformers.utils import logging as theirs

    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                messages.append(record.getMessage())

    handler = Handler()
    logging.getLogger("transformers").addHandler(handler)
    theirs.disable_progress_bar()
    yield messages
    logging.getLogger("transformers").removeHandler(handler)


def load_in_transformers(path: Path, kind: Kind, said: list[str]) -> Any:
    import transformers

    said.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model, info = getattr(transformers, ARCHITECTURES[kind]).from_pretrained(
            path, output_loading_info=True
        )
    assert not any(info.values()), info
    assert said == []
    return model.eval()


@pytest.fixture(scope="module", params=["ours", "theirs"])
def pairs(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    vocabulary: Vocabulary,
    said: list[str],
) -> dict[Kind, tuple[Bundle, Any]]:
    """A captioner and a filter, each here and in transformers: written by us, or by transformers."""
    folder = tmp_path_factory.mktemp(request.param)
    made: dict[Kind, tuple[Bundle, Any]] = {}
    for kind, architecture in ARCHITECTURES.items():
        path = folder / kind
        if request.param == "ours":
            model = small_med(["lm"] if kind == "captioner" else ["itc", "itm"], len(vocabulary), OURS)
            small_packed(path, kind, model, vocabulary, OURS).write()
            made[kind] = load_bundle(path), load_in_transformers(path, kind, said)
        else:
            model = transformers_folder(path, architecture, vocabulary)
            import_checkpoint(path, folder / f"{kind} here", role=kind).write()
            made[kind] = load_bundle(folder / f"{kind} here"), model
        made[kind][0].model.eval()
    return made


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    squares = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(5))
    return normalise(squares.to(torch.uint8), OURS.images)


def differ(rows: Tensor) -> bool:
    """Whether every row is another one, by more than what is compared below."""
    flat = rows.flatten(1)
    distances = torch.cdist(flat, flat, p=float("inf")) + torch.eye(len(flat))
    return bool(distances.min() > 10 * CLOSE["atol"])


@torch.no_grad()
def test_image_states_are_the_same(pairs: dict[Kind, tuple[Bundle, Any]], pixels: Tensor) -> None:
    for ours, theirs in pairs.values():
        expected = theirs.vision_model(pixel_values=pixels).last_hidden_state
        assert differ(expected)
        torch.testing.assert_close(ours.model.encode_image(pixels), expected, **CLOSE)


@torch.no_grad()
def test_itc_features_and_cosines_are_the_same(pairs: dict[Kind, tuple[Bundle, Any]], pixels: Tensor) -> None:
    ours, theirs = pairs["filter"]
    ids, real = ours.vocabulary.encode(TEXTS, "cls", 16)
    expected = theirs(input_ids=ids, attention_mask=real.long(), pixel_values=pixels, use_itm_head=False)
    images = ours.model.image_features(ours.model.encode_image(pixels))
    texts = ours.model.text_features(ids, real)
    projected = theirs.text_proj(expected.question_embeds[:, 0])
    torch.testing.assert_close(texts, torch.nn.functional.normalize(projected, dim=-1), **CLOSE)
    assert differ(expected.itm_score.T)
    torch.testing.assert_close(images @ texts.T, expected.itm_score, **CLOSE)


@pytest.mark.parametrize("first", ["cls", "enc"])
@torch.no_grad()
def test_itm_logits_are_the_same_with_either_first_token(
    pairs: dict[Kind, tuple[Bundle, Any]], pixels: Tensor, first: Any
) -> None:
    ours, theirs = pairs["filter"]
    ids, real = ours.vocabulary.encode(TEXTS, first, 16)
    expected = torch.stack(
        [
            theirs(
                input_ids=ids, attention_mask=real.long(), pixel_values=one.expand(len(ids), -1, -1, -1)
            ).itm_score
            for one in pixels
        ]
    )
    memory = ours.model.memory(ours.model.encode_image(pixels))
    logits = ours.model.itm_logits(ids.repeat(len(pixels), 1), real.repeat(len(pixels), 1), memory)
    assert differ(expected[0])
    assert differ(expected.transpose(0, 1)[0])
    torch.testing.assert_close(logits.view_as(expected), expected, **CLOSE)


@torch.no_grad()
def test_lm_logits_and_loss_are_the_same(pairs: dict[Kind, tuple[Bundle, Any]], pixels: Tensor) -> None:
    ours, theirs = pairs["captioner"]
    ids, real = ours.vocabulary.encode([*TEXTS, *TEXTS[:2]], "dec", 16)
    labels = ids.masked_fill(~real, -100)
    expected = theirs(pixel_values=pixels, input_ids=ids, attention_mask=real.long(), labels=labels)
    logits = ours.model.lm_logits(ids, ours.model.memory(ours.model.encode_image(pixels)))
    assert differ(expected.logits[:, 0])
    torch.testing.assert_close(logits[real], expected.logits[real], **CLOSE_LOGITS)
    loss = lm_loss(logits, ids, real, label_smoothing=0.0)
    torch.testing.assert_close(loss, expected.loss, **CLOSE)


def photos(count: int) -> ImageBatch:
    """Pictures of the models' own side, so that nothing is resized."""
    from PIL import Image

    generator = torch.Generator().manual_seed(9)
    noise = torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return ImageBatch([Image.fromarray(one.numpy()) for one in noise], [f"{n:064x}" for n in range(count)])


def test_greedy_captions_of_200_pictures_are_the_same_token_for_token(
    pairs: dict[Kind, tuple[Bundle, Any]],
) -> None:
    ours, theirs = pairs["captioner"]
    batch = photos(200)
    pixels = normalise(torch.from_numpy(batch.squares(ours.card.model.images)), ours.card.model.images)
    ids = theirs.generate(pixel_values=pixels, min_length=4, max_length=16).tolist()
    expected = [ours.vocabulary.decode(row[1 : _end(row, ours.vocabulary.sep)]) for row in ids]
    decoding = SettledDecoding(method="greedy", min_tokens=3, max_tokens=15)
    captioner = MedCaptioner(ours, torch.device("cpu"))
    assert [texts[0] for texts in captioner.caption(batch, decoding, seed=0, candidates=1)] == expected
    assert max(len(row) for row in ids) == 16


def _end(row: list[int], sep: int) -> int:
    return row.index(sep) if sep in row else len(row)


# Weights of N(0, 0.02^2) say much the same of every picture.
@pytest.mark.parametrize("pairs", ["ours"], indirect=True)
def test_captions_of_other_pictures_are_other_ones(pairs: dict[Kind, tuple[Bundle, Any]]) -> None:
    ours, _ = pairs["captioner"]
    decoding = SettledDecoding(method="greedy", min_tokens=3, max_tokens=15)
    captions = MedCaptioner(ours, torch.device("cpu")).caption(photos(200), decoding, seed=0, candidates=1)
    assert len({texts[0] for texts in captions}) > 50


@pytest.mark.parametrize("pairs", ["theirs"], indirect=True)
def test_what_generate_does_unasked_is_on_the_card(pairs: dict[Kind, tuple[Bundle, Any]]) -> None:
    ours, theirs = pairs["captioner"]
    pixels = torch.zeros(1, 3, 32, 32)
    asked = {"max_length": 5, "min_length": 3}
    assert theirs.generate(pixel_values=pixels, **asked).shape[1] == 5  # [DEC] counted
    theirs.generation_config.max_length = 7  # as if generation_config.json said so: it changes nothing
    never = torch.full_like(theirs.text_decoder.cls.predictions.bias, 0.0)
    never[ours.vocabulary.sep] = -1e4
    with torch.no_grad():
        bias = theirs.text_decoder.cls.predictions.bias.clone()
        theirs.text_decoder.cls.predictions.bias += never
        longest = theirs.generate(pixel_values=pixels).shape[1] - 1
        theirs.text_decoder.cls.predictions.bias.copy_(bias - never)
        shortest = theirs.generate(pixel_values=pixels).shape[1] - 2
        theirs.text_decoder.cls.predictions.bias.copy_(bias)
    conventions = ours.card.conventions
    assert (conventions.min_tokens, conventions.max_tokens) == (shortest, longest) == (0, 20)
    assert (conventions.prompt, conventions.match_token) == ("", "cls")


def test_a_processor_of_transformers_reads_the_bundle(
    tmp_path: Path, vocabulary: Vocabulary, said: list[str]
) -> None:
    from transformers import BlipProcessor

    small_packed(tmp_path / "b", "filter", small_med(["itc", "itm"], len(vocabulary)), vocabulary).write()
    said.clear()
    processor = BlipProcessor.from_pretrained(tmp_path / "b")
    assert said == []
    batch = photos(2)
    made = processor(images=list(batch.pictures), text=TEXTS[:2], padding=True, return_tensors="pt")
    ids, real = vocabulary.encode(TEXTS[:2], "cls", 35)
    assert made["input_ids"].tolist() == ids.tolist()
    assert made["attention_mask"].tolist() == real.long().tolist()
    pixels = normalise(torch.from_numpy(batch.squares(SMALL.images)), SMALL.images)
    assert (made["pixel_values"] - pixels).abs().max() < 1.5 / 255 / min(SMALL.images.std)


def test_scores_of_a_filter_are_those_of_transformers_model_and_processor(
    pairs: dict[Kind, tuple[Bundle, Any]],
) -> None:
    """The whole way from a picture and its texts, as `MedFilter` goes it."""
    from capfilt.settings import Matching

    ours, theirs = pairs["filter"]
    batch = photos(3)
    scores = MedFilter(ours, torch.device("cpu"), matching=Matching(match_token="cls")).score(
        batch, [TEXTS[:3]] * 3
    )
    pixels = normalise(torch.from_numpy(batch.squares(ours.card.model.images)), ours.card.model.images)
    ids, real = ours.vocabulary.encode(TEXTS[:3], "cls", 16)
    for one, mine in zip(pixels, scores, strict=True):
        given = {"input_ids": ids, "attention_mask": real.long(), "pixel_values": one.expand(3, -1, -1, -1)}
        with torch.no_grad():
            itm = theirs(**given).itm_score.softmax(-1)[:, 1]
            itc = theirs(**{**given, "pixel_values": one[None]}, use_itm_head=False).itm_score[0]
        assert [s.itm for s in mine] == pytest.approx(itm.tolist(), abs=1e-5)
        assert [s.itc for s in mine] == pytest.approx(itc.tolist(), abs=1e-5)
