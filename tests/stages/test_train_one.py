from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import scenes
import world

from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.models.cards import read_calibration, read_card
from capfilt.reports.progress import QuietProgress
from capfilt.settings import Bootstrap, Phase, Training
from capfilt.stages.train_one import train_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from capfilt.models.cards import Card, Kind

JOINT = Training(phases=(Phase(itc=1.0, itm=1.0, lm=1.0, steps=4, batch_size=8),), checkpoint_every=2)
LM = Training(phases=(Phase(lm=1.0, steps=4, batch_size=8, learning_rate=1e-3),), checkpoint_every=2)
MATCHING = Training(phases=(Phase(itc=1.0, itm=1.0, steps=4, batch_size=8, learning_rate=1e-3),))


class Killed(Exception):
    """Stands for SIGKILL."""


class KilledAt(world.InProcess):
    """An engine whose workers are killed when a model of this kind has done three steps."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

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
            if items[number].kind == self.kind and done == 3:
                raise Killed
            if hear is not None:
                hear(number, done, total)

        return super().run(work, items, devices=devices, threads=threads, hear=heard, say=say)


class Remembering(QuietProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> str:
    """30 drawn pairs."""
    folder = tmp_path_factory.mktemp("drawn")
    scenes.make(folder, seed=4, clean=30, web=0)
    return str(folder / "clean")


def _trained(
    kind: Kind, clean: str, out: Path, *, engine: Any = None, progress: Any = None, **changes: Any
) -> Card:
    base = Bootstrap(model=world.TINY, captioner_training=LM, filter_training=MATCHING)
    settings = changed(base, {"compute": {"device": "cpu", "workers": 1, "precision": "fp32"}}, changes)
    return train_one(kind, clean, out, settings, engine or world.InProcess(), progress or world.QUIET)


def test_a_captioner_is_written_with_its_card(clean: str, tmp_path: Path) -> None:
    card = _trained("captioner", clean, tmp_path / "captioner")

    assert card == read_card(tmp_path / "captioner")
    assert (card.kind, card.objectives, card.parent) == ("captioner", ("lm",), None)
    assert [path.name for path in tmp_path.iterdir()] == ["captioner"]


def test_the_joint_pre_training_comes_first_and_leaves_nothing_but_its_name(
    clean: str, tmp_path: Path
) -> None:
    engine = world.InProcess()

    card = _trained("filter", clean, tmp_path / "filter", engine=engine, pretrain=JOINT.model_dump())

    assert [job.kind for job in engine.handed_out[1:]] == ["joint", "filter"]
    assert card.parent is not None
    assert [path.name for path in tmp_path.iterdir()] == ["filter"]


def test_what_it_starts_from_takes_the_place_of_the_pre_training(clean: str, tmp_path: Path) -> None:
    first = _trained("captioner", clean, tmp_path / "first")
    engine = world.InProcess()

    card = _trained(
        "captioner",
        clean,
        tmp_path / "second",
        engine=engine,
        pretrain=JOINT.model_dump(),
        bundles={"init": tmp_path / "first"},
    )

    assert [job.kind for job in engine.handed_out[1:]] == ["captioner"]
    assert card.parent == first.weights


@pytest.mark.parametrize("kind", ["joint", "captioner"])
def test_a_killed_training_goes_on_where_it_stopped(clean: str, tmp_path: Path, kind: str) -> None:
    changes = {"pretrain": JOINT.model_dump()}
    with pytest.raises(Killed):
        _trained("captioner", clean, tmp_path / "a", engine=KilledAt(kind), **changes)
    assert not (tmp_path / "a").exists()

    resumed = _trained("captioner", clean, tmp_path / "a", **changes)

    assert resumed.weights == _trained("captioner", clean, tmp_path / "b", **changes).weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_training_that_is_done_is_not_done_again_nor_the_joint_one_before_it(
    clean: str, tmp_path: Path
) -> None:
    changes = {"pretrain": JOINT.model_dump()}
    first = _trained("filter", clean, tmp_path / "filter", **changes)
    files, engine, progress = world.digests(tmp_path), world.InProcess(), Remembering()

    again = _trained("filter", clean, tmp_path / "filter", engine=engine, progress=progress, **changes)

    assert again == first
    assert world.digests(tmp_path) == files
    assert [job for job in engine.handed_out if hasattr(job, "kind")] == []
    assert "filter: trained before" in progress.said
    for other in ({"seed": 1}, {"pretrain": LONGER.model_dump()}, {"filter_training": LONGER.model_dump()}):
        assert _trained("filter", clean, tmp_path / "filter", **{**changes, **other}).weights != first.weights
        first = read_card(tmp_path / "filter")


LONGER = Training(phases=(Phase(itc=1.0, itm=1.0, lm=1.0, steps=5, batch_size=8, learning_rate=1e-3),))


def test_two_trainings_to_one_place_do_not_mix(clean: str, tmp_path: Path) -> None:
    class Second(world.InProcess):
        """Starts the same training again in the middle of it."""

        def run(self, *given: Any, **more: Any) -> Iterator[tuple[int, Any]]:
            with pytest.raises(CapfiltError, match="captioner is in use by process"):
                _trained("captioner", clean, tmp_path / "captioner")
            refused.append(True)
            return super().run(*given, **more)

    refused: list[bool] = []
    alone = _trained("captioner", clean, tmp_path / "alone")
    assert _trained("captioner", clean, tmp_path / "captioner", engine=Second()).weights == alone.weights
    assert refused == [True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "captioner"]


def test_a_training_on_a_cpu_is_the_same_in_every_precision_and_a_calibration_is_not(
    clean: str, tmp_path: Path
) -> None:
    first = _trained("filter", clean, tmp_path / "filter")
    calibration = read_calibration(tmp_path / "filter")
    engine = world.InProcess()

    again = _trained(
        "filter", clean, tmp_path / "filter", engine=engine, compute={"device": "cpu", "precision": "bf16"}
    )

    assert again == first
    measured = read_calibration(tmp_path / "filter")
    assert calibration is not None
    assert measured is not None
    assert (calibration["precision"], measured["precision"]) == ("fp32", "bf16")
    assert calibration["values"]["itm"]["right"] != measured["values"]["itm"]["right"]
    assert calibration["values"]["itm"]["right"] == pytest.approx(measured["values"]["itm"]["right"], abs=0.1)


def test_a_weak_filter_is_told_at_the_end_of_its_training(clean: str, tmp_path: Path) -> None:
    progress = Remembering()

    _trained("filter", clean, tmp_path / "filter", progress=progress)

    assert any("weak filter: ITM" in line for line in progress.said), "four steps taught it something"


@pytest.mark.parametrize("there", ["file", "folder", "filter"])
def test_a_place_of_other_things_is_refused_before_the_training_and_left_alone(
    clean: str, tmp_path: Path, there: str
) -> None:
    out = tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "folder":
        (out / "below").mkdir(parents=True)
        (out / "below" / "thesis.tex").write_text("mine")
    else:
        _trained("filter", clean, out)
    before, engine = world.digests(tmp_path), world.InProcess()

    with pytest.raises(CapfiltError, match="no captioner can be written") as caught:
        _trained("captioner", clean, out, engine=engine)

    assert "a new or an empty folder" in caught.value.fix
    assert world.digests(tmp_path) == before
    assert engine.handed_out == []


def test_the_working_folder_is_taken_where_it_is_empty(
    clean: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    card = _trained("captioner", clean, tmp_path.joinpath("here").relative_to(tmp_path / "here"))

    assert read_card(tmp_path / "here") == card


def test_a_bundle_of_the_same_kind_is_replaced(clean: str, tmp_path: Path) -> None:
    first = _trained("captioner", clean, tmp_path / "a")
    second = _trained("captioner", clean, tmp_path / "a", seed=1)

    assert first.weights != second.weights
    assert read_card(tmp_path / "a") == second


@pytest.mark.parametrize("kind", ["captioner", "filter"])
def test_a_pipeline_that_pre_trains_a_captioner_is_refused_before_any_work(
    kind: Kind, clean: str, tmp_path: Path
) -> None:
    changes = {"pretrain": LM.model_dump(), "pretrains": "captioner", "pipeline": "blip2_stage2"}
    with pytest.raises(CapfiltError, match="blip2_stage2 pre-trains a captioner") as refused:
        _trained(kind, clean, tmp_path / "model", **changes)
    assert "capfilt pretrain" in refused.value.fix
    assert not list(tmp_path.iterdir())
