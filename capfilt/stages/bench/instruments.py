"""What a machine is measured with: a stopwatch, the peak of its matrix products, the memory a worker took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

PEAK_S = 0.4
"""Seconds that products are repeated for; the fastest one counts."""
_SIDE_CPU, _SIDE_GPU = 1024, 8192
"""Sides of the matrices: far beyond any cache line, and done in milliseconds."""

Now = Callable[[], tuple[float, float]]
"""Wall and CPU seconds, from whenever."""


class Stopwatch:
    """Wall and CPU seconds by name; a moment belongs to the innermost name that is entered.

    So parts never overlap, and together they are the whole. CPU seconds are those of all the threads of
    this process: a worker has no others than those that work for it.
    """

    def __init__(self, now: Now | None = None) -> None:
        self.wall_s: dict[str, float] = {}
        self.cpu_s: dict[str, float] = {}
        self._now = now or _now
        self._names: list[str] = []
        self._since = (0.0, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block for this name, but for what it counts for others."""
        self._turn()
        self._names.append(name)
        try:
            yield
        finally:
            self._turn()
            self._names.pop()

    def _turn(self) -> None:
        wall, cpu = self._now()
        if self._names:
            name = self._names[-1]
            self.wall_s[name] = self.wall_s.get(name, 0.0) + wall - self._since[0]
            self.cpu_s[name] = self.cpu_s.get(name, 0.0) + cpu - self._since[1]
        self._since = (wall, cpu)


def stopwatch(device: str) -> Stopwatch:
    """Return a stopwatch that waits for a GPU at every turn: what it does counts for who asked for it."""
    if not device.startswith("cuda"):
        return Stopwatch()
    import torch

    def now() -> tuple[float, float]:
        torch.cuda.synchronize(device)
        return _now()

    return Stopwatch(now)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def product_peak(device: str, numbers: str, *, side: int | None = None, seconds: float = PEAK_S) -> float:
    """Return the operations per second of a plain product of large square matrices, the fastest of several.

    `numbers` is fp32, bf16 or int8; two operations count for each product that is summed.
    """
    import torch

    side = side or (_SIDE_GPU if device.startswith("cuda") else _SIDE_CPU)
    left, right, multiply = _matrices(torch.device(device), numbers, side)
    watch_s: list[float] = []
    until = time.perf_counter() + seconds
    while len(watch_s) < 3 or time.perf_counter() < until:
        watch = stopwatch(device)
        with watch.part("product"):
            multiply(left, right)
        watch_s.append(watch.wall_s["product"])
    return 2 * side**3 / min(watch_s)


def _matrices(
    device: torch.device, numbers: str, side: int
) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    import torch

    if numbers == "int8":
        whole = torch.ones(side, side, dtype=torch.int8, device=device)
        return whole, whole.t(), torch._int_mm
    kind = torch.float32 if numbers == "fp32" else torch.bfloat16
    some = torch.randn(side, side, device=device).to(kind)
    return some, some.t(), torch.mm


def peak_memory() -> int:
    """Return the most bytes of memory that this process held at once."""
    import resource

    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):  # in kB; Linux's getrusage also counts what ran before an exec
            return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) if sys.platform == "darwin" else 1024 * int(most)


def forget_device_peak(device: str) -> None:
    """Begin to look for a GPU's peak anew."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.init()  # a device that nothing has touched yet has no statistics
        torch.cuda.reset_peak_memory_stats(device)


def device_peak_memory(device: str) -> int | None:
    """Return the most bytes of a GPU's memory that tensors held at once; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(device))


def device_name(device: str) -> str:
    """Return the name of the GPU or processor, as the system has it; its architecture where it has none."""
    import platform

    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
