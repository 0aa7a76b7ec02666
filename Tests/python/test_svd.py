# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The truncated SVD over spectra, shapes and dtypes, against LAPACK in float64."""

from __future__ import annotations

import copy
import math
import pickle

import lowrank_swift as lrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DTYPES, SVD_LIMIT, bits, eps, float64, orthogonality

# As functions of the index and the number of values. A step holds more copies than one block of random vectors finds.
SPECTRA = {
    "flat": lambda k, n: np.ones_like(k),
    "stepped": lambda k, n: 0.5 ** (k // 24),
    "clustered": lambda k, n: np.where(k < 0.2 * n, 1, 0.3) * (1 + 1e-5 * np.sin(k)),
    "exponential": lambda k, n: 0.8**k,
    "power law": lambda k, n: 1 / (1 + k),
    "one outlier": lambda k, n: np.where(k == 0, 1000.0, 1),
    "rank-deficient": lambda k, n: np.where(k < 0.1 * n, 1 / (1 + 0.1 * k), 0),
    "graded": lambda k, n: 10.0 ** (20 - 40 * k / max(n - 1, 1)),
    "zero": lambda k, n: np.zeros_like(k),
}


def with_spectrum(name: str, rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """A matrix with random singular vectors and singular values of this kind, before it is rounded to its dtype."""
    generator = np.random.default_rng(seed)
    count = min(rows, columns)
    left = np.linalg.qr(generator.standard_normal((rows, count)))[0]
    right = np.linalg.qr(generator.standard_normal((columns, count)))[0]
    values = np.sort(SPECTRA[name](np.arange(count, dtype=np.float64), count))[::-1]
    if dtype == torch.float16:  # 1e20 is beyond it
        values = values / max(values[0], 1.0)
    return torch.from_numpy(left * values @ right.T).to(dtype)


def check(matrix: torch.Tensor, rank: int, result: lrs.SVDResult, tol: float) -> None:
    """Expect what is promised of every weight."""
    w, u, s, v = float64(matrix), float64(result.U), float64(result.S), float64(result.Vh).T
    unit = eps(matrix, result.U)
    assert (u.shape, s.shape, v.shape) == ((w.shape[0], rank), (rank,), (w.shape[1], rank))
    assert np.all(s >= 0)
    assert np.all(np.diff(s) <= 0)
    assert orthogonality(u, unit) < SVD_LIMIT
    assert orthogonality(v, unit) < SVD_LIMIT
    assert np.all(u[np.abs(u).argmax(axis=0), np.arange(rank)] > 0)
    residuals = np.maximum(np.linalg.norm(w @ v - u * s, axis=0), np.linalg.norm(w.T @ u - v * s, axis=0))
    rounding = SVD_LIMIT * max(w.shape) * unit
    reached = residuals.max() / s[0] if s[0] > 0 else residuals.max()
    # The residual that is reported is true, to the rounding of its own computation and of the stored factors.
    assert result.residual <= result.tol
    assert abs(reached - result.residual) <= rounding
    assert tol <= result.tol <= max(tol, 64 * unit)
    # No larger value is missing, and each differs from its own by no more than its residual.
    expected = np.linalg.svd(w, compute_uv=False)[:rank]
    assert np.abs(s - expected).max() <= (result.tol + rounding) * expected[0]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SPECTRA)),
    rows=st.one_of(st.integers(1, 12), st.integers(13, 150)),
    columns=st.one_of(st.integers(1, 12), st.integers(13, 150)),
    dtype=st.sampled_from(DTYPES),
    share=st.floats(0, 1),
    tol=st.sampled_from([1e-2, 1e-4, 1e-6, 1e-12]),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_spectrum(
    name: str, rows: int, columns: int, dtype: torch.dtype, share: float, tol: float, seed: int
) -> None:
    rank = 1 + int(share * (min(rows, columns) - 1))
    matrix = with_spectrum(name, rows, columns, dtype)
    before = bits(matrix)
    check(matrix, rank, lrs.svd(matrix, rank, tol=tol, seed=seed), tol)
    assert bits(matrix) == before


# Large enough for a Krylov space.
@pytest.mark.parametrize("shape", [(600, 520), (520, 900)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(SPECTRA))
def test_every_spectrum_of_large_weights(name: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    matrix = with_spectrum(name, *shape, dtype)
    check(matrix, 30, lrs.svd(matrix, 30), 1e-4)


@pytest.mark.parametrize("name", ["stepped", "power law", "clustered"])
def test_tight_tolerances_of_large_weights(name: str) -> None:
    matrix = with_spectrum(name, 560, 500, torch.float64)
    check(matrix, 30, lrs.svd(matrix, 30, tol=1e-11), 1e-11)


def test_a_larger_seeded_sample_takes_the_way_of_passes() -> None:
    matrix = with_spectrum("power law", 900, 900, torch.float32)
    result = lrs.svd(matrix, 4)
    assert result.passes > 3  # the exact ways make three
    check(matrix, 4, result, 1e-4)


@pytest.mark.parametrize("size", [3e38, 1e-38, 1e-42])
def test_entries_near_the_end_of_the_range(size: float) -> None:
    unit = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (600, 560)))
    matrix = (unit * size).float()
    result = lrs.svd(matrix, 3, dtype=torch.float64)
    check(matrix, 3, result, 1e-4)
    if size > 1:
        with pytest.raises(lrs.LinAlgError, match="beyond the range of float32; ask for a wider dtype"):
            lrs.svd(matrix, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tolerances_below_rounding_are_raised(dtype: torch.dtype) -> None:
    matrix = with_spectrum("power law", 90, 80, dtype)
    result = lrs.svd(matrix, 9, tol=1e-200)
    unit = eps(matrix)
    assert 10 * unit <= result.tol <= (64 if dtype == torch.float64 else 10) * unit
    check(matrix, 9, result, 1e-200)


def test_the_result_is_a_tuple_that_says_more() -> None:
    result = lrs.svd(with_spectrum("exponential", 40, 30, torch.float32), 3, tol=1e-3)
    u, s, vh, passes = result
    assert u is result.U
    assert s is result.S
    assert vh is result.Vh
    assert passes == result.passes == 3
    assert result.tol == 1e-3
    assert 0 < result.residual <= 1e-3
    for twin in (copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert (twin.tol, twin.residual, twin.passes) == (result.tol, result.residual, result.passes)
    assert math.isnan(lrs.SVDResult(u, s, vh, 1).tol)


@pytest.mark.parametrize(("shape", "rank"), [((60, 50), 40), ((300, 200), 30), ((700, 640), 6)], ids=str)
def test_the_same_bits_for_a_seed(shape: tuple[int, int], rank: int, threads: None) -> None:
    matrix = with_spectrum("power law", *shape, torch.bfloat16)
    results = []
    for count in (1, 2, 3):
        lrs.set_num_threads(count)
        for layout in (matrix, matrix.T.contiguous().T):
            results.append([bits(part) for part in lrs.svd(layout, rank, seed=11)[:3]])
    assert all(result == results[0] for result in results)
