"""Two processes with half a batch each against one with the whole; they are started once for all tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from steps import joint_phase
from togethers import CASES, DIED, DrawnBatches, results, together

from capfilt.draws import seed_of
from capfilt.errors import CapfiltError
from capfilt.training import loop
from capfilt.training.parallel import ALONE, World, joined, local_device

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = Path(__file__).parent / "togethers.py"
Ends = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Two:
    """What two processes ended with."""

    ends: list[Ends]
    codes: list[int]
    errors: list[str]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As torchrun does it, but for its own start.
    launched = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in launched]
    finally:
        for process in launched:
            process.kill()
    assert (folder / "0.pt").exists(), errors
    return Two(
        [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)],
        [process.returncode for process in launched],
        errors,
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    return dict(results(tmp_path_factory.mktemp("one")))


def close_to(expected: dict[str, torch.Tensor], atol: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def check(found: dict[str, torch.Tensor]) -> None:
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=0, msg=lambda m, n=name: n + m)

    return check


DOUBLES = [name for name in CASES if name != "single precision"]


@pytest.mark.parametrize("case", DOUBLES)
def test_two_processes_have_the_losses_and_gradients_of_one(two: Two, one: Ends, case: str) -> None:
    for ends in two.ends:
        for found, expected in zip(ends[case]["gradients"][:1], one[case]["gradients"][:1], strict=True):
            close_to(expected, 1e-12)(found)
        assert len(ends[case]["gradients"]) == 4
        rows, expected_rows = ends[case]["rows"], one[case]["rows"]
        assert [row[:2] for row in rows] == [row[:2] for row in expected_rows]
        for (name, number, found), (_, _, expected) in zip(rows, expected_rows, strict=True):
            # Sums of single precision: what is recorded needs no more.
            assert found == pytest.approx(expected, rel=2e-6, abs=1e-7), (name, number)
    assert {name for name, _, _ in one[case]["rows"]} >= {"itc", "itm", "lm", "negatives", "itm_positive"}


@pytest.mark.parametrize("case", CASES)
def test_both_processes_end_with_the_same_weights_and_rows(two: Two, case: str) -> None:
    first, second = (ends[case] for ends in two.ends)
    assert first["rows"] == second["rows"]
    assert all(torch.equal(weights, second["weights"][name]) for name, weights in first["weights"].items())


@pytest.mark.parametrize("case", DOUBLES)
def test_two_processes_end_with_the_weights_of_one(two: Two, one: Ends, case: str) -> None:
    close_to(one[case]["weights"], 1e-9)(two.ends[0][case]["weights"])


def test_two_processes_end_with_the_weights_of_one_in_single_precision_too(two: Two, one: Ends) -> None:
    case = "single precision"
    expected = one[case]["weights"]
    found = two.ends[0][case]["weights"]
    assert found["text.words.weight"].dtype == torch.float32
    # AdamW makes steps of the learning rate out of rounding where a gradient is nothing: a bias of keys.
    effective = {name: tensor for name, tensor in expected.items() if not name.endswith(_KEYS)}
    close_to(effective, 1e-6)({name: found[name] for name in effective})


_KEYS = ("qkv.bias", "key_value.bias")


def test_the_cases_have_equal_captions_and_images_in_different_processes() -> None:
    halves = [DrawnBatches(World(rank, 2), repeats=True).at(0, 6, 1, 7) for rank in (0, 1)]
    captions, images = (
        [set(getattr(half, n).tolist()) for half in halves] for n in ("caption_ids", "image_ids")
    )
    assert captions[0] & captions[1]
    assert images[0] & images[1]


def test_a_process_that_dies_ends_the_other(two: Two) -> None:
    first, second = two.codes
    assert second == DIED
    assert first not in (0, DIED)
    assert "RuntimeError" in two.errors[0]


class Unheard(World):
    """One of two processes, the other of which is not there: it hears itself twice."""

    def total(self, number: torch.Tensor) -> torch.Tensor:
        return 2 * number.detach()

    def share(self, model: torch.nn.Module) -> None:
        """Nobody is there to share with."""

    def sum_gradients(self, model: torch.nn.Module) -> None:
        """Nobody has any."""

    def agree(self, what: str, facts: str, device: torch.device) -> None:
        """Nobody differs."""

    def wait(self) -> None:
        """Nobody is waited for."""


@dataclass(frozen=True)
class Beside(World):
    """One of two processes; what the other one says is known beforehand."""

    other: str = ""

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows, torch.tensor([seed_of(self.other)])])


def test_processes_that_differ_are_refused() -> None:
    world = Beside(0, 2, other="step 5000")
    world.agree("how far it is", "step 5000", torch.device("cpu"))
    with pytest.raises(CapfiltError, match="the processes differ in how far it is") as caught:
        world.agree("how far it is", "step 0", torch.device("cpu"))
    assert "a disk that they share" in caught.value.fix


def test_no_two_processes_parts_or_steps_drop_out_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(loop.torch, "manual_seed", seeds.append)
    phase = joint_phase(itc=0.0, itm=0.0, steps=2, batch_size=6, accumulate=3)

    for rank in (0, 1):
        together(tmp_path / f"{rank}.pt", phase, world=Unheard(rank, 2)).run()

    assert len(seeds) == len(set(seeds)) == 12


# -- one process


def test_each_process_of_a_machine_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_device("cuda:0") == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda:0") == local_device("cuda") == "cuda:3"
    assert local_device("cpu") == "cpu"


def test_alone_everything_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    rows = torch.randn(4, 3, requires_grad=True)
    with joined("cpu") as world:
        assert world == ALONE
        assert world.leads
        assert world.gather_with_gradient(rows) is rows
        assert torch.equal(world.gather(rows), rows)
        assert not world.gather(rows).requires_grad
        assert world.total(rows.sum()) == rows.sum()
        assert world.mine(5) == slice(0, 5)
        world.wait()


def test_the_rows_of_all_processes_are_those_of_the_part() -> None:
    for size in (1, 2, 3, 4):
        rows = [row for rank in range(size) for row in range(12)[World(rank, size).mine(12)]]
        assert rows == list(range(12))
