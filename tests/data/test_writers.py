"""What is written is what is read, and the same samples are the same bytes."""

from __future__ import annotations

import errno
import hashlib
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.data import writers
from capfilt.data.images import RefusedImage, decode
from capfilt.data.sources import find_shards, read_shard
from capfilt.data.writers import EXTENSIONS, ShardWriter, extension_of
from capfilt.errors import RunFailedError
from capfilt.settings import Input

REAL = Path(__file__).parent / "real"

texts = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=60).filter(
    lambda text: text.strip() == text and not text.startswith("\ufeff")
)
metadata = st.dictionaries(
    st.text(st.characters(blacklist_categories=("Cs",)), max_size=8),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    max_size=4,
)
samples = st.tuples(st.binary(min_size=1, max_size=700), st.sampled_from(EXTENSIONS), texts, metadata)


def write(writer: ShardWriter, given_texts: list[str], extension: str = "jpg") -> None:
    with writer:
        for text in given_texts:
            writer.add(b"x" * 500, extension, text, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@settings(max_examples=60)
@given(st.lists(samples, max_size=7), st.integers(1, 3))
def test_what_is_written_is_what_is_read(folder, given_samples, per_shard):
    for old in folder.glob("*.tar"):
        old.unlink()
    with ShardWriter(folder, samples_per_shard=per_shard) as writer:
        keys = [writer.add(*sample) for sample in given_samples]

    found = find_shards(folder) if given_samples else []
    back = [sample for shard in found for sample in read_shard(shard, Input())]

    assert [(s.image, s.member.rpartition(".")[2], s.web_text, s.metadata) for s in back] == given_samples
    assert [sample.key for sample in back] == keys == [f"{i:09d}" for i in range(len(keys))]
    assert [shard.samples for shard in writer.shards] == [
        min(per_shard, len(keys) - start) for start in range(0, len(keys), per_shard)
    ]
    for written, shard in zip(writer.shards, found, strict=True):
        content = shard.path.read_bytes()
        assert written.name == shard.path.name
        assert (written.bytes, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_bytes_are_those_of_tarfile_with_everything_personal_left_out(tmp_path):
    with ShardWriter(tmp_path, samples_per_shard=10) as writer:
        writer.add(b"picture" * 200, "png", "a cat", {"b": 1, "a": "ü"})

    with tarfile.open(tmp_path / "expected", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (
            ("000000000.png", b"picture" * 200),
            ("000000000.txt", b"a cat"),
            ("000000000.json", '{"a":"ü","b":1}'.encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(data), 0, 0o644
            (tmp_path / "data").write_bytes(data)
            with (tmp_path / "data").open("rb") as file:
                tar.addfile(member, file)
    assert (tmp_path / "00000.tar").read_bytes() == (tmp_path / "expected").read_bytes()


def test_without_samples_there_is_no_tar(tmp_path):
    with ShardWriter(tmp_path / "export", samples_per_shard=10) as writer:
        pass

    assert writer.shards == []
    assert not list(tmp_path.rglob("*.tar"))


def test_an_error_leaves_the_full_tars_and_nothing_of_the_one_in_hand(tmp_path):
    writer = ShardWriter(tmp_path, samples_per_shard=2)

    with pytest.raises(UnicodeEncodeError):
        write(writer, ["a cat", "a dog", "a bird", "\ud800"])

    assert [file.name for file in tmp_path.iterdir()] == ["00000.tar"]
    assert [shard.name for shard in writer.shards] == ["00000.tar"]


def test_a_full_disk_is_an_error_with_the_mend_and_leaves_no_half_tar(tmp_path, monkeypatch):
    put = writers._Tar._put

    def full(tar, data):
        if tar._size > 2000:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(tar, data)

    monkeypatch.setattr(writers._Tar, "_put", full)

    with pytest.raises(RunFailedError, match="is full"):
        write(ShardWriter(tmp_path, samples_per_shard=9), ["a cat"] * 9)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error_with_the_mend(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)

    with (
        pytest.raises(RunFailedError, match="cannot be written"),
        ShardWriter(tmp_path, samples_per_shard=9) as writer,
    ):
        writer.add(b"x", "jpg", "a cat", {})


def test_a_name_can_not_be_smuggled_in_as_an_extension(tmp_path):
    with (
        pytest.raises(ValueError, match="no extension"),
        ShardWriter(tmp_path, samples_per_shard=9) as writer,
    ):
        writer.add(b"x", "../../jpg", "a cat", {})


@pytest.mark.parametrize("name", ["clean", "noisy", "photos"])
def test_real_pictures_are_called_what_their_publisher_called_them(name):
    [shard] = find_shards(REAL / f"{name}.tar")

    for sample in read_shard(shard, Input()):
        assert extension_of(sample.image) == sample.member.rpartition(".")[2]


@pytest.mark.parametrize(
    ("form", "extension"),
    [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif")],
)
def test_every_format_that_is_decoded_has_an_extension(form, extension):
    import io

    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.new("RGB", (3, 2)).save(buffer, form)

    assert extension_of(buffer.getvalue()) == extension
    assert decode(buffer.getvalue(), max_pixels=6).size == (3, 2)


@given(st.binary(max_size=40))
def test_what_has_no_extension_is_not_decoded_either(data):
    try:
        extension_of(data)
    except ValueError:
        with pytest.raises(RefusedImage):
            decode(data, max_pixels=100)
