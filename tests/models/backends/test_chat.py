"""Models that are asked by a chat template, of six kinds, against transformers' own `generate`.

LLaVA puts a picture's states among the words; Qwen2-VL has prompts as long as the picture is large, and
positions on three axes; Idefics3 cuts a picture into tiles; Gemma 3 has sliding windows, and picture tokens
that see each other both ways; Qwen3.5 keeps states that do not grow; Mllama looks by cross-attention.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import small_folders
import torch
from PIL import Image
from small_models import part, pictures
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessor, LogitsProcessorList

from capfilt.draws import uniforms
from capfilt.errors import CapfiltError
from capfilt.models import decoding as search
from capfilt.models.backends import chat
from capfilt.models.backends.answers import PROMPT
from capfilt.models.backends.chat import ChatCaptioner, with_one_end
from capfilt.models.protocols import ImageBatch
from capfilt.settings import SettledDecoding

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("llava", "qwen2_vl", "idefics3", "gemma3", "qwen3_5", "mllama")
GREEDY = SettledDecoding(method="greedy", min_tokens=0, max_tokens=9, prompt="Describe the image .")
NUCLEUS = SettledDecoding(min_tokens=2, max_tokens=9, top_p=0.95, prompt="Describe the image .")
BEAM = SettledDecoding(method="beam", beams=3, min_tokens=0, max_tokens=7, prompt="Describe the image .")
PICTURES = 5
SEED = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: getattr(small_folders, kind)(tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def captioners(folders: dict[str, Path]) -> dict[str, ChatCaptioner]:
    return {kind: ChatCaptioner(folder, "digest", "cpu") for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def batch() -> ImageBatch:
    return pictures(PICTURES)


class Theirs:
    """The folder as its page says it is used: one picture at a time, through `generate`."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def texts(self, picture: Image.Image, decoding: SettledDecoding, **how: Any) -> str:
        message = {
            "role": "user",
            "content": [{"type": "image", "image": picture}, {"type": "text", "text": decoding.prompt}],
        }
        inputs = self.processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=decoding.max_tokens, **how)
        written = ids[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.decode(written, skip_special_tokens=True))


class Drawn(LogitsProcessor):
    """Leaves of each token's logits the one that is drawn by a caption's numbers."""

    def __init__(self, numbers: Any, decoding: SettledDecoding) -> None:
        self.numbers, self.decoding, self.position = torch.from_numpy(numbers), decoding, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = with_one_end(scores, small_folders.ENDS, likeliest=False)
        end = small_folders.ENDS[0]
        scores = search.shaped(scores, input_ids, self.decoding, end, self.position)
        number = self.numbers[self.position : self.position + 1]
        token = search.draw(search.nucleus(scores, self.decoding), number)
        self.position += 1
        return torch.full_like(scores, -math.inf).scatter(1, token[:, None], 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_captions_are_those_of_generate(
    kind: str, folders: dict[str, Path], captioners: dict[str, ChatCaptioner], batch: ImageBatch
) -> None:
    theirs = Theirs(folders[kind])
    expected = [theirs.texts(one, GREEDY) for one in batch.pictures]
    assert len(set(expected)) > 2  # what is seen matters
    found = captioners[kind].caption(batch, GREEDY, seed=SEED, candidates=2)
    assert found == [[text, text] for text in expected]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mllama"])
def test_a_penalty_on_repetition_counts_the_whole_prompt_as_generate_does(
    kind: str,
    folders: dict[str, Path],
    captioners: dict[str, ChatCaptioner],
    batch: ImageBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captioner, theirs, end = captioners[kind], Theirs(folders[kind]), small_folders.ENDS[0]
    monkeypatch.setattr(captioner, "_ends", [end])
    plain = captioner.caption(batch, GREEDY, seed=SEED, candidates=1)
    expected = [
        [theirs.texts(one, GREEDY, repetition_penalty=1.3, eos_token_id=end)] for one in batch.pictures
    ]
    penalised = GREEDY.model_copy(update={"repetition_penalty": 1.3})
    assert captioner.caption(batch, penalised, seed=SEED, candidates=1) == expected != plain


class Penalised(LogitsProcessor):
    """The penalty by the book, token by token, for tokens that have a logit."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token in {one for one in input_ids[0].tolist() if one < scores.shape[1]}:
            scores[0, token] *= 1.3 if scores[0, token] < 0 else 1 / 1.3
        return scores


def test_a_picture_token_without_a_logit_is_not_penalised(
    folders: dict[str, Path],
    captioners: dict[str, ChatCaptioner],
    batch: ImageBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captioner, theirs, end = captioners["mllama"], Theirs(folders["mllama"]), small_folders.ENDS[0]
    monkeypatch.setattr(captioner, "_ends", [end])
    how = {"eos_token_id": end, "logits_processor": LogitsProcessorList([Penalised()])}
    expected = [[theirs.texts(one, GREEDY, **how)] for one in batch.pictures]
    penalised = GREEDY.model_copy(update={"repetition_penalty": 1.3})
    assert captioner.caption(batch, penalised, seed=SEED, candidates=1) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_beam_search_is_that_of_generate(
    kind: str,
    folders: dict[str, Path],
    captioners: dict[str, ChatCaptioner],
    batch: ImageBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captioner, theirs, end = captioners[kind], Theirs(folders[kind]), small_folders.ENDS[0]
    monkeypatch.setattr(captioner, "_ends", [end])
    expected = [theirs.texts(one, BEAM, num_beams=3, eos_token_id=end) for one in batch.pictures]
    greedy = captioner.caption(batch, BEAM.model_copy(update={"method": "greedy"}), seed=0, candidates=1)
    assert [[text] for text in expected] != greedy  # the search matters
    assert captioner.caption(batch, BEAM, seed=SEED, candidates=1) == [[text] for text in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_is_named_by_seed_picture_and_candidate(
    kind: str, folders: dict[str, Path], captioners: dict[str, ChatCaptioner], batch: ImageBatch
) -> None:
    theirs = Theirs(folders[kind])
    found = captioners[kind].caption(batch, NUCLEUS, seed=SEED, candidates=3)
    for number in (0, 3, PICTURES - 1):
        for candidate in range(3):
            numbers = uniforms(NUCLEUS.max_tokens, "caption", SEED, batch.sha256[number], candidate)
            drawn = LogitsProcessorList([Drawn(numbers, NUCLEUS)])
            expected = theirs.texts(batch.pictures[number], NUCLEUS, logits_processor=drawn)
            assert found[number][candidate] == expected
    assert len({text for mine in found for text in mine}) > PICTURES


@pytest.mark.parametrize("kind", KINDS)
def test_captions_do_not_depend_on_what_else_is_asked_for(
    kind: str, captioners: dict[str, ChatCaptioner], batch: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = captioners[kind]
    whole = captioner.caption(batch, NUCLEUS, seed=SEED, candidates=4)
    alone = [
        captioner.caption(part(batch, [n]), NUCLEUS, seed=SEED, candidates=2)[0] for n in range(PICTURES)
    ]
    assert alone == [mine[:2] for mine in whole]
    monkeypatch.setattr(chat, "ROWS_AT_ONCE", 5)
    assert captioner.caption(batch, NUCLEUS, seed=SEED, candidates=4) == whole
    assert captioner.caption(batch, NUCLEUS, seed=SEED + 1, candidates=4) != whole


@pytest.mark.parametrize("method", ["nucleus", "greedy", "beam"])
def test_a_picture_goes_through_the_model_once_for_all_its_candidates(
    folders: dict[str, Path], batch: ImageBatch, method: str
) -> None:
    captioner = ChatCaptioner(folders["llava"], "digest", "cpu")
    seen = []
    tower = captioner._model.model.vision_tower
    tower.register_forward_hook(lambda _module, _args, output: seen.append(len(output[0])))
    captioner.caption(batch, NUCLEUS.model_copy(update={"method": method}), seed=SEED, candidates=6)
    assert (sum(seen), captioner.passes) == (PICTURES, PICTURES)


def test_the_question_is_the_prompt_and_a_plain_one_where_there_is_none(
    captioners: dict[str, ChatCaptioner], batch: ImageBatch
) -> None:
    asked = captioners["llava"]._asked(batch.pictures[0], PROMPT)["input_ids"]
    words = captioners["llava"]._processor.decode(asked[0])
    assert "Describe the image in one short sentence ." in words
    assert words.endswith("<answer>")
    plain, same, other = (
        captioners["llava"].caption(batch, GREEDY.model_copy(update={"prompt": prompt}), seed=0, candidates=1)
        for prompt in ("", PROMPT, "the blue star and the red star")
    )
    assert plain == same != other


def test_options_reach_the_chat_template_and_the_processor(folders: dict[str, Path]) -> None:
    picture = Image.new("RGB", (60, 60), (200, 30, 30))
    plain = ChatCaptioner(folders["qwen2_vl"], "digest", "cpu")
    chosen = ChatCaptioner(
        folders["qwen2_vl"],
        "digest",
        "cpu",
        processor={"size": {"shortest_edge": 64, "longest_edge": 256}},
        template={"answers": "one short sentence"},
    )
    ids, fewer = (one._asked(picture, "the image")["input_ids"][0].tolist() for one in (plain, chosen))
    image, short = (small_folders.CHAT_WORDS.index(word) for word in ("<image>", "short"))
    assert fewer.count(image) < ids.count(image)
    assert (ids.count(short), fewer.count(short)) == (0, 1)


def test_any_end_closes_a_caption_and_none_comes_before_the_shortest(
    captioners: dict[str, ChatCaptioner], batch: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: list[list[int]] = []
    monkeypatch.setattr(captioners["llava"], "_text", lambda row: ids.append(row) or "")
    captioners["llava"].caption(batch, NUCLEUS, seed=SEED, candidates=40)
    first, other = small_folders.ENDS
    assert not any(other in row for row in ids)
    lengths = [row.index(first) for row in ids if first in row]
    assert min(lengths) == NUCLEUS.min_tokens
    assert max(lengths) > NUCLEUS.min_tokens


def test_several_ends_are_as_likely_as_all_of_them_together() -> None:
    logits = torch.tensor([[0.3, 1.2, -0.5, 1.1]])
    probabilities = logits.softmax(-1)[0]
    together = with_one_end(logits, [3, 1], likeliest=False).softmax(-1)[0]
    assert together[3] == pytest.approx(float(probabilities[3] + probabilities[1]))
    assert [float(together[n]) for n in (0, 1, 2)] == pytest.approx(
        [float(probabilities[0]), 0, float(probabilities[2])]
    )
    assert with_one_end(logits, [3, 1], likeliest=True)[0, 3] == logits[0, 1]
    assert with_one_end(logits, [3], likeliest=False) is logits


def test_what_a_model_thought_is_no_caption(
    captioners: dict[str, ChatCaptioner], batch: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner, said = (
        captioners["qwen2_vl"],
        iter(["<think>It is\nred.</think>\n\nA red\nsquare.", "<think>So"]),
    )
    monkeypatch.setattr(captioner._processor, "decode", lambda *_, **__: next(said))
    assert captioner.caption(part(batch, [0, 1]), GREEDY, seed=SEED, candidates=1) == [
        ["A red square."],
        [""],
    ]


def test_a_thread_of_a_picture_is_asked_about_too(captioners: dict[str, ChatCaptioner]) -> None:
    shapes = [(900, 2), (1, 700), (5, 3), (1, 1)]
    strips = ImageBatch([Image.new("RGB", shape, (20, 90, 160)) for shape in shapes], [*"abcd"])
    for captioner in captioners.values():
        found = captioner.caption(strips, NUCLEUS, seed=0, candidates=1)
        assert all(mine[0] for mine in found)


def test_bf16_writes_captions_of_the_same_kind(folders: dict[str, Path], batch: ImageBatch) -> None:
    captioner = ChatCaptioner(folders["qwen2_vl"], "digest", "cpu", "bf16")
    assert {weights.dtype for weights in captioner._model.parameters()} == {torch.bfloat16}
    found = captioner.caption(batch, NUCLEUS, seed=SEED, candidates=2)
    assert {word for mine in found for text in mine for word in text.split()} <= set(small_folders.CHAT_WORDS)
    assert all(len(mine) == 2 for mine in found)


def test_a_folder_without_a_chat_template_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["llava"].iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CapfiltError, match="has no chat template") as refused:
        ChatCaptioner(tmp_path, "digest", "cpu")
    assert "-Instruct" in refused.value.fix
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ 1 }}"}))
    chat.check(tmp_path, {})  # older folders keep it there


def test_a_template_that_takes_no_pictures_is_refused_in_words(
    folders: dict[str, Path], tmp_path: Path, batch: ImageBatch
) -> None:
    for file in folders["llava"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('only texts here') }}")
    with pytest.raises(CapfiltError, match="only texts here"):
        ChatCaptioner(tmp_path, "digest", "cpu").caption(batch, GREEDY, seed=0, candidates=1)


def test_options_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    for options in ({"colour": {}}, {"template": 3}):
        with pytest.raises(CapfiltError, match="has no option") as refused:
            chat.check(tmp_path, options)
        assert "processor and template" in refused.value.fix


def test_it_is_known_by_its_config() -> None:
    for kind in (*KINDS, "smolvlm", "internvl", "paligemma", "mllama"):
        assert chat.recognises({"model_type": kind}) == "captioner"
    for other in ("blip", "blip-2", "instructblip", "clip", "git", "llama", None):
        assert chat.recognises({"model_type": other}) is None
