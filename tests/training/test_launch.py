from __future__ import annotations

import pytest

from capfilt.errors import CapfiltError
from capfilt.training.launch import check_launch, launched, leads, rank


def test_a_launch_of_another_number_of_processes_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    command = "-m capfilt pretrain DATA --out BUNDLE"

    assert (launched(), rank(), leads()) == (1, 0, True)
    check_launch(1, command)
    with pytest.raises(CapfiltError, match="4 processes are asked for, and 1 was launched") as caught:
        check_launch(4, command)
    assert caught.value.fix == f"torchrun --standalone --nproc_per_node 4 {command}"

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    check_launch(2, command)
    assert (launched(), rank(), leads()) == (2, 1, False)
    with pytest.raises(CapfiltError, match="1 process is asked for, and 2 were launched") as caught:
        check_launch(1, command)
    assert "--set compute.processes=2" in caught.value.fix
    with pytest.raises(CapfiltError, match="3 processes are asked for, and 2 were launched") as caught:
        check_launch(3, command)
    assert "--nproc_per_node 3 -m capfilt pretrain" in caught.value.fix
