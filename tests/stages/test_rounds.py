"""Rounds of bootstrapping: a further one is a run in the first, begun from a model trained on its export."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import scenes
import torch
import world

from capfilt.data.apart import Apart, held_out_places
from capfilt.data.clean import read_clean, split
from capfilt.data.sources import find_shards
from capfilt.data.stream import TarPool
from capfilt.draws import seed_of
from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.models.bundle import load_bundle
from capfilt.models.cards import read_card
from capfilt.provenance.lineage import export_digest, rounds_of
from capfilt.provenance.rundir import RunDir, lock, recorded_facts, stage_rows
from capfilt.reports.summary import summarise
from capfilt.settings import Bootstrap, Clean, Images, Input, Phase, Training
from capfilt.stages.bootstrap import Finished, Request
from capfilt.stages.export import ExportPairs
from capfilt.stages.judge import JudgePairs
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.rounds import bootstrap_rounds
from capfilt.stages.train import models_to_train

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from capfilt.stages.context import Stage

PHASE = {"steps": 4, "batch_size": 8, "learning_rate": 1e-2}
SETTINGS = changed(
    Bootstrap(
        model=world.TINY,
        captioner_training=Training(phases=(Phase(lm=1.0, **PHASE),)),
        filter_training=Training(phases=(Phase(itc=1.0, itm=1.0, **PHASE),)),
        next_round=Training(phases=(Phase(itc=1.0, itm=1.0, lm=1.0, **PHASE),), checkpoint_every=2),
        decoding=world.DECODING,
    ),
    {
        "compute": {"device": "cpu", "workers": 1, "precision": "fp32", "batch_size": 8},
        "judge": {"itm": "0", "fraction": 0.5},
        "export": {"accept_weak_filter": True, "texts": "all"},
    },
)


def _pipeline(settings: Bootstrap) -> list[Stage]:
    return [
        *models_to_train(settings),
        RecaptionAndScore(settings.recaption, settings.score),
        JudgePairs(),
        ExportPairs(),
    ]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    scenes.make(folder, seed=5, clean=48, web=24, per_shard=12)
    return folder


def _bootstrap(
    drawn: Path, out: Path, *, progress: Any = world.QUIET, pipeline: Any = _pipeline, **changes: Any
) -> list[Finished]:
    settings = changed(SETTINGS, {"rounds": 3}, changes)
    request = Request(str(drawn / "web"), str(drawn / "clean"), out, settings, pipeline(settings))
    return bootstrap_rounds(request, pipeline, world.InProcess(), progress)


@pytest.fixture(scope="module")
def three(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Finished]:
    """Three rounds; not to be changed."""
    return _bootstrap(drawn, tmp_path_factory.mktemp("three") / "run")


def _lasting(run: RunDir) -> dict[str, str]:
    return world.digests(
        run.path,
        "**/models/*/*.safetensors",
        "**/models/**/capfilt.json",
        "**/provenance/samples/*",
        "**/provenance/captions/*",
        "**/provenance/scores/*",
        "**/provenance/next.json",
        "**/provenance/previous.json",
        "**/export/*",
    )


# -- what a round is


def test_every_round_is_a_whole_run_and_the_first_lies_as_it_does_without_rounds(
    three: list[Finished], drawn: Path, tmp_path: Path
) -> None:
    run = three[0].run
    [alone] = _bootstrap(drawn, tmp_path / "alone", rounds=1)

    assert [finished.run.path for finished in three] == [
        run.path,
        run.path / "rounds" / "2",
        run.path / "rounds" / "3",
    ]
    own = _lasting(RunDir(alone.run.path))
    here = _lasting(run)
    assert len(own) > 12
    assert {name: here.get(name) for name in own} == own
    for number, finished in enumerate(three, start=1):
        names = [row["stage"] for row in stage_rows(finished.run)]
        assert names[:4] == ["train_captioner_and_filter", "recaption_and_score", "judge", "export"]
        assert names[4:] == (["pretrain_next"] if number < 3 else [])
        assert summarise(RunDir.open(finished.run.path))["samples"]["ok"] == 24


def test_rows_say_which_round_they_are_of(three: list[Finished]) -> None:
    names = set()
    for number, finished in enumerate(three, start=1):
        for table in ("samples", "captions"):
            assert world.sql(finished.run, f"SELECT DISTINCT round FROM {table}") == [(number,)]
        names |= {name for (name,) in world.sql(finished.run, "SELECT pair_id FROM captions")}
    counts = [world.sql(finished.run, "SELECT count(*) FROM captions")[0][0] for finished in three]
    assert len(names) == sum(counts), "a pair of two rounds has one name"


def test_a_round_has_a_seed_of_its_own_that_is_recorded(three: list[Finished]) -> None:
    seeds = [recorded_facts(finished.run)["seed"] for finished in three]

    assert seeds == [0, seed_of("round", 0, 2), seed_of("round", 0, 3)]
    for seed, finished in zip(seeds, three, strict=True):
        query = "SELECT DISTINCT seed FROM captions WHERE source = 'synthetic'"
        assert world.sql(finished.run, query) == [(seed,)]
        for kind in ("captioner", "filter"):
            assert read_card(finished.run.model(kind)).training["seed"] == seed


# -- the model between two rounds


def test_the_model_between_two_rounds_is_fresh_and_the_next_one_starts_from_it(
    three: list[Finished],
) -> None:
    for before, after in pairwise(three):
        made = read_card(before.run.model("next"))
        assert (made.kind, made.parent, made.training["init"]) == ("joint", None, None)
        assert made.weights == read_card(after.run.model("init")).weights
        for kind in ("captioner", "filter"):
            assert read_card(after.run.model(kind)).parent == made.weights
            assert read_card(before.run.model(kind)).parent != made.weights
    first, second = (load_bundle(one.run.model("next")).model.state_dict() for one in three[:2])
    assert not any(torch.equal(first[name], second[name]) for name in first if name.endswith("weight"))


def test_it_is_trained_on_what_was_kept_and_on_clean_pairs_that_no_filter_is_measured_on(
    three: list[Finished], drawn: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs: list[Any] = []

    class Watching(world.InProcess):
        def run(self, work: Any, items: Sequence[Any], **more: Any) -> Iterator[tuple[int, Any]]:
            jobs.extend(items)
            return super().run(work, items, **more)

    monkeypatch.setattr(world, "InProcess", Watching)
    _bootstrap(drawn, tmp_path / "run", rounds=2)
    [job] = [job for job in jobs if hasattr(job, "pools")]
    refused: Counter[str] = Counter()
    exported, clean = (
        [reference for shard in range(len(pool)) for reference in pool.read(shard, refused)]
        for pool in job.pools
    )

    # All kept texts, each with its source, and nothing else.
    kept = world.sql(three[0].run, "SELECT source, text FROM pairs WHERE keep ORDER BY ALL")
    assert sorted((text.source, text.text) for one in exported for text in one.texts) == kept
    assert job.clean_pools == (1,)
    # By hand: the pairs that the next filter's training holds out are the ones that are missing.
    seed = seed_of("round", 0, 2)
    pairs = read_clean(find_shards(drawn / "clean"), Input(), Images(size_px=16), cache_mb=0)
    train, held_out = split(pairs, Clean(), seed=seed)
    assert held_out
    assert {(one.path, one.offset) for one in clean} == {
        (pairs.pairs[index].path, pairs.pairs[index].offset) for index in train
    }
    assert read_card(RunDir(tmp_path / "run" / "rounds" / "2").model("filter")).training["held_out"] == len(
        held_out
    )


def test_a_pool_says_what_is_left_out_of_it(drawn: Path) -> None:
    shards = tuple(find_shards(drawn / "clean"))
    pool = TarPool(shards, Input(), "clean")
    places = held_out_places(shards, Input(), Clean(), seed=1)

    assert Apart(pool, frozenset()).facts[:-1] == pool.facts == Apart(pool, places).facts[:-1]
    assert Apart(pool, places).facts != Apart(pool, frozenset()).facts
    assert held_out_places(shards, Input(), Clean(), seed=2) != places


def test_both_rounds_record_the_export_and_the_pairs_it_was_trained_on(three: list[Finished]) -> None:
    for number, (before, after) in enumerate(pairwise(three), start=1):
        left = json.loads(before.run.next_file.read_text())
        manifest = json.loads(before.run.export_manifest.read_text())
        card = read_card(before.run.model("next"))
        assert left == json.loads(after.run.previous_file.read_text())
        assert (left["round"], left["model"], left["data"]) == (number, card.weights, card.data)
        assert left["export"] == manifest["digest"] == export_digest(manifest)
        assert left["captioner"] == read_card(before.run.model("captioner")).weights
        assert left["filter"] == read_card(before.run.model("filter")).weights
        recorded = "SELECT data, parent FROM models WHERE model = ?"
        for run in (before.run, after.run):
            assert world.sql(run, recorded, card.weights) == [(card.data, None)]
    # Each training's measurements under its own name, though two of them are joint models.
    assert world.sql(three[1].run, "SELECT DISTINCT model FROM metrics ORDER BY 1") == [
        ("captioner",),
        ("filter",),
        ("init",),
        ("next",),
    ]


def test_models_that_share_an_image_encoder_share_the_one_of_the_round(drawn: Path, tmp_path: Path) -> None:
    pretrain = SETTINGS.next_round
    assert pretrain is not None
    rounds = _bootstrap(
        drawn,
        tmp_path / "run",
        rounds=2,
        model={"shared_vision": True},
        pretrain=pretrain.model_dump(),
        next_round=None,
    )
    encoders = []
    for finished, start in zip(rounds, ("joint", "init"), strict=True):
        names = (start, "captioner", "filter")
        [encoder] = {read_card(finished.run.model(name)).image_encoder for name in names}
        encoders.append(encoder)
    assert encoders[0] != encoders[1]


# -- again, and further


def test_more_rounds_on_a_finished_run_go_on_after_the_last_one(
    three: list[Finished], drawn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    _bootstrap(drawn, out, rounds=1)
    before = {path: path.stat().st_mtime_ns for path in _files(out)}
    done: list[str] = []

    class Watching(world.QuietProgress):
        def begin(self, task: str, unit: str, total: int | None = None) -> None:  # noqa: ARG002
            done.append(task)

        def update(self, task: str, done_: int, total: int | None = None) -> None:  # noqa: ARG002
            done.append(f"{task}: work")

    for rounds in (2, 3):
        done.clear()
        _bootstrap(drawn, out, rounds=rounds, progress=Watching())
        assert done.count("pretrain next: work") == 4
        assert done.count("train captioner: work") == 4
        assert {path: path.stat().st_mtime_ns for path in before} == before

    assert _lasting(RunDir(out)) == _lasting(three[0].run)
    assert rounds_of(RunDir(out))[-1][1].path == out / "rounds" / "3"
    again = _bootstrap(drawn, out, rounds=3)
    assert [one.outcomes[-1][1].detail for one in again[:2]] == ["joint: trained before"] * 2


def _files(out: Path) -> list[Path]:
    patterns = ("models/*/*", "provenance/captions/*", "provenance/scores/*", "export/*")
    return [path for pattern in patterns for path in out.glob(pattern)]


@pytest.mark.parametrize(
    "moment",
    ["round 2 of 3", "pretrain next 3", "pretrain next done", "train captioner 3 of round 2"],
)
def test_rounds_killed_anywhere_end_with_the_bytes_of_undisturbed_ones(
    three: list[Finished], drawn: Path, tmp_path: Path, moment: str
) -> None:
    class Killed(BaseException):
        """Stands for SIGKILL."""

    class Stopping(world.QuietProgress):
        def __init__(self) -> None:
            self.round = ""

        def say(self, text: str) -> None:
            self.round = text.partition(" of ")[0] if text.startswith("round ") else self.round
            self._stop(text)

        def update(self, task: str, done: int, total: int | None = None) -> None:  # noqa: ARG002
            self._stop(f"{task} {done}", f"{task} {done} of {self.round}")

        def end(self, task: str) -> None:
            self._stop(f"{task} done")

        def _stop(self, *moments: str) -> None:
            if moment in moments:
                raise Killed

    out = tmp_path / "run"
    with pytest.raises(Killed):
        _bootstrap(drawn, out, progress=Stopping())
    assert _lasting(RunDir(out)) != _lasting(three[0].run)

    _bootstrap(drawn, out)

    assert _lasting(RunDir(out)) == _lasting(three[0].run)
    assert not list(out.rglob("checkpoint.pt"))


def test_a_later_round_that_is_damaged_is_mended_in_its_turn(
    three: list[Finished], drawn: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(three[0].run.path, tmp_path / "run")
    gone = sorted(RunDir(out).round(2).captions.glob("*.parquet"))[0]
    gone.unlink()

    _bootstrap(drawn, out)

    assert gone.exists()
    assert _lasting(RunDir(out)) == _lasting(three[0].run)


def test_the_first_runs_lock_is_held_over_all_rounds(drawn: Path, tmp_path: Path) -> None:
    refused = []

    class Intruding(world.QuietProgress):
        def begin(self, task: str, unit: str, total: int | None = None) -> None:  # noqa: ARG002
            with pytest.raises(CapfiltError, match="in use by process"), lock(RunDir(tmp_path / "run")):
                pass
            refused.append(task)

    _bootstrap(drawn, tmp_path / "run", rounds=2, progress=Intruding())

    assert refused == [
        *("train captioner", "train filter", "recaption and score", "pretrain next"),
        *("train captioner", "train filter", "recaption and score"),
    ]


# -- what ends the rounds, or does not begin them


def test_a_withheld_export_ends_the_rounds_with_the_command_to_type(drawn: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Hearing(world.QuietProgress):
        def say(self, text: str) -> None:
            said.append(text)

    [finished] = _bootstrap(drawn, tmp_path / "run", progress=Hearing(), judge={"itm": "1"})

    assert [outcome.status for _, outcome in finished.outcomes] == ["done", "done", "done", "withheld"]
    assert finished.next_command.startswith(f"capfilt judge {tmp_path / 'run'} ")
    assert "round 1 exports nothing, so that round 2 has to wait" in said
    assert not (tmp_path / "run" / "rounds").exists()
    assert not RunDir(tmp_path / "run").model("next").exists()


def test_an_export_of_an_earlier_policy_does_not_stand_in_for_one_that_is_withheld(
    drawn: Path, tmp_path: Path
) -> None:
    _bootstrap(drawn, tmp_path / "run", rounds=1)
    assert RunDir(tmp_path / "run").export_manifest.exists()

    [finished] = _bootstrap(drawn, tmp_path / "run", rounds=2, judge={"itm": "1"})

    assert finished.is_withheld
    assert not RunDir(tmp_path / "run").model("next").exists()


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"judge": {"fraction": 0.4}}, r"policy: .*50%.* -> .*40%"),
        ({"export": {"texts": "best"}}, "texts: all -> best"),
        ({"stream": {"synthetic": 0.5}}, r"stream\.synthetic: 1\.0 -> 0\.5"),
        ({"next_round": {"phases": [{"lm": 1.0, **PHASE}]}}, r"training\.phases"),
    ],
)
def test_what_a_round_began_from_is_not_changed_under_it(
    three: list[Finished], drawn: Path, tmp_path: Path, change: dict[str, Any], shown: str
) -> None:
    out = shutil.copytree(three[0].run.path, tmp_path / "run")
    before = world.digests(out)

    with pytest.raises(CapfiltError, match=shown) as refused:
        _bootstrap(drawn, out, **change)

    assert str(out / "rounds" / "2") in refused.value.what
    assert "recorded values again" in refused.value.fix
    assert world.digests(out) == before


def test_an_export_of_other_pairs_under_the_same_words_is_refused_too(
    three: list[Finished], drawn: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(three[0].run.path, tmp_path / "run")
    run = RunDir(out)
    record = json.loads(run.next_file.read_text())
    record["facts"]["export"] = "0" * 64
    run.next_file.write_text(json.dumps(record))
    models = world.digests(out, "**/models/*/*.safetensors")

    with pytest.raises(CapfiltError, match="export: 000"):
        _bootstrap(drawn, out)

    assert world.digests(out, "**/models/*/*.safetensors") == models


def test_a_round_that_was_removed_is_done_anew_from_other_choices(
    three: list[Finished], drawn: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(three[0].run.path, tmp_path / "run")
    shutil.rmtree(out / "rounds")

    rounds = _bootstrap(drawn, out, rounds=2, stream={"synthetic": 0.5})

    old, new = (read_card(run.model("next")).weights for run in (three[0].run, rounds[0].run))
    assert old != new == read_card(rounds[1].run.model("init")).weights


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"bundles": {"captioner": "a/model"}}, "a captioner that is given is not fine-tuned", "--captioner"),
        ({"recaption": False}, "without a captioner", "--no-recaption"),
        ({"next_round": None}, "says nothing of a pre-training", r"\[\[next_round\.phases\]\]"),
        ({"compute": {"processes": 2}}, "in one process", "torchrun"),
    ],
)
def test_what_no_next_round_could_be_done_with_is_refused_before_any_work(
    drawn: Path, tmp_path: Path, change: dict[str, Any], what: str, fix: str
) -> None:
    with pytest.raises(CapfiltError, match=what) as refused:
        _bootstrap(drawn, tmp_path / "run", **change)

    assert re.search(fix, refused.value.fix)
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_without_an_export_has_no_next_round(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="exports nothing") as refused:
        _bootstrap(drawn, tmp_path / "run", pipeline=lambda settings: _pipeline(settings)[:-1])

    assert "ExportPairs()" in refused.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_filter_that_is_given_judges_every_round_alike(
    bundles: dict[str, Path], drawn: Path, tmp_path: Path
) -> None:
    rounds = _bootstrap(drawn, tmp_path / "run", rounds=2, bundles={"filter": bundles["filter"]})

    digest = read_card(bundles["filter"]).weights
    for finished in rounds:
        assert world.sql(finished.run, "SELECT DISTINCT filter FROM scores") == [(digest,)]
    first, second = (read_card(finished.run.model("captioner")) for finished in rounds)
    assert (first.parent, second.parent) == (None, read_card(rounds[0].run.model("next")).weights)


def test_a_round_is_no_place_for_a_run_of_its_own(three: list[Finished], drawn: Path, tmp_path: Path) -> None:
    out = shutil.copytree(three[0].run.path, tmp_path / "run")

    with pytest.raises(CapfiltError, match="started with other choices") as refused:
        _bootstrap(drawn, out / "rounds" / "2", rounds=1)

    assert "round: 2 -> 1" in refused.value.what
