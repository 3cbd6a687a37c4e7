"""Two processes with half a batch each against one with the whole; they are started once for all tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from prompted_steps import CASES, results

PROGRAM = Path(__file__).parent / "prompted_steps.py"
Found = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
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
    assert [process.returncode for process in launched] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one() -> Found:
    return dict(results())


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("kind", "instructed"), CASES)
def test_two_processes_have_the_loss_and_gradients_of_one(
    two: list[Found], one: Found, kind: str, instructed: bool, parts: int
) -> None:
    case = f"{kind} {instructed} {parts}"
    expected = one[case]
    assert len(expected) > 20
    # The norms of T5 and Llama compute in single precision, whatever their weights are in.
    atol = 1e-12 if kind == "opt" else 1e-6
    for found in (ends[case] for ends in two):
        assert found.keys() == expected.keys()
        assert found["tokens"] == expected["tokens"]
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=0, msg=lambda m, n=name: n + m)
    for name, tensor in two[0][case].items():
        assert torch.equal(tensor, two[1][case][name]), name
