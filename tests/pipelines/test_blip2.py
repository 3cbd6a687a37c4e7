"""BLIP-2 from end to end: stage 1, a captioner and a filter that go on from it, and what they make."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import blip2_world
import pytest
import torch
import transformers
import world
from blip2_world import LEARNING_RATE, SMALL, STEPS, TRAINED, here, sets, weights
from whole_runs import Ended, capfilt, copied, finish, lasting, sql

from capfilt.data.images import decode, normalise
from capfilt.data.sources import find_shards, read_shard
from capfilt.models.cards import read_calibration, read_card
from capfilt.models.loading import captioner_of, filter_of, open_bundle
from capfilt.models.protocols import ImageBatch
from capfilt.settings import Input, SettledDecoding

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FROZEN = ("vision_model.embeddings.", "vision_model.encoder.", "language_model.")


@dataclass(frozen=True)
class Ran:
    """A run of one pipeline, and what its models were put between."""

    path: Path
    command: list[str]
    ended: Ended
    vision: Path
    language: Path

    def model(self, name: str) -> Path:
        return self.path / "models" / name


def _command(
    few: Path, parts: dict[str, Path], out: Path, pipeline: str, vision: str, kind: str
) -> list[str]:
    given = {"bundles.vision": parts[vision], "bundles.language": parts[kind]}
    return blip2_world.bootstrap(few, out, "--pipeline", pipeline, *sets(TRAINED, given))


@pytest.fixture(
    scope="module",
    params=[
        ("blip2_opt", "plain", "opt"),
        ("blip2_t5", "convolutional", "t5"),
        ("blip2_opt", "convolutional", "llama"),
    ],
    ids=["OPT", "T5", "Llama"],
)
def ran(
    few: Path,
    parts: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Ran:
    """A run that nobody disturbed; not to be changed."""
    pipeline, vision, kind = request.param
    out = tmp_path_factory.mktemp(kind) / "run"
    command = _command(few, parts, out, pipeline, vision, kind)
    return Ran(out, command, here(*command, "--json"), parts[vision], parts[kind])


def _biggest(one: dict[str, Tensor], other: dict[str, Tensor], names: set[str]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in names)


# -- what a run makes


def test_a_run_trains_captions_scores_judges_and_exports(ran: Ran) -> None:
    stages = {stage["stage"]: stage["status"] for stage in json.loads(ran.ended.out)["stages"]}
    assert stages == dict.fromkeys(
        ("train_joint", "train_captioner_and_filter", "recaption_and_score", "judge", "export"), "done"
    )
    pairs = sql(ran.path, "SELECT source, text, itm, itc, keep FROM pairs")
    written = [text for source, text, *_ in pairs if source == "synthetic"]
    assert len(written) == 24
    assert len(set(written)) > 10  # it looks at the pictures
    assert all(0 < itm < 1 and -1 <= itc <= 1 for _, _, itm, itc, _ in pairs)
    assert len({itm for _, _, itm, _, _ in pairs}) > 24
    exported = [
        content.decode()
        for tar in sorted((ran.path / "export").glob("*.tar"))
        for name, content in world.members(tar).items()
        if name.endswith(".txt")
    ]
    assert 0 < len(exported) <= 24
    assert set(exported) <= {text for _, text, _, _, keep in pairs if keep}


def test_captioner_and_filter_go_on_from_stage_1(ran: Ran) -> None:
    joint, captioner, filter_ = (weights(ran.model(name)) for name in ("joint", "captioner", "filter"))
    cards = {name: read_card(ran.model(name)) for name in ("joint", "captioner", "filter")}
    assert cards["joint"].parent is None
    assert {cards[name].parent for name in ("captioner", "filter")} == {cards["joint"].weights}
    assert [cards[name].objectives for name in cards] == [("itc", "itm", "lm"), ("lm",), ("itc", "itm")]
    for name, model in (("captioner", captioner), ("filter", filter_)):
        common = {one for one in set(joint) & set(model) if not one.startswith(FROZEN)}
        assert {"query_tokens", "qformer.layernorm.weight", "vision_model.post_layernorm.weight"} <= common
        # AdamW moves a weight by about its rate in a step; weights that were drawn anew are farther away.
        assert 0 < _biggest(joint, model, common) < 2 * STEPS[name] * LEARNING_RATE
    only = {name.partition(".")[0] for name in set(captioner) - set(joint)}
    assert only == {"language_projection", "language_model"}
    assert read_calibration(ran.model("filter"))


def test_what_is_frozen_is_what_was_given_to_the_last_bit(ran: Ran) -> None:
    source = open_bundle(ran.vision).model.state_dict()
    own = weights(ran.model("joint"))
    frozen = {name: tensor for name, tensor in own.items() if name.startswith(FROZEN)}
    # The same tensors under other names: each is found in the bundle that it was taken from.
    theirs = [tensor for name, tensor in source.items() if name.startswith("image.")]
    for name, tensor in frozen.items():
        shaped = [one for one in theirs if one.numel() == tensor.numel()]
        assert any(torch.equal(one.flatten(), tensor.flatten()) for one in shaped), name
    for model in ("captioner", "filter"):
        after = weights(ran.model(model))
        assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    given = weights(ran.language)
    written = {
        name.removeprefix("language_model."): tensor
        for name, tensor in weights(ran.model("captioner")).items()
        if name.startswith("language_model.")
    }
    assert set(given) <= set(written)
    assert all(torch.equal(given[name], written[name]) for name in given)


# -- again, and after a kill


def test_the_same_command_again_does_nothing_new(ran: Ran) -> None:
    before = lasting(ran.path)
    times = {path: path.stat().st_mtime_ns for path in ran.path.glob("models/**/*")}
    again = json.loads(here(*ran.command, "--json").out)
    details = {stage["stage"]: stage["detail"] for stage in again["stages"]}
    assert details["train_joint"].endswith("trained before")
    assert details["train_captioner_and_filter"].count("trained before") == 2
    assert details["recaption_and_score"] == "0 shards, 0 samples, 0 images; 2 shards were done before"
    assert lasting(ran.path) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_what_stood_between_is_a_fact_of_the_run_and_is_not_asked_for_once_models_are_trained(
    few: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    own = {name: tmp_path / name for name in ("plain", "opt")}
    for name, folder in own.items():
        shutil.copytree(parts[name], folder)
    out = tmp_path / "run"
    command = _command(few, own, out, "blip2_opt", "plain", "opt")
    here(*command)
    before = lasting(out)

    # Nothing reads it, so that it is no other language model.
    (own["opt"] / "README.md").write_text("weights of my own")
    here(*command)
    assert lasting(out) == before

    for what in ("language", "vision"):
        other = (
            {**own, "opt": parts["llama"]} if what == "language" else {**own, "plain": parts["convolutional"]}
        )
        with blip2_world.engine():
            ended = capfilt(*_command(few, other, out, "blip2_opt", "plain", "opt"))
        assert ended.code == 2
        assert f"parts.{what}: " in ended.err
        assert lasting(out) == before

    for folder in own.values():
        shutil.rmtree(folder)
    again = here(*command, "--json")
    details = {stage["stage"]: stage["detail"] for stage in json.loads(again.out)["stages"]}
    assert details["train_captioner_and_filter"].count("trained before") == 2
    assert lasting(out) == before


class KilledBefore(world.InProcess):
    """An engine that dies when a model of this kind is to be trained."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def run(self, work: Any, items: Any, **more: Any) -> Any:
        if any(getattr(item, "kind", None) == self.kind for item in items):
            raise KeyboardInterrupt
        yield from super().run(work, items, **more)


def test_a_run_killed_between_stage_1_and_the_captioner_ends_as_one_that_was_not(
    few: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = _command(few, parts, out, "blip2_opt", "plain", "opt")
    with blip2_world.engine(KilledBefore("captioner")):
        assert capfilt(*command).code != 0
    assert [path.name for path in (out / "models").iterdir()] == ["joint"]
    before = lasting(out)
    ended = here(*command, "--json")
    details = {stage["stage"]: stage["detail"] for stage in json.loads(ended.out)["stages"]}
    assert details["train_joint"].endswith("trained before")
    assert "trained before" not in details["train_captioner_and_filter"]
    assert lasting(out).items() >= before.items()


# -- what is done with a run


def test_a_run_in_processes_has_the_same_rows_and_models(
    few: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    here(*_command(few, parts, one, "blip2_opt", "plain", "opt"))
    code, _, err = finish(*_command(few, parts, other, "blip2_opt", "plain", "opt"), "--workers", "2")
    assert code == 0, err
    assert lasting(one) == lasting(other)


def test_a_run_is_inspected_asked_and_judged_again(ran: Ran, tmp_path: Path) -> None:
    run = copied(ran.path, tmp_path / "run")
    said = here("inspect", run).out
    assert "captioner" in said
    parents = here("sql", run, "SELECT kind, parent IS NULL FROM models ORDER BY kind", "--json").out
    assert [row["kind"] for row in json.loads(parents)] == ["captioner", "filter", "joint"]
    [(middle,)] = sql(run, "SELECT median(itm) FROM pairs")
    here("judge", run, "--itm", middle)
    assert sql(run, f"SELECT count(*) FROM pairs WHERE keep <> (itm >= {middle})") == [(0,)]
    exported = here("export", run, "--accept-weak-filter", "--json")
    assert json.loads(exported.out)


# -- in transformers


@torch.inference_mode()
def test_what_was_trained_on_the_familys_own_image_encoder_alone_loads_in_transformers(
    ran: Ran, few: Path
) -> None:
    if ran.vision.name != "plain":
        for name in ("joint", "captioner", "filter"):
            assert (ran.model(name) / "capfilt.safetensors").is_file()
            assert not (ran.model(name) / "config.json").exists()  # or transformers would draw what it lacks
        return
    batch = _pictures(few)
    for name in ("joint", "filter"):
        theirs = _in_transformers(transformers.Blip2ForImageTextRetrieval, ran.model(name))
        tokenizer = transformers.AutoTokenizer.from_pretrained(ran.model(name))
        filter_ = filter_of(ran.model(name), "cpu", "fp32")
        texts = ["a red circle", "a picture of a green star and a blue square", "a cross"]
        read = dict(tokenizer(texts, padding=True, return_tensors="pt"))
        pixels = _pixels(ran.model(name), batch)
        matches = theirs(
            pixel_values=pixels,
            input_ids=read["input_ids"],
            attention_mask=read["attention_mask"],
            use_image_text_matching_head=True,
        ).logits_per_image.softmax(-1)[:, 1]
        cosines = theirs(
            pixel_values=pixels, input_ids=read["input_ids"], attention_mask=read["attention_mask"]
        ).logits_per_image
        scores = filter_.score(batch, [texts] * len(batch))
        # A row each for transformers' match: as many pictures as texts.
        assert [row[n].itm for n, row in enumerate(scores)] == pytest.approx(matches.tolist(), abs=1e-4)
        found = torch.tensor([[one.itc for one in row] for row in scores])
        torch.testing.assert_close(found, cosines, atol=1e-4, rtol=0.0)

    theirs = _in_transformers(transformers.Blip2ForConditionalGeneration, ran.model("captioner"))
    captioner = captioner_of(ran.model("captioner"), "cpu", "fp32")
    decoding = SettledDecoding(method="greedy", min_tokens=0, max_tokens=6)
    ours = [caption for [caption] in captioner.caption(batch, decoding, seed=0, candidates=1)]
    pixels = _pixels(ran.model("captioner"), batch)
    ids = theirs.generate(pixel_values=pixels, max_new_tokens=6, do_sample=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(ran.model("captioner"))
    assert ours == [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _in_transformers(kind: Any, bundle: Path) -> Any:
    model, report = kind.from_pretrained(bundle, output_loading_info=True)
    assert not any(report[one] for one in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def _pictures(few: Path) -> ImageBatch:
    samples = list(islice(read_shard(find_shards(few / "clean")[0], Input()), 3))
    return ImageBatch(
        [decode(sample.image or b"", max_pixels=10**6) for sample in samples],
        [sample.image_sha256 or "" for sample in samples],
    )


def _pixels(bundle: Path, batch: ImageBatch) -> Tensor:
    images = read_card(bundle).blip2.images
    return normalise(torch.from_numpy(batch.squares(images)), images)


# -- trained apart


def test_stage_1_and_stage_2_are_pre_trained_apart_and_a_run_goes_on_from_them(
    few: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    small = {name: value for name, value in SMALL.items() if not name.startswith("decoding.")}
    small |= {name: value for name, value in TRAINED.items() if name.startswith("pretrain.")}
    small["pretrain.phases.0.warmup_steps"] = 0
    one, two, run = (tmp_path / name for name in ("stage1", "stage2", "run"))
    words = ["pretrain", few / "web", "--clean", few / "clean", *sets(small)]
    vision, language = {"bundles.vision": parts["plain"]}, {"bundles.language": parts["llama"]}
    first = here(*words, "--out", one, "--pipeline", "blip2_stage1", *sets(vision))
    second = here(*words, "--out", two, "--pipeline", "blip2_stage2", "--init", one, *sets(language))
    cards = {path: read_card(path) for path in (one, two)}
    assert [card.kind for card in cards.values()] == ["joint", "captioner"]
    assert cards[two].parent == cards[one].weights
    before, after = weights(one), weights(two)
    assert _biggest(before, after, {n for n in set(before) & set(after) if n.startswith(FROZEN)}) == 0
    assert 0 < _biggest(before, after, set(before) & set(after)) < 2 * STEPS["joint"] * LEARNING_RATE
    # Each says what comes next, with what it will need.
    assert f"--init {one} --pipeline blip2_opt --set bundles.language=MODEL" in first.out
    assert f"--captioner {two} --init {one} --pipeline blip2_opt" in second.out

    again = here(*words, "--out", two, "--pipeline", "blip2_stage2", "--init", one, *sets(language))
    assert "trained before" in again.err
    command = ["--pipeline", "blip2_opt", "--captioner", two, "--init", one, *sets(TRAINED)]
    ended = json.loads(here(*blip2_world.bootstrap(few, run, *command), "--json").out)
    assert next(stage["stage"] for stage in ended["stages"]) == "train_filter"
    parents = dict(sql(run, "SELECT kind, parent FROM models"))
    assert parents == {"joint": None, "captioner": cards[one].weights, "filter": cards[one].weights}


def test_how_long_texts_may_be_is_chosen_anew_where_a_training_starts_from_a_model(
    few: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    small = {name: value for name, value in SMALL.items() if not name.startswith("decoding.")}
    given = {"bundles.vision": parts["plain"], "bundles.language": parts["opt"]}
    words = ["train", "captioner", few / "clean", "--pipeline", "blip2_opt", *sets(small, TRAINED)]
    one, two = tmp_path / "one", tmp_path / "two"
    here(*words, "--out", one, *sets(given))
    shorter = {"model.language.max_tokens": 10, "model.qformer.max_tokens": 12}
    here(*words, "--out", two, "--init", one, *sets(shorter))
    before, after = read_card(one).blip2, read_card(two).blip2
    assert (after.language.max_tokens, after.qformer.max_tokens) == (10, 12)
    same = {"max_tokens": 24}
    assert before == after.model_copy(
        update={
            "language": after.language.model_copy(update=same),
            "qformer": after.qformer.model_copy(update=same),
        }
    )


def test_captioner_and_filter_are_trained_by_themselves(
    few: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    small = {name: value for name, value in SMALL.items() if not name.startswith("decoding.")}
    given = {"bundles.vision": parts["plain"], "bundles.language": parts["opt"]}
    for kind in ("captioner", "filter"):
        words = ["train", kind, few / "clean", "--out", tmp_path / kind, "--pipeline", "blip2_opt"]
        words += sets(small, TRAINED, given)
        here(*words)
        assert f"{kind}: trained before" in here(*words).err
        card = read_card(tmp_path / kind)
        assert (card.kind, card.family) == (kind, "blip2")
        assert card.parent  # stage 1, which is gone
