"""A captioner with a language model writes what transformers has it write, whatever is in the batch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_language import (
    KINDS,
    Family,
    LanguageKind,
    in_transformers,
    language_folder,
    small_prompted_bundle,
)
from small_models import part, pictures
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.cache_utils import DynamicLayer

from capfilt.data.images import normalise
from capfilt.draws import uniforms
from capfilt.errors import CapfiltError
from capfilt.models import decoding as search
from capfilt.models import prompted_captioner
from capfilt.models.prompted import Words, read_instructions
from capfilt.models.prompted_captioner import PromptedCaptioner, Writing
from capfilt.settings import SettledDecoding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.protocols import ImageBatch
    from capfilt.models.qformer_bundle import PromptedBundle
    from capfilt.models.vocabulary import Vocabulary

    Made = Callable[..., PromptedBundle]

NUCLEUS = SettledDecoding(min_tokens=1, max_tokens=9, top_p=0.95)
PROMPTS = ["", "a small red"]
SEED = 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("languages")
    return {kind: language_folder(kind, root / kind) for kind in KINDS}


@pytest.fixture
def made(folders: dict[str, Path], vocabulary: Vocabulary) -> Made:
    def make(kind: LanguageKind, family: Family = "blip2") -> PromptedBundle:
        return small_prompted_bundle(
            kind, folders[kind], family, vocabulary if family == "instructblip" else None
        )

    return make


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Record the ids that a search comes to, (rows, tokens)."""
    found: list[Tensor] = []

    def recorded(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def recording(*arguments: Any, **named: Any) -> Tensor:
            found.append(real(*arguments, **named))
            return found[-1]

        return recording

    for name in ("write", "beam"):
        monkeypatch.setattr(search, name, recorded(getattr(search, name)))
    return found


def pixels_of(batch: ImageBatch, bundle: PromptedBundle) -> Tensor:
    images = bundle.card.blip2.images
    return normalise(torch.from_numpy(batch.squares(images)), images)


def until(end: int, row: list[int]) -> list[int]:
    return row[: row.index(end)] if end in row else row


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("method", ["greedy", "beam"])
@pytest.mark.parametrize(("kind", "family"), [*((k, "blip2") for k in KINDS), ("llama", "instructblip")])
@torch.inference_mode()
def test_the_search_finds_what_transformers_finds(
    kind: LanguageKind,
    family: Family,
    method: str,
    prompt: str,
    made: Made,
    ids: list[Tensor],
    tmp_path: Path,
) -> None:
    bundle, batch = made(kind, family), pictures(8)
    vocabulary = bundle.vocabulary
    theirs = in_transformers(bundle.model, bundle.card.blip2, tmp_path)
    theirs.vision_model.post_layernorm.eps = bundle.model.vision_model.post_layernorm.eps
    read = torch.tensor([vocabulary.prompt(prompt)] * 8)
    placeholder = torch.full((8, bundle.model.queries), theirs.config.image_token_id)
    whole = torch.cat([placeholder, read], 1)
    inputs: dict[str, Any] = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    if bundle.reader is not None:
        asked = read_instructions(bundle.reader, [prompt] * 8, 12)
        inputs |= {"qformer_input_ids": asked.ids, "qformer_attention_mask": asked.real.long()}
    expected = theirs.generate(
        pixels_of(batch, bundle),
        **inputs,
        do_sample=False,
        num_beams=3 if method == "beam" else 1,
        min_new_tokens=2,
        max_new_tokens=7,
        eos_token_id=vocabulary.sep,
        pad_token_id=vocabulary.sep,
    )
    # A decoder-only model repeats what it was given, an encoder-decoder its start token.
    expected = expected[:, 1 if kind == "t5" else whole.shape[1] :].tolist()
    decoding = SettledDecoding.model_validate(
        {"method": method, "beams": 3, "min_tokens": 2, "max_tokens": 7, "prompt": prompt}
    )
    captions = PromptedCaptioner(bundle, CPU).caption(batch, decoding, seed=0, candidates=2)
    found = [until(vocabulary.sep, row) for row in ids[0].tolist()]
    assert found == [until(vocabulary.sep, row) for row in expected]
    assert len({tuple(row) for row in found}) >= 4  # pictures have captions of their own
    assert captions == [[vocabulary.decode(row)] * 2 for row in found]


@torch.inference_mode()
def drawn_in_full(
    bundle: PromptedBundle, batch: ImageBatch, decoding: SettledDecoding
) -> list[list[list[int]]]:
    """Return what is drawn for each picture and candidate alone, a full forward for every token."""
    model, vocabulary = bundle.model, bundle.vocabulary
    written = []
    for picture, sha256 in enumerate(batch.sha256):
        asked = None
        if bundle.reader is not None:
            asked = read_instructions(bundle.reader, [decoding.prompt], 12)
        states = model.encode_image(pixels_of(part(batch, [picture]), bundle).double())
        prompts = model.soft_prompts(states, asked)
        read = torch.tensor([vocabulary.prompt(decoding.prompt)], dtype=torch.long)
        words = Words(read, torch.ones_like(read, dtype=torch.bool))
        captions = []
        for candidate in range(2):
            numbers = torch.from_numpy(uniforms(decoding.max_tokens, "caption", SEED, sha256, candidate))
            ids: list[int] = []
            while len(ids) < decoding.max_tokens and vocabulary.sep not in ids:
                if model.is_encoder_decoder:
                    decoder = torch.tensor([[model.decoder_start, *ids]])
                    logits = model.target_logits(prompts, words, decoder)[:, -1]
                else:
                    row = torch.cat([read, torch.tensor([ids], dtype=torch.long)], 1)
                    logits = model.logits(prompts, Words(row, torch.ones_like(row, dtype=torch.bool)))[:, -1]
                logits = search.shaped(logits, read, decoding, vocabulary.sep, len(ids))
                ids.append(int(search.draw(search.nucleus(logits, decoding), numbers[len(ids)][None])))
            captions.append(until(vocabulary.sep, ids))
        written.append(captions)
    return written


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(("kind", "family"), [*((k, "blip2") for k in KINDS), ("t5", "instructblip")])
def test_captions_are_drawn_by_the_numbers_of_their_picture_and_candidate_whatever_is_beside_them(
    kind: LanguageKind, family: Family, prompt: str, made: Made
) -> None:
    bundle, batch = made(kind, family), pictures(9)
    decoding = NUCLEUS.model_copy(update={"prompt": prompt})
    captioner = PromptedCaptioner(bundle, CPU)
    captioner.model.double()  # so that no choice hangs by a rounding
    expected = [
        [bundle.vocabulary.decode(ids) for ids in mine] for mine in drawn_in_full(bundle, batch, decoding)
    ]
    for size in (9, 4, 1):
        found: list[list[str]] = []
        for start in range(0, 9, size):
            some = part(batch, range(start, min(start + size, 9)))
            found += captioner.caption(some, decoding, seed=SEED, candidates=2)
        assert found == expected, f"in batches of {size}"
    assert len({caption for mine in expected for caption in mine}) > 9
    more = captioner.caption(part(batch, range(9)), decoding, seed=SEED, candidates=3)
    assert [mine[:2] for mine in more] == expected
    assert captioner.caption(part(batch, range(9)), decoding, seed=SEED + 1, candidates=2) != expected


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_that_do_not_fit_at_once_are_the_same(
    kind: LanguageKind, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner, batch = PromptedCaptioner(made(kind), CPU), pictures(3)
    captioner.model.double()
    at_once = captioner.caption(batch, NUCLEUS, seed=SEED, candidates=5)
    monkeypatch.setattr(prompted_captioner, "ROWS_AT_ONCE", 6)
    assert captioner.caption(part(batch, range(3)), NUCLEUS, seed=SEED, candidates=5) == at_once


@pytest.mark.parametrize("kind", KINDS)
def test_beams_that_do_not_fit_at_once_are_the_same(
    kind: LanguageKind, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner, batch = PromptedCaptioner(made(kind), CPU), pictures(5)
    captioner.model.double()
    decoding = SettledDecoding(method="beam", beams=3, min_tokens=2, max_tokens=7)
    at_once = captioner.caption(batch, decoding, seed=SEED, candidates=1)
    monkeypatch.setattr(prompted_captioner, "ROWS_AT_ONCE", 6)
    rows, real = [], Writing.next_logits

    def counted(writing: Writing, new: Tensor) -> Tensor:
        rows.append(len(new))
        return real(writing, new)

    monkeypatch.setattr(Writing, "next_logits", counted)
    assert captioner.caption(part(batch, range(5)), decoding, seed=SEED, candidates=1) == at_once
    assert max(rows) == 6


@pytest.mark.parametrize("method", ["nucleus", "greedy"])
def test_pictures_that_do_not_fit_at_once_have_the_same_captions(
    method: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner, batch = PromptedCaptioner(made("llama"), CPU), pictures(5)
    captioner.model.double()
    decoding = NUCLEUS.model_copy(update={"method": method})
    at_once = captioner.caption(batch, decoding, seed=SEED, candidates=2)
    monkeypatch.setattr(prompted_captioner, "ROWS_AT_ONCE", 2)
    assert captioner.caption(part(batch, range(5)), decoding, seed=SEED, candidates=2) == at_once


def test_there_is_no_form_of_it_in_8_bits(made: Made) -> None:
    with pytest.raises(CapfiltError, match=r"--precision int8 .* a model with a Q-Former") as refused:
        PromptedCaptioner(made("t5"), CPU, "int8")
    assert "bf16" in refused.value.fix


@pytest.mark.parametrize("method", ["nucleus", "beam"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_encoded_asked_and_read_once_for_all_its_candidates(
    kind: LanguageKind, method: str, made: Made
) -> None:
    captioner = PromptedCaptioner(made(kind), CPU)
    model, read = captioner.model, []

    def note(_: object, __: object, given: dict[str, Any]) -> None:
        names = ("decoder_input_ids", "input_ids", "inputs_embeds")
        read.append(next(tuple(given[name].shape[:2]) for name in names if name in given))

    inner: Any = model.language_model
    inner.register_forward_pre_hook(note, with_kwargs=True)
    if kind == "t5":
        inner.get_encoder().register_forward_pre_hook(note, with_kwargs=True)
    decoding = NUCLEUS.model_copy(update={"method": method, "prompt": "a small"})
    captioner.caption(pictures(4), decoding, seed=SEED, candidates=6)
    assert model.vision_model.passes == model.qformer_passes == 4
    before = model.queries + len(captioner._vocabulary.prompt("a small"))
    assert read[0] == (4, before)
    # The rest is read token by token, by a decoder of its own from its start token on.
    steps = read[2:] if kind == "t5" else read[1:]
    assert kind != "t5" or read[1] == (4, 1)
    assert {tokens for _, tokens in steps} == {1}
    assert steps[0][0] == (24 if method == "nucleus" else 12)
    assert captioner.tokens.computed == 4 + sum(rows for rows, _ in steps)


def test_captions_that_have_ended_leave_the_batch(made: Made, ids: list[Tensor]) -> None:
    captioner = PromptedCaptioner(made("llama"), CPU)
    decoding = NUCLEUS.model_copy(update={"max_tokens": 20, "min_tokens": 0})
    captioner.caption(pictures(12), decoding, seed=SEED, candidates=2)
    end = captioner._vocabulary.sep
    lengths = [len(until(end, row)) for row in ids[0].tolist()]
    assert min(lengths) < 5 < max(lengths)
    steps = min(20, max(lengths) + 1) - 1  # after the one that is read with the prompt
    assert sum(lengths) <= captioner.tokens.computed < 12 + 24 * steps


def test_another_prompt_asks_the_queries_again_only_where_they_read_it(made: Made) -> None:
    for family, times in (("blip2", 1), ("instructblip", 2)):
        captioner, batch = PromptedCaptioner(made("llama", family), CPU), pictures(3)
        written = [
            captioner.caption(batch, NUCLEUS.model_copy(update={"prompt": p}), seed=SEED, candidates=1)
            for p in PROMPTS
        ]
        assert written[0] != written[1]
        assert captioner.model.vision_model.passes == 3
        assert captioner.model.qformer_passes == 3 * times


def test_a_model_whose_texts_begin_with_nothing_goes_on_from_the_queries(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """GPT-2 and Qwen have no begin token, so that an empty prompt is no token at all."""
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["llama"] / name).read_bytes())
    tokenizer = json.loads((folders["llama"] / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    bundle, batch = small_prompted_bundle("llama", tmp_path), pictures(5)
    assert bundle.vocabulary.prompt("") == []
    captioner = PromptedCaptioner(bundle, CPU)
    captioner.model.double()
    found = captioner.caption(batch, NUCLEUS, seed=SEED, candidates=2)
    expected = drawn_in_full(bundle, batch, NUCLEUS)
    assert found == [[bundle.vocabulary.decode(ids) for ids in mine] for mine in expected]


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_caption_that_the_model_has_no_places_for_is_refused(kind: LanguageKind, made: Made) -> None:
    captioner, batch = PromptedCaptioner(made(kind), CPU), pictures(1)
    whole = 48 - 3 - 1  # places, queries, the begin token
    longest = SettledDecoding(method="greedy", max_tokens=whole)
    assert captioner.caption(batch, longest, seed=0, candidates=1)
    with pytest.raises(CapfiltError, match="48 places") as refused:
        captioner.caption(batch, longest.model_copy(update={"max_tokens": whole + 1}), seed=0, candidates=1)
    assert "decoding.max_tokens" in refused.value.fix


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_question_that_the_model_has_no_places_for_loses_its_beginning(
    kind: LanguageKind, made: Made
) -> None:
    captioner, batch = PromptedCaptioner(made(kind), CPU), pictures(2)
    question = "red circle " * 20 + "a small red"
    asked = SettledDecoding(method="greedy", max_tokens=9, min_tokens=3, prompt=question)
    read = captioner._prompt(asked).tolist()
    whole = captioner._vocabulary.prompt(question)
    begin = len(captioner._vocabulary.begin)
    assert len(read) == 48 - 3 - 9 < len(whole)
    assert read == [*whole[:begin], *whole[begin - len(read) :]]
    assert captioner.caption(batch, asked, seed=0, candidates=1)


def test_t5_has_places_without_end(made: Made) -> None:
    captioner = PromptedCaptioner(made("t5"), CPU)
    decoding = SettledDecoding(method="greedy", max_tokens=80, min_tokens=80)
    assert len(captioner.caption(pictures(1), decoding, seed=0, candidates=1)[0][0].split()) > 20


@pytest.mark.parametrize("method", ["nucleus", "greedy", "beam"])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_written_on_a_gpu_without_waiting_for_it(
    kind: LanguageKind, method: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without numbers, on a device of that name: what asks for a number, or mixes devices, raises."""
    bundle = made(kind)
    monkeypatch.setattr(
        "capfilt.models.decoding.on_host", lambda numbers: [int(numbers.dtype != torch.bool)] * len(numbers)
    )

    def begun_empty(cache: Any, keys: Tensor, values: Tensor) -> None:
        """As there, but for torch.tensor([]), which has a device of that name made in earnest."""
        cache.dtype, cache.device, cache.is_initialized = keys.dtype, keys.device, True
        cache.keys, cache.values = keys.new_empty(0), values.new_empty(0)

    monkeypatch.setattr(DynamicLayer, "lazy_initialization", begun_empty)
    decoding = SettledDecoding.model_validate({"method": method, "max_tokens": 6, "repetition_penalty": 1.1})
    each = {"nucleus": 3, "greedy": 1, "beam": decoding.beams}[method]
    model, vocabulary = bundle.model, bundle.vocabulary
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        for module in model.modules():
            for name, tensor in module.named_parameters(recurse=False):
                module.register_parameter(name, torch.nn.Parameter(torch.empty_like(tensor, device="cuda")))
            for name, tensor in module.named_buffers(recurse=False):
                module.register_buffer(name, torch.empty_like(tensor, device="cuda"), persistent=False)
        states = torch.zeros(4, 5, 32, device="cuda")
        read = torch.zeros(4, len(vocabulary.prompt("a red")), dtype=torch.long, device="cuda")
        begun, logits = model.begin(model.soft_prompts(states), read)
        writing = Writing(begun, logits, each)
        if method == "beam":
            ids = search.beam(writing.next_logits, writing.reorder, read, decoding, 3)
        else:
            numbers = torch.zeros(4 * each, 6, dtype=torch.float64, device="cuda")
            given = numbers if method == "nucleus" else None
            ids = search.write(writing.next_logits, read, decoding, 3, given, each=each, keep=writing.keep)
        assert ids.device.type == "cuda"
        assert ids.shape == (4 * (each if method == "nucleus" else 1), 6)


def test_in_bf16_what_is_frozen_is_narrow_and_the_qformer_is_not(made: Made) -> None:
    captioner = PromptedCaptioner(made("opt"), CPU, "bf16")
    types = {
        name: {parameter.dtype for parameter in module.parameters()}
        for name, module in captioner.model.named_children()
    }
    assert types["language_model"] == {torch.bfloat16}
    assert types["qformer"] == types["language_projection"] == {torch.float32}
    captions = captioner.caption(pictures(4), NUCLEUS, seed=SEED, candidates=2)
    assert all(caption for mine in captions for caption in mine)
