"""The comparison from a run to its figures: what is done, what is not done again, what is refused."""

from __future__ import annotations

import functools
import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import drawn
import numpy as np
import pytest
import scenes
import world
from small_language import language_folder, small_structure

from capfilt.data.stream import Stream
from capfilt.errors import CapfiltError
from capfilt.evaluation.intervals import bootstrap
from capfilt.layers import changed
from capfilt.models.cards import read_card
from capfilt.models.language_model import build_language_model
from capfilt.settings import Bundles, Phase, Training
from capfilt.stages.evaluate import caption, retrieval
from capfilt.stages.evaluate.retrieval import RetrievalChoices
from capfilt.stages.gain.arm_job import ArmJob, run_arm
from capfilt.stages.gain.arms import ARMS
from capfilt.stages.gain.measure import GainRequest, measure_gain, over_seeds, settings_of, with_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir
    from capfilt.stages.gain.measure import Gain

JOINT = Training(
    phases=(Phase(itc=1.0, itm=1.0, lm=1.0, steps=4, batch_size=6, learning_rate=3e-3),), checkpoint_every=1
)
LM = Training(phases=(Phase(lm=1.0, steps=2, batch_size=6, learning_rate=1e-3),))
MATCHING = Training(phases=(Phase(itc=1.0, itm=1.0, steps=2, batch_size=6, learning_rate=1e-3),))


class Killed(Exception):
    """Stands for SIGKILL."""


class KilledIn(world.InProcess):
    """An engine whose worker is killed when an arm's pre-training has done three steps."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.arm = arm

    def run(
        self,
        work: Callable[..., Any],
        items: Sequence[Any],
        *,
        devices: Sequence[str],
        threads: int,
        hear: Callable[[int, int, int], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        def heard(number: int, done: int, total: int) -> None:
            if (
                isinstance(items[number], ArmJob)
                and items[number].arm == self.arm
                and (done, total) == (3, 4)
            ):
                raise Killed
            if hear is not None:
                hear(number, done, total)

        return super().run(work, items, devices=devices, threads=threads, hear=heard, say=say)


class HandingNothingOut(world.InProcess):
    """An engine that remembers which arms it was given, and does none of them."""

    def run(self, work: Any, items: Any, **more: Any) -> Iterator[tuple[int, Any]]:
        if work is not run_arm:
            return super().run(work, items, **more)
        self.handed_out += items
        return iter(())


@pytest.fixture(autouse=True, scope="module")
def _few_resamples() -> Iterator[None]:
    """Intervals over pictures are tested elsewhere; here they would be most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (caption, retrieval):
            patch.setattr(module, "bootstrap", functools.partial(bootstrap, resamples=10))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clean`, `web` and `test`: 24, 20 and 9 drawn pairs, the last of scenes that are all different."""
    folder = tmp_path_factory.mktemp("data")
    scenes.make(folder, seed=6, clean=24, web=20, per_shard=12)
    rng = random.Random(1)
    different = {}
    while len(different) < 9:
        scene = scenes.draw_scene(rng, unseen=False)
        different[tuple(sorted(scene.items))] = scene
    rows = [
        (f"t{n}", {"png": scenes.picture(scene, rng), "txt": scenes.caption(scene, rng).encode()})
        for n, scene in enumerate(different.values())
    ]
    scenes.write_shards(folder / "test", rows, 100)
    return folder


@pytest.fixture(scope="module")
def bootstrapped(data: Path, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run whose settings say how a next model is pre-trained; not to be changed."""
    own = {
        "model": world.TINY.model_dump(),
        "next_round": JOINT.model_dump(),
        "captioner_training": LM.model_dump(),
        "filter_training": MATCHING.model_dump(),
        "judge": {"itm": "0.5"},
    }
    return world.run(tmp_path_factory.mktemp("run") / "run", data / "web", bundles, **own).run


@pytest.fixture
def run(bootstrapped: RunDir, tmp_path: Path) -> RunDir:
    return world.copied(bootstrapped, tmp_path / "run")


def compared(
    run: RunDir, data: Path, engine: Any = None, settings: dict[str, Any] | None = None, **asked: Any
) -> Gain:
    values: dict[str, Any] = {"arms": ("none", "C+F"), "seeds": (0,), "looks": 2, "top_k": 4, **asked}
    request = GainRequest(
        run=run.path,
        clean=str(data / "clean"),
        test=values.pop("test", str(data / "test")),
        settings=changed(settings_of(run), settings or {}),
        **values,
    )
    return measure_gain(request, engine or world.InProcess(), world.QUIET)


@pytest.fixture(scope="module")
def done(bootstrapped: RunDir, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Gain]:
    """A run with both arms done; not to be changed."""
    run = world.copied(bootstrapped, tmp_path_factory.mktemp("done") / "run")
    return run, compared(run, data)


def strictly(text: str) -> Any:
    """Read JSON as every other reader does: NaN and infinities are no JSON."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


# -- what is done


def test_every_arm_is_measured_along_its_training_and_after_both_fine_tunings(
    done: tuple[RunDir, Gain],
) -> None:
    _, gain = done
    points = {(row["arm"], row["when"], row["step"], row["task"]) for row in gain.rows}
    assert points == {
        (arm, when, step, task)
        for arm in ("none", "C+F")
        for when, step in (("pre-trained", 2), ("pre-trained", 4), ("fine-tuned", 4))
        for task in ("retrieval", "caption")
    }
    assert {row["seed"] for row in gain.rows} == {0}
    assert gain.missing == [("F", 0), ("C", 0), ("repeated", 0)]
    assert set(gain.texts) == {"none", "F", "C", "C+F", "repeated"}


def test_the_figures_are_those_of_the_models_that_it_leaves(done: tuple[RunDir, Gain], data: Path) -> None:
    run, gain = done
    for when, bundle in (("pre-trained", "joint"), ("fine-tuned", "filter")):
        found = drawn.evaluated(
            "retrieval",
            run.gain / "CF-0" / bundle,
            data / "test",
            RetrievalChoices(top_k=4),
            settings={"compute": {"batch_size": 8}},
        )
        figures = {key: figure.value for key, figure in drawn.figures(found).items()}
        mine = {
            (row["table"], row["row"], row["measure"]): row["value"]
            for row in gain.rows
            if (row["arm"], row["when"], row["step"], row["task"]) == ("C+F", when, 4, "retrieval")
        }
        assert mine == figures


def test_arms_differ_in_their_texts_and_in_nothing_else(done: tuple[RunDir, Gain]) -> None:
    run, _ = done
    cards = [read_card(run.gain / f"{arm}-0" / "joint") for arm in ("none", "CF")]
    facts = [
        {name: value for name, value in card.training.items() if name not in ("fingerprint", "pairs")}
        for card in cards
    ]
    data, streams = ([fact.pop(name) for fact in facts] for name in ("data", "stream"))
    assert facts[0] == facts[1]
    assert data[0] != data[1]
    # How often a text is met makes up for how many there are; the clean ones are met alike.
    assert streams[0]["clean"] == streams[1]["clean"]
    assert cards[0].weights != cards[1].weights
    tuned = [read_card(run.gain / "CF-0" / kind) for kind in ("captioner", "filter")]
    assert {card.parent for card in tuned} == {cards[1].weights}


def test_what_is_written_is_json_with_the_captions_and_no_model_on_the_way_is_left(
    done: tuple[RunDir, Gain],
) -> None:
    run, gain = done
    record = strictly((run.gain / "gain.json").read_text())
    assert record["rows"] == gain.rows
    assert record["missing"] == [["F", 0], ["C", 0], ["repeated", 0]]
    result = strictly((run.gain / "CF-0" / "result.json").read_text())
    assert {caption["key"] for caption in result["captions"]} == {f"t{n}" for n in range(9)}
    assert len(result["captions"]) == 9 * 3
    assert set(result["models"]) == {"joint", "captioner", "filter"}
    assert sorted(path.name for path in (run.gain / "CF-0").iterdir()) == [
        "captioner",
        "filter",
        "joint",
        "result.json",
    ]


def test_without_fine_tuning_and_without_clean_pairs(run: RunDir, data: Path) -> None:
    engine = world.InProcess()
    gain = compared(run, data, engine, arms=("F",), fine_tune=False, with_clean=False, looks=1)
    assert {row["when"] for row in gain.rows} == {"pre-trained"}
    assert {row["step"] for row in gain.rows} == {4}
    [pool] = engine.handed_out[-1].pretraining.pools
    assert pool.arm == "F"
    assert read_card(run.gain / "F-0" / "joint").training["held_out"] == 0


# -- what is not done again


def test_what_is_done_is_not_done_again(done: tuple[RunDir, Gain], data: Path, tmp_path: Path) -> None:
    first, gain = done
    run = world.copied(first, tmp_path / "run")
    files, engine = world.digests(run.gain), world.InProcess()

    again = compared(run, data, engine)

    assert again == gain
    assert [job for job in engine.handed_out if isinstance(job, ArmJob)] == []
    assert world.digests(run.gain) == files


def test_an_arm_that_was_done_before_stays_in_the_table(
    done: tuple[RunDir, Gain], data: Path, tmp_path: Path
) -> None:
    first, gain = done
    run, engine = world.copied(first, tmp_path / "run"), world.InProcess()

    more = compared(run, data, engine, arms=("F",))

    assert [job.arm for job in engine.handed_out if isinstance(job, ArmJob)] == ["F"]
    assert {row["arm"] for row in more.rows} == {"none", "F", "C+F"}
    assert [row for row in more.rows if row["arm"] != "F"] == gain.rows
    assert more.missing == [("C", 0), ("repeated", 0)]


@pytest.mark.parametrize(
    "settings",
    [
        {"next_round": {"phases": [{**JOINT.phases[0].model_dump(), "learning_rate": 1e-3}]}},
        {"next_round": {"augment": {"flip": 0.5}}},
        {"filter_training": {"phases": [{**MATCHING.phases[0].model_dump(), "steps": 3}]}},
        {"model": {"embed": 4}},
        {"bundles": {"text": "bert-base-uncased"}},
        {"clean": {"held_out": 0.3}},
        {"decoding": {"max_tokens": 5}},
        {"stream": {"clean": 0.5}},
        {"input": {"max_pixels": 5000}},
        {"compute": {"threads": 2}},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_an_arm_of_other_choices_is_still_to_do(
    done: tuple[RunDir, Gain], data: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    run, engine = world.copied(done[0], tmp_path / "run"), HandingNothingOut()

    gain = compared(run, data, engine, settings)

    # What was measured under other choices does not stand beside it.
    assert [job.arm for job in engine.handed_out if isinstance(job, ArmJob)] == ["none", "C+F"]
    assert gain.rows == []
    assert len(gain.missing) == 5


@pytest.mark.parametrize("settings", [{"compute": {"decoders": 1}}, {"next_round": {"validate_every": 1}}])
def test_what_changes_no_figure_changes_no_arm(
    done: tuple[RunDir, Gain], data: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    run, engine = world.copied(done[0], tmp_path / "run"), HandingNothingOut()
    assert compared(run, data, engine, settings) == done[1]


def test_a_training_that_is_done_is_trained_anew_where_its_models_on_the_way_are_gone(
    done: tuple[RunDir, Gain], data: Path, tmp_path: Path
) -> None:
    """They are not kept beside a result, and a finished training does not come by them again."""
    first, before = done
    run = world.copied(first, tmp_path / "run")

    gain = compared(run, data, arms=("none",), top_k=2)

    assert {row["arm"] for row in gain.rows} == {"none"}
    assert ("C+F", 0) in gain.missing
    by_itc = [
        [
            (row["when"], row["step"], row["value"])
            for row in of
            if (row["row"], row["arm"]) == ("ITC", "none")
        ]
        for of in (gain.rows, before.rows)
    ]
    assert by_itc[0] == by_itc[1]
    assert len(by_itc[0]) == 3 * 6  # three looks, two directions, R@1, 5 and 10


def test_an_arm_that_was_killed_ends_with_the_figures_of_an_undisturbed_one(
    done: tuple[RunDir, Gain], run: RunDir, data: Path
) -> None:
    with pytest.raises(Killed):
        compared(run, data, KilledIn("C+F"))
    # The arm before it stands in the record, and the one that was killed as not run.
    record = strictly((run.gain / "gain.json").read_text())
    assert ["C+F", 0] in record["missing"]
    assert {row["arm"] for row in record["rows"]} == {"none"}

    engine = world.InProcess()
    gain = compared(run, data, engine)

    assert [job.arm for job in engine.handed_out if isinstance(job, ArmJob)] == ["C+F"]
    assert gain == done[1]
    assert not list(run.gain.rglob("*@*"))


def test_an_arm_that_was_killed_may_be_looked_at_at_other_steps(
    done: tuple[RunDir, Gain], run: RunDir, data: Path
) -> None:
    with pytest.raises(Killed):
        compared(run, data, KilledIn("none"), arms=("none",), fine_tune=False)
    assert len(list(run.gain.rglob("*@*"))) == 1  # after two steps of three

    gain = compared(run, data, arms=("none",), looks=4, fine_tune=False)

    assert {row["step"] for row in gain.rows} == {1, 2, 3, 4}
    undisturbed = [row for row in done[1].rows if (row["arm"], row["when"]) == ("none", "pre-trained")]
    assert [row for row in gain.rows if row["step"] in (2, 4)] == undisturbed
    assert not list(run.gain.rglob("*@*"))


def test_arms_meet_as_many_pairs_of_their_own_beside_the_clean_ones(run: RunDir, data: Path) -> None:
    """Or an arm with few pictures would see the clean pairs more often, and be better for that alone."""
    engine = HandingNothingOut()
    compared(run, data, engine, arms=ARMS)
    met: dict[str, Counter[str]] = {}
    for job in engine.handed_out[-5:]:
        own = job.pretraining
        stream = Stream(own.pools, own.stream, own.seed, own.clean, own.clean_pools)
        kinds = ["clean" if pair.reference.texts[0].source == "clean" else "own" for pair in stream.epoch(0)]
        met[job.arm] = Counter(kinds)
    assert set(met) == set(ARMS)
    most = met["C"]["own"]
    for arm in ("none", "F", "C+F"):
        assert abs(met[arm]["own"] - most) <= 4 * (20 / 4) ** 0.5, met
        assert met[arm]["clean"] == met["C"]["clean"]
    share = {arm: counts["clean"] / counts.total() for arm, counts in met.items()}
    assert share["repeated"] == pytest.approx(share["none"], abs=0.15)


def test_an_arm_alone_gives_the_same_as_in_the_comparison(
    done: tuple[RunDir, Gain], data: Path, run: RunDir
) -> None:
    engine = HandingNothingOut()
    assert compared(run, data, engine).rows == []
    job = engine.handed_out[-1]
    _, gain = done
    rows = json.loads(json.dumps(run_arm(job, "cpu", world.nobody)).replace("NaN", "null"))
    assert rows == [row for row in gain.rows if row["arm"] == job.arm]


# -- what is refused


@pytest.mark.parametrize("trained_on", ["clean", "web"])
def test_pairs_that_were_trained_on_are_no_test(run: RunDir, data: Path, trained_on: str) -> None:
    with pytest.raises(CapfiltError, match="is both trained on and tested on") as caught:
        compared(run, data, test=str(data / trained_on))
    assert "--test" in caught.value.fix
    assert not run.gain.exists()


def test_passes_do_not_make_arms_comparable(run: RunDir, data: Path) -> None:
    passes = {"next_round": {"phases": [{**JOINT.phases[0].model_dump(), "steps": None}]}}
    with pytest.raises(CapfiltError, match="compared after equal steps, and the pre-training counts passes"):
        compared(run, data, settings=passes)


def test_a_second_comparison_of_the_same_run_is_refused(run: RunDir, data: Path) -> None:
    refused = []

    class Second(HandingNothingOut):
        """Starts the same comparison again in the middle of it."""

        def run(self, work: Any, items: Any, **more: Any) -> Iterator[tuple[int, Any]]:
            with pytest.raises(CapfiltError, match="is in use by process"):
                compared(run, data)
            refused.append(True)
            return super().run(work, items, **more)

    compared(run, data, Second())
    assert refused == [True, True]


# -- steps and means


def test_steps_are_shared_out_to_phases_as_before() -> None:
    phases = tuple(Phase(lm=1.0, steps=steps) for steps in (100, 300))
    settings = changed(world.Bootstrap(), {"pretrain": Training(phases=phases).model_dump()})
    shared = with_steps(settings, 40).pretrain
    assert shared is not None
    assert [phase.steps for phase in shared.phases] == [10, 30]
    rounds = changed(settings, {"next_round": JOINT.model_dump()})
    assert [phase.steps for phase in with_steps(rounds, 9).next_round.phases] == [9]  # type: ignore[union-attr]
    assert with_steps(rounds, 9).pretrain == rounds.pretrain


def test_means_over_seeds_have_students_interval() -> None:
    values = [0.42, 0.47, 0.5]
    rows = [{"arm": "F", "measure": "R@1", "value": value} for value in values]
    rows += [{"arm": "C", "measure": "R@1", "value": 0.9}, {"arm": "F", "measure": "R@5", "value": 0.8}]
    figure = over_seeds(rows, arm="F", measure="R@1")
    half = 4.302652729911275 * np.std(values, ddof=1) / 3**0.5  # t of two degrees of freedom, 97.5%
    assert (figure.value, figure.low, figure.high) == pytest.approx(
        (np.mean(values), np.mean(values) - half, np.mean(values) + half), abs=1e-9
    )
    unknown = over_seeds([*rows, {"arm": "F", "measure": "R@1", "value": None}], arm="F", measure="R@1")
    assert np.isnan(unknown.value)


def test_a_model_with_a_qformer_is_looked_at_by_what_it_has_learnt(
    run: RunDir, data: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Stage 1 finds and writes nothing; its captioner has a language model, which every arm is given."""
    structure = small_structure("opt", language_folder("opt", tmp_path / "opt"))
    build_language_model(structure.language.config).save_pretrained(tmp_path / "opt")
    given = Bundles(vision=str(bundles["filter"]), language=str(tmp_path / "opt"))
    settings = settings_of(run).model_copy(update={"model": structure, "bundles": given})
    request = GainRequest(
        run=run.path,
        clean=str(data / "clean"),
        test=str(data / "test"),
        settings=settings,
        arms=("none", "C"),
        seeds=(0,),
        looks=2,
        top_k=4,
    )
    rows = measure_gain(request, world.InProcess(), world.QUIET).rows
    measured = {(row["arm"], row["when"], row["task"]) for row in rows}
    assert measured == {
        (arm, when, task)
        for arm in ("none", "C")
        for when, task in (
            ("pre-trained", "retrieval"),
            ("fine-tuned", "retrieval"),
            ("fine-tuned", "caption"),
        )
    }
    families = {read_card(path.parent).family for path in run.gain.glob("*/*/capfilt.json")}
    assert families == {"blip2"}
    assert measure_gain(request, HandingNothingOut(), world.QUIET).rows == rows
