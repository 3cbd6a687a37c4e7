from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.models.checkpoints.weight_files import read_folder, read_pth

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.ones(2, dtype=torch.float16)}


class Trap:
    """What a pickle can hold: its reading would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def same(found: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(WEIGHTS) and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def sharded(folder: Path, kind: str) -> None:
    """Spread the weights over two files with an index, as transformers does."""
    places = {}
    for number, (name, tensor) in enumerate(WEIGHTS.items(), start=1):
        stem, suffix = kind.split(".")
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)({name: tensor}, folder / file)
        places[name] = file
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")


def test_one_file_of_either_kind_is_read(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert list(read_folder(tmp_path).tensors) == ["other"]
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    read = read_folder(tmp_path)  # and the safetensors first, where both are there
    assert same(read.tensors)
    assert read.sha256 == digest(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_several_files_with_an_index_are_read(tmp_path: Path, kind: str) -> None:
    sharded(tmp_path, kind)
    read = read_folder(tmp_path)
    assert same(read.tensors)
    parts = sorted(file for file in tmp_path.iterdir() if file.suffix != ".json")
    assert read.sha256 == digest_of({file.name: digest(file) for file in parts})


@pytest.mark.parametrize("around", ["model", "state_dict", None])
def test_a_pth_holds_weights_alone_or_beside_a_training(tmp_path: Path, around: str | None) -> None:
    state: Any = {around: WEIGHTS, "optimizer": {"lr": 0.1}, "epoch": 3} if around else WEIGHTS
    torch.save(state, tmp_path / "x.pth")
    read = read_pth(tmp_path / "x.pth")
    assert same(read.tensors)
    assert read.sha256 == digest(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.pth", "pytorch_model.bin"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, name: str) -> None:
    torch.save({"model": WEIGHTS, "optimizer": Trap(tmp_path / "sprung")}, tmp_path / name)
    with pytest.raises(CapfiltError, match="more than weights and plain values") as refused:
        read_pth(tmp_path / name) if name == "x.pth" else read_folder(tmp_path)
    assert "torch.save" in refused.value.fix
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"PK\x03\x04 cut off"])
def test_a_damaged_pth_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CapfiltError, match=r"x\.pth (cannot be read|is damaged)"):
        read_pth(tmp_path / "x.pth")


def test_a_pth_cut_in_the_middle_is_named(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CapfiltError, match=r"x\.pth (cannot be read|is damaged)"):
        read_pth(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ([1, 2], "holds no weights"),
        ({}, "holds no weights"),
        ({"model": {}}, "holds no weights"),
        ({"a": torch.zeros(1), "epoch": 3}, "holds 'epoch' where weights are expected"),
    ],
)
def test_what_holds_no_weights_is_told(tmp_path: Path, state: Any, told: str) -> None:
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CapfiltError, match=told):
        read_pth(tmp_path / "x.pth")


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match=r"holds no weights: neither model\.safetensors nor"):
        read_folder(tmp_path)


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/etc/hostname", "a\\b", 5])
def test_an_index_names_files_of_its_folder_alone(tmp_path: Path, place: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(CapfiltError, match="does not name files of its folder"):
        read_folder(tmp_path)


def test_an_index_and_its_files_must_agree(tmp_path: Path) -> None:
    sharded(tmp_path, "model.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**places, "d": places["a"]}}))
    with pytest.raises(CapfiltError, match="hold different weights"):
        read_folder(tmp_path)
    (tmp_path / places["a"]).unlink()
    with pytest.raises(CapfiltError, match=f"{places['a']} cannot be read"):
        read_folder(tmp_path)
    index.write_text("[]")
    with pytest.raises(CapfiltError, match="holds no object"):
        read_folder(tmp_path)
