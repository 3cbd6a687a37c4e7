"""Where a model runs and in which numbers; asked in a worker, so that the command line imports no torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from capfilt.settings import Compute


def find_devices(compute: Compute) -> tuple[list[str], str]:
    """Return the device of each worker, and the precision: fp32, bf16 or int8.

    Without a number of workers there is one a GPU, or one a core.
    """
    if compute.device == "auto":
        names = [f"cuda:{n}" for n in range(torch.cuda.device_count())] or ["cpu"]
    elif compute.device == "cpu":
        names = ["cpu"]
    else:
        names = [compute.device if ":" in compute.device else "cuda:0"]
        if int(names[0].partition(":")[2]) >= torch.cuda.device_count():
            raise CapfiltError(
                f"--device {compute.device}: torch can use {torch.cuda.device_count()} GPUs of this machine",
                fix="give --device cpu, or --device auto to take what there is",
            )
    is_cpu = names == ["cpu"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = compute.workers or (max(1, cores // compute.threads) if is_cpu else len(names))
    precision: str = compute.precision
    if precision == "auto":
        precision = "bf16" if has_native_bf16(names[0]) else "fp32"
    if precision == "int8" and compute.compile:
        raise CapfiltError(
            "compute.compile leaves matrices to torch.compile, which does not make them 8 bits wide",
            fix="give --precision bf16, or --set compute.compile=false",
        )
    if precision == "int8" and not is_cpu:
        raise CapfiltError(
            "--precision int8 is for CPUs, and models run on a GPU here",
            fix="give --precision bf16, or --device cpu",
        )
    return [names[n % len(names)] for n in range(workers)], precision


def has_native_bf16(device: str) -> bool:
    """Return whether a device multiplies bf16 matrices natively and not by way of fp32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def inference_type(precision: str) -> torch.dtype:
    """Return the type of the weights while captioning and scoring; int8 is for the image encoder alone."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


def refuse_int8(precision: str, why: str) -> None:
    """Raise CapfiltError where int8 is asked of a model that has no form in it, as `why` says."""
    if precision == "int8":
        raise CapfiltError(
            f"--precision int8 is for the image encoder of BLIP, and {why}",
            fix="give --precision bf16 or fp32",
        )


def autocast_type(precision: str, device: str) -> torch.dtype | None:
    """Return the type of the forward pass in training, None for that of the weights, which stay fp32.

    On a CPU a forward pass under autocast is slower than one in fp32, for small models by far.
    """
    return torch.bfloat16 if precision != "fp32" and device.startswith("cuda") else None


def widened(numbers: Tensor) -> Tensor:
    """Return the numbers in fp32, or wider where they are: losses and probabilities are taken in no less."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def keep_freed_memory() -> None:
    """Let this process keep the memory of large tensors it frees, for the next ones.

    The C library gives blocks of megabytes back to the system and asks for them again, page by page, with
    every operation; that costs small batches on a CPU up to a fifth of their time. For workers, which do
    nothing else. Where the library is not glibc nothing happens.
    """
    import ctypes

    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1
    try:
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 2**30)
        library.mallopt(trim_threshold, most)
    except (OSError, AttributeError, TypeError):
        return


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Return numbers of the host on a device, without waiting for what is queued there."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


def on_host(numbers: Tensor) -> list[int]:
    """Return a tensor's numbers: the one place where writing waits for a device."""
    values: list[int] = numbers.tolist()
    return values


def steps_between_reads(device: torch.device) -> int:
    """Return how many tokens are written between two looks at what has ended; a look costs a CPU nothing."""
    return 1 if device.type == "cpu" else 4
