from __future__ import annotations

import gc
import hashlib
import io
import tarfile
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pytest
import world

from capfilt.data import images
from capfilt.data.sources import find_shards
from capfilt.engines.local import LocalEngine
from capfilt.errors import CapfiltError
from capfilt.provenance.rundir import RunDir
from capfilt.settings import Matching
from capfilt.stages import shard as shard_module
from capfilt.stages.shard import load_captioner, load_filter, run_shard

if TYPE_CHECKING:
    from pathlib import Path

EXIF_ORIENTATION = 0x0112


def _encoded(picture: PIL.Image.Image, form: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


def _colours(width: int = 30, height: int = 20, *, seed: int = 0) -> PIL.Image.Image:
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).resize((width, height))


def _rotated() -> bytes:
    exif = PIL.Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return _encoded(_colours(), "JPEG", exif=exif)


def _odd_pictures() -> dict[str, tuple[str, bytes, tuple[int, int]]]:
    """By key: extension, bytes, and the size a person would see."""
    rgb, more = _colours(), [_colours(seed=1), _colours(seed=2)]
    deep = PIL.Image.fromarray(np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16))
    return {
        "grey": ("png", _encoded(rgb.convert("L")), (30, 20)),
        "grey-alpha": ("png", _encoded(rgb.convert("LA")), (30, 20)),
        "bilevel": ("png", _encoded(rgb.convert("1")), (30, 20)),
        "cmyk": ("jpg", _encoded(rgb.convert("CMYK"), "JPEG"), (30, 20)),
        "palette": ("png", _encoded(rgb.convert("P"), transparency=3), (30, 20)),
        "alpha": ("png", _encoded(PIL.Image.new("RGBA", (30, 20), (200, 0, 0, 0))), (30, 20)),
        "deep": ("png", _encoded(deep), (30, 20)),
        "gif": ("gif", _encoded(rgb, "GIF", save_all=True, append_images=more), (30, 20)),
        "webp": ("webp", _encoded(rgb, "WEBP", save_all=True, append_images=more), (30, 20)),
        "still-webp": ("webp", _encoded(rgb, "WEBP"), (30, 20)),
        "rotated": ("jpg", _rotated(), (20, 30)),
        "narrow": ("png", _encoded(_colours(1, 4000)), (1, 4000)),
        "point": ("png", _encoded(_colours(1, 1)), (1, 1)),
        "wrongly-named": ("jpg", _encoded(rgb, "PNG"), (30, 20)),
    }


def _done(run: Path, shard: Path, bundles: dict[str, Path], **changes: Any) -> RunDir:
    run_shard(world.job(run, shard, bundles, **changes), "cpu", world.nobody)
    return RunDir(run)


def _parquet(run: RunDir) -> dict[str, str]:
    return world.digests(run.provenance, "samples/*", "captions/*", "scores/*")


@pytest.mark.parametrize("name", ["clean.tar", "noisy.tar", "photos.tar"])
def test_every_sample_of_a_real_shard_is_one_row_with_its_captions_and_scores(
    name: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    members = world.members(world.REAL / name)
    keys = {member.partition(".")[0] for member in members}

    run = _done(tmp_path, world.REAL / name, bundles, candidates=2)

    rows = world.sql(run, "SELECT key, web_text, image_sha256, image_size, status, member FROM samples")
    assert {row[0] for row in rows} == keys
    assert len(rows) == len(keys)
    for key, text, sha256, size, status, member in rows:
        assert (status, text) == ("ok", members[f"{key}.txt"].decode().strip())
        assert hashlib.sha256(members[member]).hexdigest() == sha256
        assert len(members[member]) == size
    assert world.sql(run, "SELECT count(*) FROM captions") == [(3 * len(keys),)]
    assert world.sql(
        run, "SELECT score, count(*), count(DISTINCT pair_id) FROM scores GROUP BY 1 ORDER BY 1"
    ) == [
        ("itc", 3 * len(keys), 3 * len(keys)),
        ("itm", 3 * len(keys), 3 * len(keys)),
    ]
    assert world.sql(run, "SELECT count(DISTINCT text) > 3 FROM captions WHERE source = 'synthetic'") == [
        (True,)
    ]


def test_decoding_ahead_changes_no_row(bundles: dict[str, Path], tmp_path: Path) -> None:
    here = _done(tmp_path / "here", world.REAL / "noisy.tar", bundles, candidates=2)
    ahead = _done(tmp_path / "ahead", world.REAL / "noisy.tar", bundles, candidates=2, decoders=3)
    assert _parquet(here) == _parquet(ahead)


def test_odd_pictures_are_used_and_measured_as_a_person_sees_them(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    odd = _odd_pictures()
    tar = world.write_tar(
        tmp_path / "odd.tar",
        [
            member
            for key, (extension, data, _) in odd.items()
            for member in ((f"{key}.{extension}", data), (f"{key}.txt", f"text of {key}"))
        ],
    )

    run = _done(tmp_path / "run", tar, bundles)

    rows = world.sql(run, "SELECT key, status, reason, width, height FROM samples")
    assert {row[0]: row[1:] for row in rows} == {
        key: ("ok", None, width, height) for key, (_, _, (width, height)) in odd.items()
    }
    assert world.sql(
        run, "SELECT source, count(*) FROM pairs WHERE itm IS NOT NULL GROUP BY 1 ORDER BY 1"
    ) == [
        ("synthetic", len(odd)),
        ("web", len(odd)),
    ]


def test_bad_samples_become_one_row_each_with_their_reason(bundles: dict[str, Path], tmp_path: Path) -> None:
    good, other = _encoded(_colours()), _encoded(_colours(seed=5))
    tar = world.write_tar(
        tmp_path / "bad.tar",
        [
            ("good.png", good),
            ("good.txt", "a good picture"),
            ("cut.png", good[: len(good) // 2]),
            ("cut.txt", "half a picture"),
            ("junk.jpg", b"\xff\xd8\xff\xe0 this is no picture"),
            ("junk.txt", "junk"),
            ("large.png", _encoded(_colours(1200, 1000))),
            ("large.txt", "more than a million pixels"),
            ("empty.png", b""),
            ("empty.txt", "no bytes"),
            ("alone.txt", "no picture"),
            ("silent.png", other),
            ("blank.png", other),
            ("blank.txt", " \t\n"),
            ("latin.png", other),
            ("latin.txt", "caf\xe9".encode("latin-1")),
            ("long.png", other),
            ("long.txt", "x" * 100_000),
            ("twice.png", good),
            ("twice.txt", "first"),
            ("twice.png", other),
            ("last.png", good),
            ("last.txt", "the run went on"),
        ],
    )

    run = _done(tmp_path / "run", tar, bundles, batch_size=3)

    rows = world.sql(run, "SELECT key, status, reason FROM samples ORDER BY key, status")
    assert rows == [
        ("alone", "refused", "missing_image"),
        ("blank", "ok", "empty_text"),
        ("cut", "refused", "unreadable_image"),
        ("empty", "refused", "empty_image"),
        ("good", "ok", None),
        ("junk", "refused", "unreadable_image"),
        ("large", "refused", "too_many_pixels"),
        ("last", "ok", None),
        ("latin", "ok", "text_not_utf8"),
        ("long", "ok", "text_too_long"),
        ("silent", "ok", "missing_text"),
        ("twice", "ok", None),
        ("twice", "refused", "repeated_key"),
    ]
    # The picture of a sample whose text alone is bad is recaptioned, and refused ones have no caption.
    captions = world.sql(
        run, "SELECT key, list(source ORDER BY source) FROM captions GROUP BY key ORDER BY key"
    )
    silent = {"blank", "latin", "long", "silent"}
    assert dict(captions) == {
        key: ["synthetic"] if key in silent else ["synthetic", "web"]
        for key in ("blank", "good", "last", "latin", "long", "silent", "twice")
    }
    assert world.sql(run, "SELECT samples_in, samples_ok, samples_refused FROM shards") == [(13, 7, 6)]
    assert world.sql(run, "SELECT count(*) FROM pairs WHERE itm IS NULL OR itc IS NULL") == [(0,)]


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_what_precedes_the_damage_of_a_tar_is_used_and_the_rest_is_named(
    damage: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    whole = (world.REAL / "noisy.tar").read_bytes()
    middle = len(whole) // 2 // 512 * 512
    broken = whole[: middle + 100] if damage == "cut" else whole[:middle] + b"\xaa" * (len(whole) - middle)
    tar = tmp_path / "noisy.tar"
    tar.write_bytes(broken)

    run = _done(tmp_path / "run", tar, bundles)
    intact = _done(tmp_path / "intact", world.REAL / "noisy.tar", bundles)

    ok = dict(world.sql(run, "SELECT key, image_sha256 FROM samples WHERE status = 'ok'"))
    every = dict(world.sql(intact, "SELECT key, image_sha256 FROM samples"))
    assert 5 < len(ok) < len(every)
    assert ok.items() <= every.items()
    [(member,)] = world.sql(run, "SELECT member FROM samples WHERE reason = 'damaged_shard'")
    with tarfile.open(world.REAL / "noisy.tar") as file:
        headers = [header.offset for header in file]
    # The first header that is damaged, or that of the member that is cut off.
    first = (
        min(h for h in headers if h >= middle)
        if damage == "overwritten"
        else max(h for h in headers if h < len(broken))
    )
    assert member == f"bytes {first}-{len(broken)}"


def test_each_picture_is_decoded_once_and_passes_each_encoder_once(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counted(data: bytes, *, max_pixels: int) -> PIL.Image.Image:
        decoded.append(len(data))
        return images.decode(data, max_pixels=max_pixels)

    monkeypatch.setattr(shard_module, "decode", counted)
    models = [load(bundles[name], "cpu", "fp32").model for name, load in _LOADERS.items()]
    before = [model.image.passes for model in models]

    run = _done(tmp_path, world.REAL / "noisy.tar", bundles, candidates=3)

    assert world.sql(run, "SELECT count(*) FROM pairs WHERE itm IS NOT NULL") == [(24 * 4,)]
    assert len(decoded) == 24
    assert [model.image.passes - old for model, old in zip(models, before, strict=True)] == [24, 24]


_LOADERS: dict[str, Any] = {
    "captioner": lambda path, device, precision: load_captioner(path, device, precision, False),
    "filter": lambda path, device, precision: load_filter(path, device, precision, Matching(), False),
}


def test_a_caption_depends_on_picture_seed_and_number_alone(bundles: dict[str, Path], tmp_path: Path) -> None:
    """Not on its key, its shard, its neighbours or how many others are drawn."""
    whole = world.members(world.REAL / "noisy.tar")
    keys = sorted({name.partition(".")[0] for name in whole})
    chosen = [name for key in keys[5:9] for name in sorted(whole) if name.startswith(f"{key}.")]
    other = world.write_tar(tmp_path / "x.tar", [(f"other-{name}", whole[name]) for name in reversed(chosen)])

    def captions(run: RunDir) -> dict[tuple[str, int], str]:
        rows = world.sql(run, "SELECT image_sha256, candidate, text FROM captions WHERE source = 'synthetic'")
        return {row[:2]: row[2] for row in rows}

    all_of_them = captions(_done(tmp_path / "all", world.REAL / "noisy.tar", bundles, candidates=3))
    some = captions(_done(tmp_path / "some", other, bundles, candidates=2, batch_size=8))
    seeded = captions(_done(tmp_path / "seeded", other, bundles, candidates=2, seed=1))

    assert len(some) == 8
    assert some.items() <= all_of_them.items()
    assert len(set(all_of_them.values())) > 40
    assert sum(some[key] != text for key, text in seeded.items()) > 4


def test_equal_settings_give_equal_bytes_whatever_the_number_of_workers(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("clean", "noisy", "photos"):
        (tmp_path / "web").mkdir(exist_ok=True)
        (tmp_path / "web" / f"{name}.tar").write_bytes((world.REAL / f"{name}.tar").read_bytes())
    shards = find_shards(tmp_path / "web")
    assert len(shards) == 3
    engine, found = LocalEngine(), []
    for number, devices in enumerate((["cpu"], ["cpu", "cpu"])):
        jobs = [world.job(tmp_path / f"{number}", tmp_path / "web", bundles, shard=shard) for shard in shards]
        counts = dict(engine.run(run_shard, jobs, devices=devices, threads=1))
        assert {number: (c.samples, c.images) for number, c in counts.items()} == {
            0: (24, 24),
            1: (24, 24),
            2: (5, 5),
        }
        found.append(_parquet(RunDir(tmp_path / f"{number}")))

    assert len(found[0]) == 9
    assert found[0] == found[1]


def test_what_a_shard_says_grows_to_its_size(bundles: dict[str, Path], tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    job = world.job(tmp_path, world.REAL / "noisy.tar", bundles, batch_size=5)

    run_shard(job, "cpu", lambda done, size: said.append((done, size)))

    assert [done for done, _ in said] == [5, 10, 15, 20, 24, 24]
    assert [size for _, size in said] == sorted(size for _, size in said)
    assert said[-1] == (24, job.shard.size)


def test_without_models_the_shard_is_only_read(bundles: dict[str, Path], tmp_path: Path) -> None:
    run = _done(tmp_path, world.REAL / "photos.tar", bundles, captioner=None, filter=None)

    assert world.sql(run, "SELECT source, count(*), count(itm) FROM pairs GROUP BY 1") == [("web", 5, 0)]


def test_memory_does_not_grow_with_the_number_of_shards(bundles: dict[str, Path], tmp_path: Path) -> None:
    web = tmp_path / "web"
    web.mkdir()
    photos = (world.REAL / "photos.tar").read_bytes()
    for number in range(14):
        (web / f"{number:03d}.tar").write_bytes(photos)
    first, *jobs = [world.job(tmp_path / "run", web, bundles, shard=shard) for shard in find_shards(web)]
    run_shard(first, "cpu", world.nobody)  # what is loaded once is loaded now

    def memory(some: list[Any]) -> tuple[int, int]:
        tracemalloc.start()
        for job in some:
            run_shard(job, "cpu", world.nobody)
        gc.collect()  # what waits for the collector is not kept
        kept, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return kept, highest

    (kept_of_two, highest_of_two), (kept_of_eleven, highest_of_eleven) = memory(jobs[:2]), memory(jobs[2:])

    # Were one shard kept, nine more of them would show.
    assert kept_of_eleven < kept_of_two + len(photos)
    assert highest_of_eleven < highest_of_two + len(photos)


def test_a_captioner_is_refused_as_a_filter_with_what_to_give(bundles: dict[str, Path]) -> None:
    with pytest.raises(CapfiltError, match="cannot score pairs: it is a captioner") as refused:
        load_filter(bundles["captioner"], "cpu", "fp32", Matching(), False)

    assert "capfilt train filter" in refused.value.fix
