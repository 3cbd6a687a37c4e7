"""Captioner and filter that keep the image encoder they start from: the same bytes, one pass for both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import scenes
import torch
import world

from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.models.bundle import load_bundle
from capfilt.models.cards import read_card
from capfilt.settings import Bootstrap, Matching, Phase, Training, Vision
from capfilt.stages.bootstrap import Request, bootstrap
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.shard import load_captioner, load_filter
from capfilt.stages.train import models_to_train
from capfilt.stages.train_one import train_one

if TYPE_CHECKING:
    from pathlib import Path

# A stem with batch norms: their statistics would move without any gradient.
MODEL = world.TINY.model_copy(
    update={
        "vision": Vision(patch_px=8, width=16, layers=1, heads=2, stem="convolution"),
        "shared_vision": True,
    }
)
PHASE = {"steps": 4, "batch_size": 8, "learning_rate": 1e-2}
SETTINGS = Bootstrap(
    model=MODEL,
    pretrain=Training(phases=(Phase(itc=1.0, itm=1.0, lm=1.0, **PHASE),)),
    captioner_training=Training(phases=(Phase(lm=1.0, **PHASE),), checkpoint_every=2),
    filter_training=Training(phases=(Phase(itc=1.0, itm=1.0, **PHASE),)),
)
CPU = {"compute": {"device": "cpu", "workers": 1, "precision": "fp32", "batch_size": 8}}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    scenes.make(folder, seed=3, clean=40, web=20)
    return folder


@pytest.fixture(scope="module")
def models(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of a run from scratch."""
    out = tmp_path_factory.mktemp("shared") / "run"
    settings = changed(SETTINGS, CPU)
    stages = [*models_to_train(settings), RecaptionAndScore()]
    request = Request(str(drawn / "web"), str(drawn / "clean"), out, settings, stages)
    bootstrap(request, world.InProcess(), world.QUIET)
    return out / "models"


def test_the_image_encoder_of_both_is_that_of_the_joint_model_bit_by_bit(models: Path) -> None:
    joint = load_bundle(models / "joint").model.state_dict()
    for kind in ("captioner", "filter"):
        own = load_bundle(models / kind).model.state_dict()
        image = [name for name in own if name.startswith("image.")]
        assert any("running_mean" in name for name in image)
        assert all(torch.equal(own[name], joint[name]) for name in image)
        text = [name for name in own if name.startswith("text.layers") and "norm" not in name]
        assert not any(torch.equal(own[name], joint[name]) for name in text), "something else was kept too"
    digests = {read_card(models / kind).image_encoder for kind in ("joint", "captioner", "filter")}
    assert len(digests) == 1


def test_such_a_pair_encodes_each_picture_once_in_all(drawn: Path, models: Path, tmp_path: Path) -> None:
    given = {kind: models / kind for kind in ("captioner", "filter")}
    settings = changed(Bootstrap(candidates=3), CPU, {"bundles": given})
    request = Request(str(drawn / "web"), None, tmp_path / "run", settings, [RecaptionAndScore()])
    run = bootstrap(request, world.InProcess(), world.QUIET).run

    # The loaders keep what they loaded, with its counts.
    pair = [
        load_captioner(run.model("captioner"), "cpu", "fp32", False).model.image,
        load_filter(run.model("filter"), "cpu", "fp32", Matching(), False).model.image,
    ]
    [(pictures,)] = world.sql(run, "SELECT count(*) FROM samples WHERE status = 'ok'")
    assert pictures >= 19
    assert sum(encoder.passes for encoder in pair) == pictures


def test_a_training_that_was_killed_goes_on_with_the_encoder_kept(
    drawn: Path, models: Path, tmp_path: Path
) -> None:
    class Killed(Exception):
        """Stands for SIGKILL."""

    class Stopping(world.QuietProgress):
        def update(self, task: str, done: int, total: int | None = None) -> None:  # noqa: ARG002
            if task == "train captioner" and done == 3:
                raise Killed

    settings = changed(SETTINGS, CPU, {"bundles": {"init": models / "joint"}})
    clean, out = str(drawn / "clean"), tmp_path / "captioner"
    with pytest.raises(Killed):
        train_one("captioner", clean, out, settings, world.InProcess(), Stopping())
    resumed = train_one("captioner", clean, out, settings, world.InProcess(), world.QUIET)

    assert resumed.image_encoder == read_card(models / "joint").image_encoder
    assert resumed.weights == read_card(models / "captioner").weights


def test_without_a_model_to_start_from_there_is_nothing_to_share(drawn: Path, tmp_path: Path) -> None:
    settings = changed(SETTINGS, CPU, {"pretrain": None})
    with pytest.raises(CapfiltError, match=r"model\.shared_vision") as refused:
        models_to_train(settings)
    assert "--init MODEL" in refused.value.fix
    assert "--pipeline small" in refused.value.fix
    with pytest.raises(CapfiltError, match=r"model\.shared_vision"):
        train_one("filter", str(drawn / "clean"), tmp_path / "f", settings, world.InProcess(), world.QUIET)
    assert list(tmp_path.iterdir()) == []
    models_to_train(changed(settings, {"bundles": {"init": "painters/model"}}))


def test_it_is_the_training_that_shares_not_the_model_it_starts_from(
    drawn: Path, models: Path, tmp_path: Path
) -> None:
    settings = changed(SETTINGS, CPU, {"bundles": {"init": models / "captioner"}})
    settings = changed(settings, {"model": {"shared_vision": False}})

    card = train_one("filter", str(drawn / "clean"), tmp_path / "f", settings, world.InProcess(), world.QUIET)

    assert card.model.shared_vision is False
    assert card.image_encoder != read_card(models / "captioner").image_encoder
