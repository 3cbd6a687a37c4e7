"""Files of tensors that are made piece by piece: the bytes of safetensors, numbers kept."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from capfilt.errors import RunFailedError
from capfilt.models.tensor_files import TensorFile, in_halves

if TYPE_CHECKING:
    from pathlib import Path

KINDS = [torch.float64, torch.int64, torch.float32, torch.float16, torch.bfloat16]
tensors = st.builds(
    lambda shape, dtype, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(KINDS),
    st.integers(0, 99),
)


@given(st.dictionaries(st.text(min_size=1, max_size=4), tensors, min_size=1), st.booleans())
def test_the_bytes_are_those_that_safetensors_writes(
    tmp_path_factory: pytest.TempPathFactory, named: dict[str, torch.Tensor], with_remark: bool
) -> None:
    remarks = {"format": "pt"} if with_remark else {}
    file, path = TensorFile(named, remarks), tmp_path_factory.mktemp("made") / "x.safetensors"
    file.write(path, file.sha256())
    theirs = save(named, remarks or None)
    assert path.read_bytes() == theirs
    assert file.sha256() == hashlib.sha256(theirs).hexdigest()


def test_weights_that_change_before_they_are_written_are_noticed(tmp_path: Path) -> None:
    weights = torch.zeros(3)
    file = TensorFile({"a": weights})
    digest = file.sha256()
    weights.add_(1)
    with pytest.raises(RunFailedError, match="changed between"):
        file.write(tmp_path / "x.safetensors", digest)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 1.0), (torch.bfloat16, 1e-20)])
def test_a_matrix_out_of_halves_goes_back_into_them_and_reads_the_same(
    dtype: torch.dtype, scale: float
) -> None:
    matrix = (scale * torch.randn(40, 30)).to(dtype).float()
    halved = in_halves(matrix)
    assert halved.dtype == dtype
    assert torch.equal(load(save({"a": halved}))["a"].float(), matrix)


@pytest.mark.parametrize(
    "kept",
    [torch.randn(4, 4), torch.full((2, 2), 1e-9), torch.ones(5), torch.ones(2, 2, dtype=torch.float64)],
    ids=["numbers of fp32", "too small", "no matrix", "double"],
)
def test_what_halves_do_not_hold_stays_as_it_is(kept: torch.Tensor) -> None:
    assert in_halves(kept) is kept
