"""Models of any origin in runs: what they come to, what is remembered, what is refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import scenes
import torch
import world
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from theirs import transformers_folder

from capfilt.errors import CapfiltError
from capfilt.models.bundle import load_bundle
from capfilt.models.bundle_files import copy_bundle
from capfilt.models.cards import identity, read_card
from capfilt.models.checkpoints.foreign import AS_RELEASED, AS_TRANSFORMERS, import_checkpoint
from capfilt.models.checkpoints.names import Naming
from capfilt.models.med import MED
from capfilt.models.vocabulary import Vocabulary, train_vocabulary
from capfilt.provenance.rundir import RunDir, recorded_facts
from capfilt.settings import Images, Matching, Model, Text, Vision
from capfilt.stages import bootstrap as bootstrap_module
from capfilt.stages.given import take_given
from capfilt.stages.judge import filters_of
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.rescore import score_run
from capfilt.stages.train_one import train_one

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WEB = world.REAL / "photos.tar"
PASS = (RecaptionAndScore(),)
ROWS = ("samples/*", "captions/*", "scores/*", "manifests/*")
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train_vocabulary(["two small dogs on the long beach", "a red circle above a blue square"], 160)


@pytest.fixture(scope="module")
def theirs(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A captioner and a filter as transformers saves them."""
    folder = tmp_path_factory.mktemp("theirs")
    transformers_folder(folder / "captioner", "BlipForConditionalGeneration", vocabulary)
    transformers_folder(folder / "filter", "BlipForImageTextRetrieval", vocabulary)
    return {name: folder / name for name in ("captioner", "filter")}


@pytest.fixture
def hub(theirs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A hub with painters/filter; `main` of what is returned is its branch, and empty where it is offline."""
    branches = {"main": FIRST}
    for commit in (FIRST, SECOND):
        shutil.copytree(theirs["filter"], tmp_path / "hub" / commit)
    weights = load_file(tmp_path / "hub" / SECOND / "model.safetensors")
    weights["itm_head.bias"] += 1
    save_file(weights, tmp_path / "hub" / SECOND / "model.safetensors", {"format": "pt"})

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:  # noqa: ARG001
        commit = revision or branches["main"]
        if name != "painters/filter" or not commit:
            raise LocalEntryNotFoundError("offline")
        return str(tmp_path / "hub" / commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return branches


def _run(out: Path, given: dict[str, Any], **changes: Any) -> tuple[RunDir, list[Any]]:
    """Do the one pass with these models; returns the run and what was handed out to workers."""
    engine = world.InProcess()
    world.run(out, WEB, given, stages=PASS, engine=engine, **changes)
    return RunDir(out), engine.handed_out


def _shards(handed_out: list[Any]) -> list[str]:
    return [item.shard.name for item in handed_out if hasattr(item, "shard")]


# -- what a model comes to


def test_folders_of_transformers_are_bundles_of_the_run_and_give_the_same_rows_as_bundles(
    theirs: dict[str, Path], tmp_path: Path
) -> None:
    for role, folder in theirs.items():
        import_checkpoint(folder, tmp_path / role, role=role).write()  # type: ignore[arg-type]
    run, _ = _run(tmp_path / "run", theirs)
    other, _ = _run(tmp_path / "other", {role: tmp_path / role for role in theirs})

    for role, folder in theirs.items():
        card = read_card(run.model(role))
        assert card.origin is not None
        assert (card.origin.kind, card.origin.source) == ("transformers", str(folder))
        assert card.conventions == AS_TRANSFORMERS
        assert load_bundle(run.model(role)).card == card
        [(settings,)] = world.sql(run, f"SELECT settings FROM models WHERE kind = '{role}'")
        assert json.loads(settings)["origin"]["sha256"] == card.origin.sha256
    query = "SELECT pair_id, text, itc, itm FROM pairs ORDER BY pair_id"
    assert world.sql(run, query) == world.sql(other, query)


def test_what_is_not_chosen_is_as_the_model_was_made_and_rows_say_it(
    theirs: dict[str, Path], tmp_path: Path
) -> None:
    run, _ = _run(tmp_path / "run", theirs, decoding={"min_tokens": None, "max_tokens": None, "top_k": 50})

    [(decoding,)] = world.sql(run, "SELECT DISTINCT decoding FROM captions WHERE source = 'synthetic'")
    decoding = json.loads(decoding)
    assert (decoding["min_tokens"], decoding["max_tokens"], decoding["top_k"]) == (0, 20, 50)
    [(facts,)] = world.sql(run, "SELECT settings FROM stages")
    assert json.loads(facts)["matching"] == {"match_token": "cls", "clean_up": "none"}


def test_a_pth_takes_the_vocabulary_that_is_given(vocabulary: Vocabulary, tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    vocabulary.save(tmp_path / "words")
    model = Model(
        images=Images(size_px=16),
        vision=Vision(patch_px=8, width=64, layers=1, heads=1),
        text=Text(width=64, layers=1, heads=1, feed_forward=64, places=40, dropout=0.0),
    )
    weights = MED(model, len(vocabulary), ["itc", "itm"]).state_dict()
    temperature = {"temp": weights.pop("temperature")}
    file = tmp_path / "matcher.pth"
    torch.save({"model": Naming("filter", "released").write(weights) | temperature}, file)
    given = {"captioner": world.bundle(tmp_path / "captioner", "captioner", ["lm"]), "filter": file}

    run, _ = _run(tmp_path / "run", given, bundles={"vocabulary": str(tmp_path / "words")})

    card = read_card(run.model("filter"))
    assert card.origin is not None
    assert card.origin.kind == "pth"
    assert card.conventions == AS_RELEASED
    assert card.vocabulary_digest == vocabulary.digest
    with pytest.raises(CapfiltError, match="there is no vocabulary /no/words"):
        _run(tmp_path / "second", given, bundles={"vocabulary": "/no/words"})
    assert not (tmp_path / "second").exists()


def test_another_side_is_interpolated_for_every_model_that_is_given(
    theirs: dict[str, Path], bundles: dict[str, Path], tmp_path: Path
) -> None:
    given = {"captioner": bundles["captioner"], "filter": theirs["filter"]}
    run, _ = _run(tmp_path / "run", given, bundles={"size_px": 24})

    for role, before in (("captioner", 16), ("filter", 32)):
        card = read_card(run.model(role))
        assert (card.model.images.size_px, card.resized_from_px) == (24, before)
    with pytest.raises(CapfiltError, match=r"bundles\.captioner"):
        _run(tmp_path / "run", given)
    with pytest.raises(CapfiltError, match="a side of 20 px cannot be cut"):
        _run(tmp_path / "other", given, bundles={"size_px": 20})


def test_a_bundle_is_copied_whole_and_nothing_else_with_it(bundles: dict[str, Path], tmp_path: Path) -> None:
    original = shutil.copytree(bundles["filter"], tmp_path / "filter")
    world.calibrated(bundles["filter"], original, itm=0.6, itc=0.7)
    files = world.digests(original)
    (original / "notes.txt").write_text("mine")
    given = {**bundles, "filter": original}
    run, _ = _run(tmp_path / "run", given)

    assert world.digests(run.model("filter")) == files
    # What becomes of the original is nothing to the run.
    shutil.rmtree(original)
    _, handed_out = _run(tmp_path / "run", given)
    assert _shards(handed_out) == []


def test_a_joint_bundle_is_copied_with_its_halves_and_serves_as_either(tmp_path: Path) -> None:
    joint = world.bundle(tmp_path / "joint", "joint", ["itc", "itm", "lm"])
    run, _ = _run(tmp_path / "run", {"captioner": joint, "filter": joint})

    assert world.digests(run.model("captioner")) == world.digests(run.model("filter")) == world.digests(joint)
    assert world.sql(run, "SELECT count(*) FROM pairs WHERE itm IS NOT NULL") == [(10,)]


def test_a_bundle_without_one_of_its_files_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(bundles["filter"], tmp_path / "filter")
    (broken / "vocab.txt").unlink()
    with pytest.raises(CapfiltError, match=r"vocab\.txt is missing"):
        copy_bundle(broken, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# -- what goes on, and what is another run


def test_a_hub_id_is_pinned_at_the_first_start(
    hub: dict[str, str], bundles: dict[str, Path], tmp_path: Path
) -> None:
    given = {**bundles, "filter": "painters/filter"}
    run, _ = _run(tmp_path / "run", given)
    before = world.digests(run.provenance, *ROWS)
    card = read_card(run.model("filter"))
    assert card.origin is not None
    assert (card.origin.source, card.origin.revision) == ("painters/filter", FIRST)

    for branch in (SECOND, ""):  # the branch moves; then there is no network
        hub["main"] = branch
        _, handed_out = _run(tmp_path / "run", given)
        assert len(handed_out) == 1, "only the devices were asked for"
    _run(tmp_path / "run", {**bundles, "filter": f"painters/filter@{FIRST}"})
    assert world.digests(run.provenance, *ROWS) == before
    with pytest.raises(CapfiltError, match=r"bundles\.filter"):
        _run(tmp_path / "run", {**bundles, "filter": f"painters/filter@{SECOND}"})
    assert read_card(run.model("filter")) == card
    with pytest.raises(CapfiltError, match="the hub cannot be reached"):
        _run(tmp_path / "new", given)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("change", ["moved", "gone", "weights", "tokenizer"])
def test_a_folder_may_move_or_go_and_may_not_become_another(
    theirs: dict[str, Path], bundles: dict[str, Path], tmp_path: Path, change: str
) -> None:
    folder = shutil.copytree(theirs["filter"], tmp_path / "filter")
    given = {**bundles, "filter": folder}
    _run(tmp_path / "run", given)

    if change == "moved":
        given["filter"] = folder.rename(tmp_path / "elsewhere")
    elif change == "gone":
        shutil.rmtree(folder)
    elif change == "weights":
        weights = load_file(folder / "model.safetensors")
        weights["itm_head.bias"] += 1
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    else:
        words = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**words, "do_lower_case": False}))

    if change in ("moved", "gone"):
        assert len(_run(tmp_path / "run", given)[1]) == 1
    else:
        with pytest.raises(CapfiltError, match=r"other choices[\s\S]*bundles\.filter"):
            _run(tmp_path / "run", given)


def test_a_run_killed_while_a_model_is_taken_in_goes_on(
    hub: dict[str, str], bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    given = {**bundles, "filter": "painters/filter"}
    monkeypatch.setattr(bootstrap_module, "take_given", killed)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "run", given)
    monkeypatch.setattr(bootstrap_module, "take_given", take_given)
    facts = recorded_facts(RunDir(tmp_path / "run"))
    hub["main"] = SECOND

    run, _ = _run(tmp_path / "run", given)

    card = read_card(run.model("filter"))
    assert card.origin is not None
    assert card.origin.revision == FIRST
    assert facts["bundles"]["filter"] == identity(card)


@pytest.mark.parametrize(
    ("roles", "told"),
    [
        ({"captioner": "filter"}, "is a filter and cannot write captions"),
        ({"filter": "captioner"}, "is a captioner and cannot score pairs"),
    ],
)
def test_a_checkpoint_that_cannot_do_its_work_is_refused_before_a_run_is_made(
    theirs: dict[str, Path],
    bundles: dict[str, Path],
    tmp_path: Path,
    roles: dict[str, str],
    told: str,
) -> None:
    given = {**bundles, **{role: theirs[other] for role, other in roles.items()}}
    with pytest.raises(CapfiltError, match=told):
        _run(tmp_path / "run", given)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_used_is_not_looked_at(bundles: dict[str, Path], tmp_path: Path) -> None:
    given = {"captioner": tmp_path / "nowhere", "filter": bundles["filter"]}
    stages = (RecaptionAndScore(recaption=False),)
    run = world.run(tmp_path / "run", WEB, given, stages=stages, recaption=False).run
    assert world.sql(run, "SELECT count(itm) FROM pairs") == [(5,)]


# -- a further filter of a run


def test_a_further_filter_of_any_origin_is_taken_in_once(
    hub: dict[str, str], bundles: dict[str, Path], tmp_path: Path
) -> None:
    run, _ = _run(tmp_path / "run", bundles)
    settings = world.settings(bundles)
    digest = score_run(run, "painters/filter", settings, world.InProcess(), world.QUIET)  # type: ignore[arg-type]
    files = world.digests(run.provenance, *ROWS)
    hub["main"] = ""

    again = world.InProcess()
    assert score_run(run, "painters/filter", settings, again, world.QUIET) == digest  # type: ignore[arg-type]

    assert len(again.handed_out) == 1
    assert world.digests(run.provenance, *ROWS) == files
    assert filters_of(run) == [read_card(bundles["filter"]).weights, digest]
    kept = [path.name for path in run.model("filter").parent.iterdir() if path.name.startswith("filter-")]
    assert len(kept) == 1
    assert read_card(run.model(kept[0])).weights == digest


def test_the_runs_own_filter_is_not_asked_to_read_otherwise(bundles: dict[str, Path], tmp_path: Path) -> None:
    run, _ = _run(tmp_path / "run", bundles)
    otherwise = world.settings(bundles, filter=Matching(match_token="cls").model_dump())
    with pytest.raises(CapfiltError, match=r"with another filter\.match_token=enc"):
        score_run(run, bundles["filter"], otherwise, world.InProcess(), world.QUIET)
    score_run(run, bundles["second"], otherwise, world.InProcess(), world.QUIET)


# -- a model to start from


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> str:
    """30 drawn pairs."""
    folder = tmp_path_factory.mktemp("drawn")
    scenes.make(folder, seed=4, clean=30, web=0)
    return str(folder / "clean")


def _trained(kind: Any, clean: str, out: Path, init: Path | str, said: Callable[[str], None]) -> Any:
    phase = {"steps": 2, "batch_size": 8}
    settings = world.changed(
        world.Bootstrap(),
        {"compute": {"device": "cpu", "workers": 1, "precision": "fp32"}, "bundles": {"init": init}},
        {"captioner_training": {"phases": [{"lm": 1.0, **phase}]}},
        {"filter_training": {"phases": [{"itc": 1.0, "itm": 1.0, **phase}]}},
    )
    progress = world.QuietProgress()
    progress.say = said  # type: ignore[method-assign]
    return train_one(kind, clean, out, settings, world.InProcess(), progress)


@pytest.mark.parametrize(
    ("kind", "start", "lacks"),
    [
        ("captioner", "captioner", []),
        ("captioner", "filter", ["word_head.bias", "word_head.dense", "word_head.norm"]),
        ("filter", "captioner", ["image_projection", "itm_head", "temperature", "text_projection"]),
    ],
)
def test_heads_that_the_start_model_lacks_are_named(
    theirs: dict[str, Path], clean: str, tmp_path: Path, kind: str, start: str, lacks: list[str]
) -> None:
    said: list[str] = []
    card = _trained(kind, clean, tmp_path / "out", theirs[start], said.append)

    names = sorted({name.removesuffix(".bias") for name in lacks})
    assert sorted(name for name in card.training["fresh"]) == names
    told = [line for line in said if "start fresh" in line]
    assert len(told) == bool(lacks)
    assert all(name in told[0] for name in names)
    assert any("out of a transformers checkpoint" in line for line in said)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_heads_that_were_drawn_when_the_start_model_was_read_are_named_too(
    theirs: dict[str, Path], clean: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(theirs["filter"], tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("itm_head")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    said: list[str] = []

    card = _trained("filter", clean, tmp_path / "out", folder, said.append)

    assert card.training["fresh"] == ["itm_head"]
    assert any("lacks itm_head; they start fresh" in line for line in said)
    assert load_bundle(tmp_path / "out").card == card


def test_a_start_model_that_sees_no_pictures_in_its_text_is_refused_by_name(
    clean: str, tmp_path: Path
) -> None:
    blind = world.bundle(tmp_path / "blind", "filter", ["itc"])
    with pytest.raises(CapfiltError, match=r"lacks text\.layers\.0\.cross\."):
        _trained("captioner", clean, tmp_path / "out", blind, lambda _: None)
