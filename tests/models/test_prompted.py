"""Stage 2 gives the numbers of transformers, and trains what stands between the frozen models alone."""

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
    small_prompted,
    small_structure,
)

from capfilt.errors import CapfiltError
from capfilt.models.language_model import build_language_model, check_places
from capfilt.models.prompted import SoftPrompted, Words, read_instructions

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.vocabulary import Vocabulary

FAMILIES: tuple[Family, ...] = ("blip2", "instructblip")
TRAINED = ("qformer.", "query_tokens", "language_projection.", "vision_model.post_layernorm.")
LAST_OF_TEXT = ("qformer.encoder.layer.2.intermediate.", "qformer.encoder.layer.2.output.")
READER = 40
"""Entries of the vocabulary that instructions are read with here."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("languages")
    return {kind: language_folder(kind, root / kind) for kind in KINDS}


def some_pixels(rows: int = 3) -> Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def padded(lengths: list[int], entries: int, seed: int = 0, pad: int = 0) -> Words:
    """Return random texts of these lengths, filled up on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, entries, (len(lengths), max(lengths)), generator=generator)
    real = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return Words(ids.masked_fill(~real, pad), real)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_logits_are_those_of_transformers_from_the_same_file(
    kind: LanguageKind, family: Family, folders: dict[str, Path], tmp_path: Path
) -> None:
    structure = small_structure(kind, folders[kind], family)
    ours = small_prompted(structure, READER)
    theirs = in_transformers(ours, structure, tmp_path)
    pixels, entries = some_pixels(), structure.language.config["vocab_size"] - 3
    read, asked = padded([6, 2, 4], entries), padded([3, 7, 5], READER, seed=1)
    placeholder = torch.full((3, ours.queries), theirs.config.image_token_id)
    inputs: dict[str, Any] = {
        "pixel_values": pixels,
        "input_ids": torch.cat([placeholder, read.ids], 1),
        "attention_mask": torch.cat([torch.ones_like(placeholder), read.real], 1).long(),
    }
    if family == "instructblip":
        inputs |= {"qformer_input_ids": asked.ids, "qformer_attention_mask": asked.real.long()}
    prompts = ours.soft_prompts(ours.encode_image(pixels), asked if family == "instructblip" else None)
    if kind == "t5":
        decoder = torch.cat([torch.zeros(3, 1, dtype=torch.long), padded([5, 5, 5], entries, 2).ids], 1)
        found = ours.target_logits(prompts, read, decoder)
        inputs["decoder_input_ids"] = decoder
        seen = torch.ones_like(decoder, dtype=torch.bool)
    else:
        found, seen = ours.logits(prompts, read), inputs["attention_mask"].bool()
    expected = theirs(**inputs).logits
    assert expected.std() > 0.5  # numbers of a size that 1e-4 says something about
    assert (expected[0] - expected[1]).abs().max() > 0.1
    torch.testing.assert_close(found[seen], expected[seen], atol=1e-4, rtol=0.0)
    # The rest is the epsilon of one norm, which is LAVIS's here and the image encoder's there.
    theirs.vision_model.post_layernorm.eps = ours.vision_model.post_layernorm.eps
    again = theirs(**inputs).logits
    torch.testing.assert_close(found[seen], again[seen], atol=3e-5, rtol=0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_transformers(
    kind: LanguageKind, family: Family, folders: dict[str, Path], tmp_path: Path
) -> None:
    structure = small_structure(kind, folders[kind], family)
    ours = small_prompted(structure, READER)
    theirs = in_transformers(ours, structure, tmp_path)
    if kind != "t5":  # whose two embeddings transformers has as one until it has read a file
        theirs = type(theirs)(theirs.config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for name, tensor in theirs.state_dict().items():
        assert tensor.equal(ours.state_dict()[name]), name


def test_a_t5_whose_embeddings_are_apart_keeps_them_apart(folders: dict[str, Path]) -> None:
    config = json.loads((folders["t5"] / "config.json").read_text())
    apart, tied = build_language_model(config), build_language_model(config | {"tie_word_embeddings": True})
    assert apart.lm_head.weight is not apart.shared.weight
    assert apart.encoder.embed_tokens.weight is apart.shared.weight
    assert tied.lm_head.weight is tied.shared.weight
    # What transformers writes of such a config says that they are tied, and remembers otherwise.
    again = build_language_model(apart.config.to_dict())
    assert again.lm_head.weight is not again.shared.weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_moves_what_stands_between_the_frozen_models_and_nothing_else(
    kind: LanguageKind, family: Family, folders: dict[str, Path]
) -> None:
    model = small_prompted(small_structure(kind, folders[kind], family), READER).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_of(model, kind, family).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for name, tensor in model.state_dict().items():
        # Keys' biases cancel in the softmax; what the last layer makes of the instruction goes nowhere.
        is_idle = name.endswith("key.bias") or name.startswith(LAST_OF_TEXT)
        if name.startswith(TRAINED) and not is_idle:
            assert not tensor.equal(before[name]), f"{name} stayed"
        elif not name.startswith(TRAINED):
            assert tensor.equal(before[name]), f"{name} moved"
    assert {n.startswith(TRAINED) for n, p in model.named_parameters() if p.requires_grad} == {True}


def loss_of(model: SoftPrompted, kind: LanguageKind, family: Family) -> Tensor:
    read, asked = padded([6, 2, 4], 40), padded([3, 7, 5], READER, seed=1)
    prompts = model.soft_prompts(
        model.encode_image(some_pixels()), asked if family == "instructblip" else None
    )
    logits = model.target_logits(prompts, read, read.ids) if kind == "t5" else model.logits(prompts, read)
    return logits.log_softmax(-1)[..., 7].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_drops_nothing_while_the_qformer_trains(
    kind: LanguageKind, folders: dict[str, Path]
) -> None:
    model = small_prompted(small_structure(kind, folders[kind])).train()
    assert not any(part.training for part in model.language_model.modules())
    assert model.qformer.training
    # The Q-Former's own dropout is 0 here, the language model's 0.5.
    assert loss_of(model, kind, "blip2").equal(loss_of(model, kind, "blip2"))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same_where_layers_are_computed_again(
    kind: LanguageKind, folders: dict[str, Path]
) -> None:
    model = small_prompted(small_structure(kind, folders[kind])).train()
    inner: Any = model.language_model
    layers = {"opt": "model.decoder.layers", "t5": "encoder.block", "llama": "model.layers"}[kind]
    passes = []
    inner.get_submodule(layers)[0].register_forward_pre_hook(lambda *_: passes.append("layer"))
    inner.get_submodule(layers)[0].get_submodule(
        {"opt": "fc1", "t5": "layer.1", "llama": "mlp"}[kind]
    ).register_forward_pre_hook(lambda *_: passes.append("inside"))
    gradients = []
    for on in (False, True, False):
        model.checkpoint_gradients(on)
        model.zero_grad()
        passes.clear()
        loss_of(model, kind, "blip2").backward()  # type: ignore[no-untyped-call]
        assert passes.count("inside") == (2 if on else 1)
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
        assert gradients[2][name].equal(gradient)


def test_a_language_model_in_bf16_hands_gradients_of_fp32_to_the_prompts(folders: dict[str, Path]) -> None:
    model = small_prompted(small_structure("opt", folders["opt"]))
    loss_of(model, "opt", "blip2").backward()  # type: ignore[no-untyped-call]
    exact = model.language_projection.weight.grad
    model.zero_grad()
    model.language_model.to(torch.bfloat16)
    loss_of(model, "opt", "blip2").backward()  # type: ignore[no-untyped-call]
    rough = model.language_projection.weight.grad
    assert exact is not None
    assert rough is not None
    assert rough.dtype == torch.float32
    assert torch.cosine_similarity(rough.flatten(), exact.flatten(), 0) > 0.99


@torch.inference_mode()
def test_an_instruction_changes_what_the_queries_find_and_its_padding_does_not(
    folders: dict[str, Path],
) -> None:
    model = small_prompted(small_structure("llama", folders["llama"], "instructblip"), READER)
    states = model.encode_image(some_pixels(1))
    short, long = padded([3], READER), padded([3, 7], READER)
    one = model.query_states(states, short)
    assert one.shape == (1, 3, 32)
    assert (one - model.query_states(states, padded([3], READER, seed=5))).abs().max() > 0.1
    assert (one - model.query_states(states)).abs().max() > 0.1
    fuller = Words(torch.cat([short.ids, torch.tensor([[9, 9]])], 1), torch.arange(5)[None] < 3)
    torch.testing.assert_close(model.query_states(states, fuller), one, atol=1e-5, rtol=0.0)
    assert long.ids.shape == (2, 7)


def test_the_qformer_of_blip2_reads_no_instruction(folders: dict[str, Path]) -> None:
    model = small_prompted(small_structure("llama", folders["llama"]))
    with pytest.raises(ValueError, match="reads no text"):
        model.soft_prompts(model.encode_image(some_pixels(1)), padded([3], READER))


def test_an_instruction_that_is_too_long_loses_its_beginning(vocabulary: Vocabulary) -> None:
    texts = ["a small cat sleeps on the long red beach", "red cat"]
    whole = [vocabulary.encode([text], "cls", 99)[0][0].tolist() for text in texts]
    assert len(whole[0]) > 6 > len(whole[1])
    words = read_instructions(vocabulary, texts, 6)
    assert words.ids[0].tolist() == [vocabulary.cls, *whole[0][-5:]]
    assert words.ids[1].tolist() == [*whole[1], *[vocabulary.pad] * (6 - len(whole[1]))]
    assert words.real.sum(1).tolist() == [6, len(whole[1])]


@pytest.mark.parametrize("config", [{}, {"model_type": "no such"}, {"model_type": "clip_vision_model"}])
def test_a_config_that_is_no_language_model_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(CapfiltError, match="language") as refused:
        build_language_model(config)
    assert "bundles.language" in refused.value.fix


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_the_map_after_them_stay_in_fp32_where_the_rest_is_in_bf16(
    kind: LanguageKind, family: Family, folders: dict[str, Path]
) -> None:
    model = small_prompted(small_structure(kind, folders[kind], family), READER).train()
    pixels, asked = some_pixels(), padded([3, 7, 5], READER, seed=1) if family == "instructblip" else None
    narrow = []

    def note(module: torch.nn.Module, _: Any, made: Tensor) -> None:
        if made.dtype != torch.float32:
            narrow.append(module)

    between = [*model.qformer.modules(), model.language_projection]
    for module in between:
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(note)
    states = model.encode_image(pixels)
    plain = model.soft_prompts(states, asked)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.soft_prompts(states, asked)
        inside = model.vision_model.post_layernorm.weight @ model.vision_model.post_layernorm.weight[:, None]
    assert inside.dtype == torch.bfloat16  # autocast is on around them
    assert narrow == []
    assert torch.equal(found, plain)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_text_that_the_language_model_has_no_places_for_is_refused_in_words(
    kind: LanguageKind, folders: dict[str, Path]
) -> None:
    model = small_prompted(small_structure(kind, folders[kind]), READER)
    prompts = model.soft_prompts(model.encode_image(some_pixels(1)))
    whole = 48 - model.queries
    assert model.logits(prompts, padded([whole], 40)).shape[1] == 48
    with pytest.raises(CapfiltError, match=r"3 queries and 46 tokens .* 48 places") as refused:
        model.logits(prompts, padded([whole + 1], 40))
    assert "model.language.max_tokens to 45" in refused.value.fix
    check_places(model.language_model, model.queries, 22, texts=2)
    with pytest.raises(CapfiltError, match="2 texts of 23 tokens") as refused:
        check_places(model.language_model, model.queries, 23, texts=2)
    assert "to 22 or lower" in refused.value.fix


def test_t5_has_places_for_any_text(folders: dict[str, Path]) -> None:
    model = small_prompted(small_structure("t5", folders["t5"]), READER)
    check_places(model.language_model, model.queries, 10_000, texts=2)
