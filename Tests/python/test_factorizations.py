# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import lowrank_swift as lrs
import numpy as np
import pytest
import scipy.linalg
import torch
from support import DTYPES, LIMIT, SHAPES, SVD_LIMIT, bits, eps, float64, orthogonality, ratio, views, weight

DEFAULT_TOL = 1e-4


def check_qr(matrix: torch.Tensor, rank: int, result: lrs.QRResult) -> None:
    w, q, r = float64(matrix), float64(result.Q), float64(result.R)
    unit = eps(matrix, result.Q)
    assert (q.shape, r.shape) == ((w.shape[0], rank), (rank, w.shape[1]))
    assert np.array_equal(r, np.triu(r))
    assert orthogonality(q, unit) < LIMIT
    assert ratio(w[:, :rank] - q @ r[:, :rank], np.linalg.norm(w[:, :rank]), unit) < LIMIT
    assert ratio(r - q.T @ w, np.linalg.norm(w), unit) < LIMIT


def check_ldu(matrix: torch.Tensor, rank: int, result: lrs.LDUResult) -> None:
    w = float64(matrix)
    low, d, up, perm = float64(result.L), float64(result.D), float64(result.U), result.perm.numpy()
    unit = eps(matrix, result.L)
    assert (low.shape, d.shape, up.shape) == ((w.shape[0], rank), (rank,), (rank, w.shape[1]))
    assert result.perm.dtype == torch.int64
    assert np.array_equal(np.sort(perm), np.arange(w.shape[0]))
    assert np.array_equal(low[:rank], np.tril(low[:rank], -1) + np.eye(rank))
    assert np.array_equal(up[:, :rank], np.triu(up[:, :rank], 1) + np.eye(rank))
    assert np.abs(low).max() <= 1 + 4 * unit  # partial pivoting
    grown = np.linalg.norm(low) * np.linalg.norm(d[:, None] * up)
    assert ratio(w[perm][:, :rank] - low @ (d[:, None] * up[:, :rank]), grown, unit) < LIMIT
    assert ratio(w[perm[:rank]] - low[:rank] @ (d[:, None] * up), grown, unit) < LIMIT


def check_svd(matrix: torch.Tensor, rank: int, result: lrs.SVDResult, tol: float = DEFAULT_TOL) -> None:
    w, u, s, vh = float64(matrix), float64(result.U), float64(result.S), float64(result.Vh)
    unit = eps(matrix, result.U)
    assert (u.shape, s.shape, vh.shape) == ((w.shape[0], rank), (rank,), (rank, w.shape[1]))
    assert np.all(s >= 0)
    assert np.all(np.diff(s) <= 0)
    assert orthogonality(u, unit) < SVD_LIMIT
    assert orthogonality(vh.T, unit) < SVD_LIMIT
    # The bound that the tolerance promises, and the rounding of the stored triplets.
    bound = (max(tol, 10 * unit) + SVD_LIMIT * unit) * s[0]
    assert np.linalg.norm(w @ vh.T - u * s, axis=0).max() <= bound
    assert np.linalg.norm(w.T @ u - vh.T * s, axis=0).max() <= bound
    expected = np.linalg.svd(w, compute_uv=False)[:rank]
    assert np.abs(s - expected).max() <= 2 * bound
    if s[0] > 0:
        assert np.all(u[np.abs(u).argmax(axis=0), np.arange(rank)] > 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_qr(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, columns, rank = shape
    matrix = weight(rows, columns, dtype)
    before = bits(matrix)
    check_qr(matrix, rank, lrs.qr(matrix, rank))
    assert bits(matrix) == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ldu(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, columns, rank = shape
    matrix = weight(rows, columns, dtype)
    before = bits(matrix)
    check_ldu(matrix, rank, lrs.ldu(matrix, rank))
    assert bits(matrix) == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_svd(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, columns, rank = shape
    matrix = weight(rows, columns, dtype)
    before = bits(matrix)
    result = lrs.svd(matrix, rank)
    check_svd(matrix, rank, result)
    assert isinstance(result.passes, int)
    assert result.passes > 0
    assert bits(matrix) == before


@pytest.mark.parametrize("name", ["query", "intermediate", "output", "positions"])
def test_pretrained_weights(name: str, minilm: dict[str, torch.Tensor]) -> None:
    matrix = minilm[name]
    check_qr(matrix, 32, lrs.qr(matrix, 32))
    check_ldu(matrix, 32, lrs.ldu(matrix, 32))
    check_svd(matrix, 32, lrs.svd(matrix, 32))


def test_pretrained_weight_at_full_rank(minilm: dict[str, torch.Tensor]) -> None:
    matrix = minilm["query"]
    rank = min(matrix.shape)
    check_qr(matrix, rank, lrs.qr(matrix, rank))
    check_ldu(matrix, rank, lrs.ldu(matrix, rank))
    check_svd(matrix, rank, lrs.svd(matrix, rank))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "row stride", "offset", "strided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    matrix = views(weight(37, 29, dtype))[layout]
    check_qr(matrix, 5, lrs.qr(matrix, 5))
    check_ldu(matrix, 5, lrs.ldu(matrix, 5))
    check_svd(matrix, 5, lrs.svd(matrix, 5))


def test_reversed_and_repeated_numpy_views() -> None:
    base = weight(24, 20).numpy()
    for view in (base[::-1, ::-2], np.broadcast_to(base[:1], (24, 20)), np.asfortranarray(base)):
        q, r = lrs.qr(view, 6)
        exact = view.astype(np.float64)[:, :6]
        assert ratio(exact - float64(q) @ float64(r)[:, :6], np.linalg.norm(exact), eps(q)) < LIMIT


def test_signs_are_those_of_lapack() -> None:
    matrix = weight(60, 40, torch.float64)
    reference = np.linalg.qr(float64(matrix), mode="reduced")
    q, r = lrs.qr(matrix, 8)
    unit = eps(matrix) * np.linalg.cond(float64(matrix)[:, :8])
    assert ratio(float64(q) - reference[0][:, :8], 1.0, unit) < LIMIT
    assert ratio(float64(r) - reference[1][:8], np.linalg.norm(reference[1]), unit) < LIMIT
    assert bits(lrs.qr(weight(1, 7), 1).R) == bits(weight(1, 7))  # a reflector of one row is the identity


def test_ldu_is_that_of_a_full_factorization() -> None:
    matrix = weight(50, 70, torch.float64)
    rank = 12
    order, low, up = scipy.linalg.lu(float64(matrix), p_indices=True)
    d = np.diag(up)[:rank]
    result = lrs.ldu(matrix, rank)
    permuted = np.empty_like(float64(result.L))
    permuted[result.perm.numpy()] = float64(result.L)
    unit = eps(matrix) * np.linalg.cond(float64(matrix)[:, :rank])
    assert ratio(permuted - low[order][:, :rank], np.linalg.norm(low[:, :rank]), unit) < LIMIT
    assert ratio(float64(result.D) - d, np.linalg.norm(d), unit) < LIMIT
    expected = up[:rank] / d[:, None]
    assert ratio(float64(result.U) - expected, np.linalg.norm(expected), unit) < LIMIT


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_weight(dtype: torch.dtype) -> None:
    matrix = torch.zeros(12, 9, dtype=dtype)
    check_qr(matrix, 4, lrs.qr(matrix, 4))
    check_svd(matrix, 4, lrs.svd(matrix, 4))
    result = lrs.ldu(matrix, 4)
    check_ldu(matrix, 4, result)
    assert bits(result.D) == bits(torch.zeros(4, dtype=result.D.dtype))
    assert bits(result.U) == bits(torch.eye(4, 9, dtype=result.U.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("true_rank", [1, 3])
def test_rank_deficient_weight(true_rank: int, dtype: torch.dtype) -> None:
    # Small integers: the product is exact in every precision.
    generator = torch.Generator().manual_seed(3)
    left = torch.randint(-3, 4, (40, true_rank), generator=generator)
    right = torch.randint(-3, 4, (true_rank, 30), generator=generator)
    matrix = (left @ right).to(dtype)
    check_qr(matrix, 8, lrs.qr(matrix, 8))
    check_svd(matrix, 8, lrs.svd(matrix, 8))


def test_zero_pivots_give_unit_rows() -> None:
    matrix = torch.zeros(10, 8, dtype=torch.float64)
    matrix[:, 0] = torch.arange(1, 11)  # the second column is eliminated exactly
    matrix[:, 1] = 2 * matrix[:, 0]
    matrix[3, 2:] = 5
    result = lrs.ldu(matrix, 3)
    check_ldu(matrix, 3, result)
    assert result.D[1] == 0
    assert bits(result.U[1]) == bits(torch.eye(8, dtype=torch.float64)[1])
    assert result.D[0] == 10
    assert result.D[2] == 5


def test_squares_may_under_or_overflow() -> None:
    for size in (1e-30, 1e30):
        matrix = weight(30, 20) * size
        check_qr(matrix, 6, lrs.qr(matrix, 6))
        check_ldu(matrix, 6, lrs.ldu(matrix, 6))
        check_svd(matrix, 6, lrs.svd(matrix, 6))


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6, 1e-14])
def test_svd_keeps_its_tolerance(tol: float, minilm: dict[str, torch.Tensor]) -> None:
    matrix = minilm["intermediate"]
    check_svd(matrix, 16, lrs.svd(matrix, 16, tol=tol), tol)
    wide = matrix.to(torch.float64)
    check_svd(wide, 16, lrs.svd(wide, 16, tol=tol), tol)


def test_svd_of_clustered_and_decaying_spectra() -> None:
    left, _ = np.linalg.qr(float64(weight(80, 60)))
    right, _ = np.linalg.qr(float64(weight(60, 60, seed=1)))
    for spectrum in (np.ones(60), np.repeat([4.0, 2.0, 1.0], 20), 0.5 ** np.arange(60), np.linspace(1, 0.9, 60)):
        matrix = torch.from_numpy(left * spectrum @ right)
        check_svd(matrix, 10, lrs.svd(matrix, 10, tol=1e-8), 1e-8)


def test_svd_is_reproducible(threads: None, minilm: dict[str, torch.Tensor]) -> None:
    # Large enough, and with a spectrum that decays slowly enough, for an iteration from a random start.
    iterated = (weight(600, 600).double() * 0.9 ** torch.arange(600) @ weight(600, 600, seed=1).double()).float()
    for matrix in (iterated, minilm["output"]):
        first = lrs.svd(matrix, 16, seed=7)
        for count in (1, 2, 3):
            lrs.set_num_threads(count)
            again = lrs.svd(matrix, 16, seed=7)
            assert [bits(part) for part in again[:3]] == [bits(part) for part in first[:3]]
    assert bits(lrs.svd(iterated, 16, seed=8).U) != bits(lrs.svd(iterated, 16, seed=7).U)


def test_results_do_not_depend_on_the_threads(threads: None, minilm: dict[str, torch.Tensor]) -> None:
    matrix = minilm["intermediate"]
    results = []
    for count in (1, 2, 5):
        lrs.set_num_threads(count)
        results.append([bits(part) for part in (*lrs.qr(matrix, 48), *lrs.ldu(matrix, 48))])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_default_dtype(dtype: torch.dtype) -> None:
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert lrs.qr(weight(6, 5, dtype), 2).Q.dtype == expected


@pytest.mark.parametrize("asked", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_can_be_asked_for(dtype: torch.dtype, asked: torch.dtype) -> None:
    matrix = weight(20, 16, dtype)
    name = str(asked).removeprefix("torch.")
    for function in (lrs.qr, lrs.ldu, lrs.svd):
        result = function(matrix, 4, dtype=asked)
        assert result[0].dtype == result[1].dtype == result[2 if len(result) > 2 else 1].dtype == asked
        assert [bits(part) for part in function(matrix, 4, dtype=name)[:2]] == [bits(part) for part in result[:2]]
        # What is stored is the result in working precision, rounded once.
        work = function(matrix, 4, dtype=torch.promote_types(asked, torch.float32))
        for stored, exact in zip(result[:3], work[:3], strict=False):
            rounding = torch.finfo(asked).eps
            assert np.abs(float64(stored) - float64(exact)).max() <= rounding * np.abs(float64(exact)).max()


def test_numpy_gets_numpy() -> None:
    matrix = weight(20, 16).numpy()
    for dtype, expected in ((None, np.float32), (np.float64, np.float64), ("float16", np.float16), (float, np.float64)):
        result = lrs.ldu(matrix, 4, dtype=dtype)
        assert all(type(part) is np.ndarray for part in result)
        assert result.L.dtype == result.D.dtype == result.U.dtype == expected
        assert result.perm.dtype == np.int64
    from_torch = lrs.ldu(torch.from_numpy(matrix), 4)
    assert [bits(part) for part in lrs.ldu(matrix, 4)] == [bits(part) for part in from_torch]


def test_integers_of_other_types_are_ranks() -> None:
    matrix = weight(9, 7)
    expected = [bits(part) for part in lrs.qr(matrix, 3)]
    for rank in (np.int64(3), np.uint8(3), torch.tensor(3)):
        assert [bits(part) for part in lrs.qr(matrix, rank)] == expected


def test_default_device_of_torch_does_not_matter() -> None:
    with torch.device("meta"):
        assert lrs.qr(weight_on_cpu := torch.ones(4, 3, device="cpu"), 2).Q.device == weight_on_cpu.device


def test_parameters_are_read_detached() -> None:
    parameter = torch.nn.Parameter(weight(9, 7))
    result = lrs.qr(parameter, 3)
    assert not result.Q.requires_grad
    assert [bits(part) for part in result] == [bits(part) for part in lrs.qr(parameter.detach(), 3)]


def test_ldu_reads_only_what_it_needs() -> None:
    matrix = weight(30, 20)
    expected = lrs.ldu(matrix, 4)
    ignored = matrix.clone()
    ignored[expected.perm[4:], 4:] = torch.nan
    assert [bits(part) for part in lrs.ldu(ignored, 4)] == [bits(part) for part in expected]
