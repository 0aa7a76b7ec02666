# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""QR and LDU of panels of all kinds: what LAPACK promises for each column, its signs, and its pivots."""

from __future__ import annotations

import lowrank_swift as lrs
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import LIMIT, float64, orthogonality, ratio

KINDS = [
    "gaussian",
    "graded columns",
    "graded rows",
    "huge",
    "tiny",
    "deficient",
    "zero columns",
    "triangular",
    "identity",
]


def panel(rows: int, rank: int, kind: str, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, rank))
    size = 30 if dtype == torch.float32 else 250
    if kind == "graded columns":
        values *= 10.0 ** np.linspace(20, -20, rank)
    elif kind == "graded rows":
        values *= 10.0 ** np.linspace(-20, 20, rows)[:, None]
    elif kind in ("huge", "tiny"):
        values *= 10.0 ** (size if kind == "huge" else -size)
    elif kind == "deficient":
        values = generator.integers(-2, 3, (rows, 2)) @ generator.integers(-2, 3, (2, rank))
    elif kind == "zero columns":
        values[:, ::2] = 0
    elif kind == "triangular":
        values = np.triu(values)
    elif kind == "identity":
        values = np.eye(rows, rank)
    return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(dtype)


@st.composite
def panels(draw: st.DrawFn) -> tuple[torch.Tensor, str]:
    rows = draw(st.sampled_from([1, 2, 5, 6, 7, 12, 13, 15, 16, 17, 22, 23, 33, 64, 97, 130, 210]))
    rank = min(rows, draw(st.sampled_from([1, 2, 5, 6, 7, 12, 13, 32, 64, 96, 97, 130, 210])))
    kind = draw(st.sampled_from(KINDS))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return panel(rows, rank, kind, dtype, draw(st.integers(0, 99))), kind


@settings(max_examples=150, deadline=None)
@given(panels())
def test_qr_is_backward_stable_in_each_column(case: tuple[torch.Tensor, str]) -> None:
    matrix, _ = case
    q, r = (float64(part) for part in lrs.qr(matrix, matrix.shape[1]))
    unit = torch.finfo(matrix.dtype).eps
    assert orthogonality(q, unit) < LIMIT
    assert np.array_equal(r, np.triu(r))
    w = float64(matrix)
    for j in range(matrix.shape[1]):
        # A power of two brings the column's squares into range, exactly.
        scale = 2.0 ** -np.frexp(np.abs(w[:, j]).max())[1]
        assert ratio(w[:, j] * scale - q @ (r[:, j] * scale), np.linalg.norm(w[:, j] * scale), unit) < LIMIT


@settings(max_examples=150, deadline=None)
@given(panels())
def test_signs_of_r_are_those_of_lapack(case: tuple[torch.Tensor, str]) -> None:
    matrix, kind = case
    if kind in ("deficient", "zero columns", "graded rows"):
        return  # What remains of such a column is rounding, and so is its sign.
    r = float64(lrs.qr(matrix, matrix.shape[1]).R)
    reference = torch.linalg.qr(matrix).R
    assert np.array_equal(np.sign(np.diag(r)), np.sign(np.diag(float64(reference))))


@settings(max_examples=150, deadline=None)
@given(panels())
def test_ldu_of_panels(case: tuple[torch.Tensor, str]) -> None:
    matrix, kind = case
    rank = matrix.shape[1]
    result = lrs.ldu(matrix, rank)
    low, d, up = float64(result.L), float64(result.D), float64(result.U)
    perm = result.perm.numpy()
    assert np.isfinite(low).all()
    assert np.isfinite(up).all()
    assert np.abs(low).max() <= 1
    assert np.array_equal(np.sort(perm), np.arange(matrix.shape[0]))
    w = float64(matrix)
    if (d != 0).all():
        scale = 2.0 ** -np.frexp(np.abs(w).max())[1]
        upper = (d * scale)[:, None] * up
        grown = np.linalg.norm(low) * np.linalg.norm(upper)
        assert ratio(w[perm] * scale - low @ upper, grown, torch.finfo(matrix.dtype).eps) < LIMIT
    if kind == "gaussian":
        order = scipy.linalg.lu(w, p_indices=True)[0]
        assert np.array_equal(np.argsort(order)[:rank], perm[:rank])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_of_equal_magnitudes_is_the_pivot(dtype: torch.dtype) -> None:
    for first in (0, 1, 7, 8, 16, 127, 128, 200):
        matrix = torch.ones(300, 2, dtype=dtype)
        matrix[first:, 0] = -2
        assert lrs.ldu(matrix, 1).perm[0] == first
