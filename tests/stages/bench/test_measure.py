"""What is measured, on random models and real pictures: counts and structure, never how long it took."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import world

from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.settings import Vision
from capfilt.stages.bench import measure as measure_module
from capfilt.stages.bench.instruments import product_peak
from capfilt.stages.bench.measure import BenchRequest, at_once, measure
from capfilt.stages.bench.measured import PARTS

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.stages.bench.measured import Measured

NOISY = world.REAL / "noisy.tar"
"""24 pictures, each with a text."""


def measured(
    models: dict[str, Path], web: Path = NOISY, samples: int | None = 20, **changes: Any
) -> Measured:
    settings = world.settings(models, **changes)
    request = BenchRequest(str(web), settings, samples, beside_transformers=False)
    return measure(request, world.InProcess(), world.QUIET)


@pytest.fixture
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks of small matrices, which say nothing, in no time; int8 of other processors than these is slow."""
    monkeypatch.setattr(measure_module, "product_peak", partial(product_peak, side=64, seconds=0))


pytestmark = pytest.mark.usefixtures("quick_peaks")


@pytest.fixture(scope="module")
def two_models(bundles: dict[str, Path]) -> Measured:
    return measured(bundles, candidates=2)


def test_every_part_is_measured_in_the_order_of_the_loop(two_models: Measured) -> None:
    assert [(part.name, part.model) for part in two_models.parts] == [
        ("read", ""),
        ("decode", ""),
        ("resize", ""),
        ("image encoder", "captioner"),
        ("image encoder", "filter"),
        ("captions", ""),
        ("scores", ""),
        ("commit", ""),
    ]
    assert all(part.wall_s > 0 and part.cpu_s >= 0 for part in two_models.parts)
    assert two_models.wall_s == pytest.approx(sum(part.wall_s for part in two_models.parts))
    assert two_models.whole_wall_s == pytest.approx(two_models.wall_s)
    assert two_models.images_per_s == pytest.approx(20 / two_models.wall_s)
    assert sum(map(two_models.share, PARTS)) == pytest.approx(1)


def test_every_picture_passes_each_encoder_once_and_every_text_is_scored(two_models: Measured) -> None:
    counters = two_models.counters
    assert (two_models.images, two_models.samples) == (20, 20)
    assert counters.encoder_passes == 20 * 2
    assert counters.texts_scored == 20 * (1 + 2)
    # Captions have 2 to 8 tokens, and end with one more unless they are the longest.
    assert 20 * 2 * 3 <= counters.tokens_needed <= 20 * 2 * 8
    assert counters.tokens_computed >= counters.tokens_needed - 20 * 2


def test_work_of_models_has_operations_and_other_work_has_none(two_models: Measured) -> None:
    models = {part.name for part in two_models.parts if part.flops}
    assert models == {"image encoder", "captions", "scores"}
    for part in two_models.parts:
        assert (part.share_of_peak is not None) == (part.name in models)
        assert part.share_of_peak is None or 0 < part.share_of_peak < 1.5
    # Both encoders have one structure, and saw the same pictures.
    first, second = (part for part in two_models.parts if part.name == "image encoder")
    assert first.flops == second.flops
    assert two_models.share_of_peak is not None
    shares = [part.share_of_peak for part in two_models.parts if part.share_of_peak is not None]
    assert min(shares) <= two_models.share_of_peak <= max(shares)


def test_models_with_one_image_encoder_encode_once(tmp_path: Path) -> None:
    joint = world.bundle(tmp_path / "joint", "joint", ("itc", "itm", "lm"))
    found = measured({"captioner": joint, "filter": joint})

    assert [(part.name, part.model) for part in found.parts if part.name == "image encoder"] == [
        ("image encoder", "both")
    ]
    assert found.counters.encoder_passes == 20
    assert found.encoders == 1


@pytest.mark.parametrize("role", ["captioner", "filter"])
def test_one_model_is_measured_alone(role: str, bundles: dict[str, Path]) -> None:
    other = {"captioner": "filter", "filter": "captioner"}[role]
    found = measured(bundles, bundles={other: None})

    names = {part.name for part in found.parts}
    assert ("captions" in names, "scores" in names) == (role == "captioner", role == "filter")
    assert [part.model for part in found.parts if part.name == "image encoder"] == [role]
    assert found.counters.texts_scored == (20 if role == "filter" else 0)
    assert (found.counters.tokens_computed > 0) == (role == "captioner")


def test_shards_are_taken_one_after_another_until_there_are_enough_pictures(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        shutil.copyfile(NOISY, tmp_path / f"{name}.tar")
    before = world.digests(tmp_path)

    assert measured(bundles, tmp_path, 40).images == 40
    assert measured(bundles, tmp_path, None).images == 48  # all there are, of 64
    assert world.digests(tmp_path) == before  # and nothing is left beside them


def test_refused_samples_go_along_and_are_no_pictures(bundles: dict[str, Path], tmp_path: Path) -> None:
    whole = world.members(NOISY)
    keys = sorted({name.partition(".")[0] for name in whole})
    bad = keys[::2]
    members = [
        (name, data if name.endswith((".txt", ".json")) or name.partition(".")[0] not in bad else b"none")
        for name, data in sorted(whole.items())
    ]
    found = measured(bundles, world.write_tar(tmp_path / "web.tar", members), 10)

    assert found.images == 10
    assert found.samples in (19, 20)
    assert found.counters.encoder_passes == 2 * 10


def test_pictures_decoded_ahead_give_the_whole_its_own_time(bundles: dict[str, Path]) -> None:
    found = measured(bundles, compute={"decoders": 2})

    assert found.decoders == 2
    assert found.whole_wall_s != found.wall_s
    assert found.images_per_s == 20 / found.whole_wall_s
    assert found.counters.encoder_passes == 2 * 20  # of the loop whose parts are shown


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_each_precision_has_its_own_peaks(precision: str, bundles: dict[str, Path]) -> None:
    found = measured(bundles, samples=4, compute={"precision": precision})
    peaks = {part.name: part.peak for part in found.parts if part.flops}

    assert found.precision == precision
    assert (peaks["image encoder"] == peaks["scores"]) == (precision == "bf16")
    assert peaks["captions"] == peaks["scores"]


def test_models_of_other_origins_are_taken_in_for_the_measuring_alone(bundles: dict[str, Path]) -> None:
    # A side that is asked for makes another model of a bundle, like one that is imported.
    found = measured(bundles, samples=4, bundles={"size_px": 32})
    small = measured(bundles, samples=4)

    # Patches of 8 px: 17 states instead of 5.
    per_image = [part.flops for one in (found, small) for part in one.parts if part.model == "captioner"]
    assert per_image[0] > 3 * per_image[1]


def test_an_encoder_of_another_kind_is_measured_too(bundles: dict[str, Path], tmp_path: Path) -> None:
    stem = changed(
        world.TINY, {"vision": Vision(patch_px=8, width=16, layers=1, heads=2, stem="convolution")}
    )
    captioner = world.bundle(tmp_path / "c", "captioner", ("lm",), model=stem)
    settings = world.settings({**bundles, "captioner": captioner})
    found = measure(BenchRequest(str(NOISY), settings, 4), world.InProcess(), world.QUIET)

    assert found.comparison is None
    assert found.why_not.startswith("transformers cannot build the captioner")


def test_without_a_model_there_is_nothing_to_measure(bundles: dict[str, Path]) -> None:
    with pytest.raises(CapfiltError, match="no model is given") as refused:
        measured(bundles, bundles={"captioner": None, "filter": None})
    assert "--captioner MODEL" in refused.value.fix


def test_a_filter_is_no_captioner(bundles: dict[str, Path]) -> None:
    with pytest.raises(CapfiltError, match="cannot write captions"):
        measured({"captioner": bundles["filter"], "filter": bundles["filter"]})


def test_shards_without_pictures_are_refused_with_the_reasons(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    members = [("a.jpg", b"no picture"), ("a.txt", "a"), ("b.txt", "b"), ("c.txt", "c")]
    with pytest.raises(CapfiltError, match="no picture among the first 3 samples: 2 missing_image, 1 unread"):
        measured(bundles, world.write_tar(tmp_path / "web.tar", members))
    with pytest.raises(CapfiltError, match="no picture among the first 0 samples"):
        measured(bundles, world.write_tar(tmp_path / "none.tar", []))
    (tmp_path / "empty.tar").touch()
    with pytest.raises(CapfiltError, match="every shard is empty"):
        measured(bundles, tmp_path / "empty.tar")


@pytest.mark.parametrize(
    ("devices", "threads", "cores", "expected"),
    [
        (["cuda:0"], 1, 16, 1),
        (["cuda:0", "cuda:1", "cuda:0", "cuda:1"], 1, 16, 2),
        (["cpu"] * 8, 1, 8, 8),
        (["cpu"] * 8, 1, 2, 2),
        (["cpu"] * 8, 4, 8, 2),
        (["cpu"], 4, 2, 1),
    ],
)
def test_workers_that_take_turns_are_not_counted_twice(
    devices: list[str], threads: int, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert at_once(devices, threads) == expected
