from __future__ import annotations

import pytest
import torch

from capfilt.errors import CapfiltError
from capfilt.models.devices import autocast_type, find_devices, inference_type, widened
from capfilt.settings import Compute


def a_machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    gpus: int,
    cores: int,
    has_bf16: bool = True,
    instructions: tuple[str, ...] = (),
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: has_bf16)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: dict.fromkeys(instructions, True))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)


@pytest.mark.parametrize(
    ("gpus", "cores", "asked", "devices", "precision"),
    [
        (0, 4, {}, ["cpu"] * 4, "fp32"),
        (0, 4, {"threads": 2}, ["cpu"] * 2, "fp32"),
        (0, 1, {"threads": 8}, ["cpu"], "fp32"),
        (0, 4, {"workers": 3}, ["cpu"] * 3, "fp32"),
        (2, 16, {}, ["cuda:0", "cuda:1"], "bf16"),
        (2, 16, {"workers": 3}, ["cuda:0", "cuda:1", "cuda:0"], "bf16"),
        (2, 16, {"device": "cuda"}, ["cuda:0"], "bf16"),
        (2, 16, {"device": "cuda:1"}, ["cuda:1"], "bf16"),
        (2, 4, {"device": "cpu"}, ["cpu"] * 4, "fp32"),
        (2, 4, {"precision": "fp32"}, ["cuda:0", "cuda:1"], "fp32"),
        (0, 1, {"precision": "bf16"}, ["cpu"], "bf16"),
    ],
)
def test_workers_have_the_devices_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    cores: int,
    asked: dict[str, object],
    devices: list[str],
    precision: str,
) -> None:
    a_machine(monkeypatch, gpus=gpus, cores=cores)
    assert find_devices(Compute.model_validate(asked)) == (devices, precision)


@pytest.mark.parametrize(
    ("instructions", "precision"),
    [((), "fp32"), (("avx512_f",), "fp32"), (("avx512_bf16",), "bf16"), (("amx_bf16",), "bf16")],
)
def test_a_cpu_works_in_bf16_only_where_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, instructions: tuple[str, ...], precision: str
) -> None:
    a_machine(monkeypatch, gpus=0, cores=1, instructions=instructions)
    assert find_devices(Compute()) == (["cpu"], precision)
    assert find_devices(Compute(precision="fp32")) == (["cpu"], "fp32")


def test_eight_bits_are_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine(monkeypatch, gpus=1, cores=1)
    with pytest.raises(CapfiltError, match="int8 is for CPUs") as refused:
        find_devices(Compute(precision="int8"))
    assert "--precision bf16" in refused.value.fix
    assert find_devices(Compute(precision="int8", device="cpu")) == (["cpu"], "int8")
    with pytest.raises(CapfiltError, match=r"compute\.compile"):
        find_devices(Compute(precision="int8", device="cpu", compile=True))


def test_a_gpu_without_bf16_works_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine(monkeypatch, gpus=1, cores=1, has_bf16=False)
    assert find_devices(Compute()) == (["cuda:0"], "fp32")


@pytest.mark.parametrize(("gpus", "device"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_gpu_that_is_not_there_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: str
) -> None:
    a_machine(monkeypatch, gpus=gpus, cores=2)
    with pytest.raises(CapfiltError, match=f"--device {device}: torch can use {gpus} GPUs") as refused:
        find_devices(Compute(device=device))
    assert "--device cpu" in refused.value.fix


def test_training_keeps_fp32_weights_and_inference_takes_the_precision() -> None:
    assert (inference_type("fp32"), autocast_type("fp32", "cuda:0")) == (torch.float32, None)
    assert (inference_type("bf16"), autocast_type("bf16", "cuda:0")) == (torch.bfloat16, torch.bfloat16)
    assert (inference_type("int8"), autocast_type("int8", "cpu")) == (torch.bfloat16, None)
    assert autocast_type("bf16", "cpu") is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_numbers_are_widened_to_fp32_and_never_narrowed(before: torch.dtype, after: torch.dtype) -> None:
    assert widened(torch.ones(2, dtype=before)).dtype == after
