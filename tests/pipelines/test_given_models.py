"""Models of every kind that others made, given to a run that captions, scores, judges and exports."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import given_models
import pytest
import small_folders
import torch
import transformers
import world
from blip2_world import SMALL, here, sets
from chat_server import ChatServer, chat_server
from small_models import WORDS, pictures
from whole_runs import sql

from capfilt.data.images import normalise
from capfilt.models.cards import read_card
from capfilt.models.vocabulary import train_vocabulary
from capfilt.settings import Foreign

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

EXAMPLES = Path(__file__).parents[2] / "examples"
CHOSEN = {name: value for name, value in SMALL.items() if name.partition(".")[0] in ("compute", "decoding")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of transformers in folders, as released ones are."""
    folder = tmp_path_factory.mktemp("models")
    words = train_vocabulary(WORDS, 160)
    return {
        "BLIP-2 retrieval": given_models.retrieval(folder / "retrieval", words),
        "BLIP-2 with OPT": given_models.generation(folder / "opt", "blip2", "opt", words),
        "BLIP-2 with T5": given_models.generation(folder / "t5", "blip2", "t5", words),
        "InstructBLIP with Llama": given_models.generation(folder / "il", "instructblip", "llama", words),
        "InstructBLIP with T5": given_models.generation(folder / "it", "instructblip", "t5", words),
        "CLIP": small_folders.clip(folder / "clip"),
        "SigLIP": small_folders.siglip(folder / "siglip"),
        "LLaVA": small_folders.llava(folder / "llava"),
    }


@pytest.fixture(scope="module")
def med(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A captioner and a filter of capfilt's own."""
    return world.bundles(tmp_path_factory.mktemp("med"))


@pytest.fixture(scope="module")
def served() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


def run(
    few: Path,
    out: Path,
    captioner: object,
    filter_: object,
    *,
    by: str = "itm",
    more: Mapping[str, object] = MappingProxyType({}),
) -> list[tuple[Any, ...]]:
    """Do a whole run with two models; returns its pairs: source, text, ITC, ITM, keep."""
    words = ["bootstrap", few / "web", "--out", out, "--captioner", captioner, "--filter", filter_]
    words += ["--fraction", "0.5", "--by", by, "--accept-weak-filter", *sets({**CHOSEN, **more}), "--json"]
    ended = here(*words)
    stages = {stage["stage"]: stage["status"] for stage in json.loads(ended.out)["stages"]}
    assert stages == dict.fromkeys(("recaption_and_score", "judge", "export"), "done")
    pairs = sql(out, "SELECT source, text, itc, itm, keep FROM pairs ORDER BY 1, 2")
    assert len([pair for pair in pairs if pair[0] == "synthetic"]) == 24
    kept = [pair for pair in pairs if pair[-1]]
    assert 0 < len(kept) < len(pairs)
    exported = [
        content.decode()
        for tar in sorted((out / "export").glob("*.tar"))
        for name, content in world.members(tar).items()
        if name.endswith(".txt")
    ]
    assert exported
    assert set(exported) <= {text for _, text, *_ in kept}
    # A run copies what it is given, and is done when it is done.
    again = json.loads(here(*words).out)
    assert again["stages"][0]["detail"].startswith("0 shards")
    return pairs


def captions(pairs: list[tuple[Any, ...]]) -> list[str]:
    return [text for source, text, *_ in pairs if source == "synthetic"]


# -- filters


def test_a_blip2_of_transformers_filters(
    models: dict[str, Path], med: dict[str, Path], few: Path, tmp_path: Path
) -> None:
    pairs = run(few, tmp_path / "run", med["captioner"], models["BLIP-2 retrieval"])
    assert len({itm for *_, itm, _ in pairs}) > 24
    assert all(-1 <= itc <= 1 and 0 <= itm <= 1 for _, _, itc, itm, _ in pairs)
    bundle = tmp_path / "run" / "models" / "filter"
    theirs = transformers.Blip2ForImageTextRetrieval.from_pretrained(models["BLIP-2 retrieval"])
    ours, report = transformers.Blip2ForImageTextRetrieval.from_pretrained(bundle, output_loading_info=True)
    assert not any(report[one] for one in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundle)
    read = tokenizer(WORDS, padding=True, return_tensors="pt")
    given = {
        "pixel_values": _pixels(bundle),
        "input_ids": read.input_ids,
        "attention_mask": read.attention_mask,
    }
    for head in (True, False):
        one, other = (
            model.eval()(**given, use_image_text_matching_head=head).logits_per_image
            for model in (theirs, ours)
        )
        assert one.std() > 0.05
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("name", ["CLIP", "SigLIP"])
def test_a_dual_encoder_filters(
    name: str, models: dict[str, Path], med: dict[str, Path], few: Path, tmp_path: Path
) -> None:
    pairs = run(few, tmp_path / "run", med["captioner"], models[name], by="itc")
    assert {itm for *_, itm, _ in pairs} == {None}
    assert len({itc for _, _, itc, _, _ in pairs}) > 24
    bundle = tmp_path / "run" / "models" / "filter"
    card = read_card(bundle)
    assert card.model == Foreign(backend="dual_encoder")
    ours, theirs = (transformers.AutoModel.from_pretrained(at).state_dict() for at in (bundle, models[name]))
    assert all(torch.equal(ours[one], theirs[one]) for one in theirs)


@pytest.mark.parametrize("name", ["InstructBLIP with Llama", "InstructBLIP with T5"])
def test_an_instructblip_of_transformers_filters_by_answering(
    name: str, models: dict[str, Path], med: dict[str, Path], few: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(few, out, med["captioner"], models[name], by="vqa", more={"filter.question": "is it {text} ?"})
    [(low, high, found, others)] = sql(
        out, "SELECT min(vqa), max(vqa), count(DISTINCT vqa), count(itc) + count(itm) FROM pairs"
    )
    assert 0 <= low < high <= 1
    assert found > 24
    assert others == 0
    card = read_card(out / "models" / "filter")
    assert card.kind == "captioner"
    # Of what LAVIS reads, as much as this Q-Former has places for.
    assert (card.blip2.qformer.max_tokens, card.blip2.language.max_tokens) == (32, 128)


# -- captioners


@pytest.mark.parametrize(
    "name", ["BLIP-2 with OPT", "BLIP-2 with T5", "InstructBLIP with Llama", "InstructBLIP with T5"]
)
def test_a_captioner_with_a_q_former_of_transformers_captions(
    name: str, models: dict[str, Path], few: Path, tmp_path: Path
) -> None:
    pairs = run(few, tmp_path / "run", models[name], models["BLIP-2 retrieval"])
    assert len(set(captions(pairs))) > 10
    bundle = tmp_path / "run" / "models" / "captioner"
    card = read_card(bundle)
    assert card.conventions.prompt == (given_models.INSTRUCTION if "Instruct" in name else "")
    kind: Any = transformers.Blip2ForConditionalGeneration
    if "Instruct" in name:
        kind = transformers.InstructBlipForConditionalGeneration
    theirs = kind.from_pretrained(models[name]).eval()
    ours, report = kind.from_pretrained(bundle, output_loading_info=True)
    assert not any(report[one] for one in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processors = [transformers.AutoProcessor.from_pretrained(at) for at in (models[name], bundle)]
    images = pictures(2).pictures
    inputs = [
        processor(images=images, text=["a red", "a red"], return_tensors="pt") for processor in processors
    ]
    for one in set(inputs[0]) - {"pixel_values"}:
        assert torch.equal(inputs[0][one], inputs[1][one]), one
    inputs[0]["pixel_values"] = inputs[1]["pixel_values"]
    more = {"decoder_input_ids": torch.zeros(2, 1, dtype=torch.long)} if "T5" in name else {}
    with torch.inference_mode():
        expected = theirs(**inputs[0], **more).logits
        assert expected.std() > 0.5
        torch.testing.assert_close(ours.eval()(**inputs[1], **more).logits, expected, atol=1e-4, rtol=0.0)


def test_a_chat_model_captions(
    models: dict[str, Path], med: dict[str, Path], few: Path, tmp_path: Path
) -> None:
    pairs = run(few, tmp_path / "run", models["LLaVA"], med["filter"])
    assert len(set(captions(pairs))) > 10
    assert read_card(tmp_path / "run" / "models" / "captioner").family == "chat"
    transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "models" / "captioner")


def test_a_server_captions(served: ChatServer, med: dict[str, Path], few: Path, tmp_path: Path) -> None:
    pairs = run(few, tmp_path / "run", served.url, med["filter"])
    assert len(served.chats) == 24  # and none when the same command was given again
    assert len(set(captions(pairs))) > 1
    card = read_card(tmp_path / "run" / "models" / "captioner")
    assert card.family == "server"
    assert "acme/seer-7b" in json.dumps(card.foreign.options)


def test_a_file_of_ones_own_captions_and_filters(few: Path, tmp_path: Path) -> None:
    own = EXAMPLES / "own_filter.py"
    pairs = run(few, tmp_path / "run", own, own)
    assert all(text.startswith("something ") for text in captions(pairs))
    assert {itc for _, _, itc, _, _ in pairs} == {None}
    # The captioner names colours that are there.
    assert min(itm for source, _, _, itm, _ in pairs if source == "synthetic") > 0.5


def _pixels(bundle: Path) -> Tensor:
    images = read_card(bundle).blip2.images
    return normalise(torch.from_numpy(pictures(3).squares(images)), images)
