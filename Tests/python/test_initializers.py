# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lowrank_swift as lrs
import numpy as np
import pytest
import torch
from support import (
    DTYPES,
    LIMIT,
    SHAPES,
    SVD_LIMIT,
    bits,
    eps,
    float64,
    magnitude,
    product,
    ratio,
    run_python,
    views,
    weight,
)

Initializer = Callable[..., lrs.Factors]

PLAIN: list[Initializer] = [lrs.olora, lrs.loldu, lrs.lamda, lrs.pissa, lrs.lora_xs]
IN_PLACE: list[Initializer] = [lrs.olora_, lrs.loldu_, lrs.lamda_, lrs.pissa_]
PAIRS = list(zip(PLAIN, IN_PLACE, strict=False))  # LoRA-XS has nothing to subtract
CORES = {"olora": 0, "loldu": 1, "lamda": 2, "pissa": 0, "lora_xs": 2}


def check_shapes(factors: lrs.Factors, rows: int, columns: int, rank: int) -> None:
    assert tuple(factors.up.shape) == (rows, rank)
    assert tuple(factors.down.shape) == (rank, columns)
    dimensions = CORES[factors.method]
    assert (factors.core is None) == (dimensions == 0)
    assert factors.core is None or tuple(factors.core.shape) == (rank,) * dimensions


def check_residual(before: np.ndarray, after: torch.Tensor, factors: lrs.Factors) -> None:
    """The weight changed in place is ``W - scale * up @ core @ down`` of the factors as stored, rounded once."""
    expected = before - product(factors)
    error = np.abs(float64(after) - expected)
    computed = max(before.shape) * (np.linalg.norm(before) + magnitude(factors)) * eps(after, factors.up)
    stored = np.abs(expected) * torch.finfo(after.dtype).eps + torch.finfo(after.dtype).smallest_normal
    assert np.all(error <= stored + LIMIT * computed)
    if torch.finfo(after.dtype).bits >= 32:
        assert ratio(error, np.linalg.norm(before) + magnitude(factors), eps(after, factors.up)) < LIMIT


@pytest.mark.parametrize("functions", PAIRS, ids=lambda pair: pair[0].__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_residual(shape: tuple[int, int, int], dtype: torch.dtype, functions: tuple[Initializer, Initializer]) -> None:
    rows, columns, rank = shape
    plain, in_place = functions
    matrix = weight(rows, columns, dtype)
    before = float64(matrix).copy()
    untouched = bits(matrix)
    factors = plain(matrix, rank, scale=0.5)
    assert bits(matrix) == untouched
    assert factors.method == plain.__name__
    assert factors.scale == 0.5
    check_shapes(factors, rows, columns, rank)

    subtracted = in_place(matrix, rank, scale=0.5)
    assert [bits(part) for part in subtracted[1:4] if part is not None] == [
        bits(part) for part in factors[1:4] if part is not None
    ]
    assert subtracted.method == factors.method
    check_residual(before, matrix, subtracted)


@pytest.mark.parametrize("functions", PAIRS, ids=lambda pair: pair[0].__name__)
@pytest.mark.parametrize("name", ["query", "intermediate", "output", "positions"])
def test_pretrained_weights(
    name: str, functions: tuple[Initializer, Initializer], minilm: dict[str, torch.Tensor]
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        matrix = minilm[name].to(dtype)
        before = float64(matrix).copy()
        factors = functions[1](matrix, 16, scale=2.0)
        check_residual(before, matrix, factors)
        # The negative check: the residual is not the weight.
        assert np.linalg.norm(float64(matrix) - before) > 1e-3 * np.linalg.norm(before)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "row stride", "offset", "strided"])
@pytest.mark.parametrize("in_place", IN_PLACE, ids=lambda function: function.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_in_place(dtype: torch.dtype, in_place: Initializer, layout: str) -> None:
    matrix = views(weight(33, 26, dtype))[layout]
    base = matrix if matrix._base is None else matrix._base
    surrounding = int(base.isnan().sum())
    before = float64(matrix).copy()
    check_residual(before, matrix, in_place(matrix, 5))
    assert int(base.isnan().sum()) == surrounding


def test_olora_is_the_truncated_qr() -> None:
    matrix = weight(40, 30)
    factors, result = lrs.olora(matrix, 6, scale=3.0), lrs.qr(matrix, 6)
    assert bits(factors.up) == bits(result.Q)
    assert bits(factors.down) == bits(result.R)


def test_loldu_is_the_truncated_ldu() -> None:
    matrix = weight(40, 30)
    factors, result = lrs.loldu(matrix, 6, scale=3.0), lrs.ldu(matrix, 6)
    assert bits(factors.up[result.perm]) == bits(result.L)
    assert bits(factors.core) == bits(result.D)
    assert bits(factors.down) == bits(result.U)


def test_lamda_is_the_truncated_svd() -> None:
    matrix = weight(40, 30)
    factors, result = lrs.lamda(matrix, 6, scale=3.0, tol=1e-5, seed=9), lrs.svd(matrix, 6, tol=1e-5, seed=9)
    assert bits(factors.up) == bits(result.U)
    assert bits(factors.core) == bits(torch.diag(result.S))
    assert bits(factors.down) == bits(result.Vh)


def test_lora_xs_scales_the_left_singular_vectors_around_a_core_of_zeros() -> None:
    matrix = weight(40, 30)
    factors, result = lrs.lora_xs(matrix, 6, scale=3.0, tol=1e-5, seed=9), lrs.svd(matrix, 6, tol=1e-5, seed=9)
    assert bits(factors.up) == bits(result.U * result.S)
    assert bits(factors.core) == bits(torch.zeros(6, 6))
    assert bits(factors.down) == bits(result.Vh)
    assert not factors.delta().any()


@pytest.mark.parametrize("scale", [1.0, 0.25, 16.0])
def test_pissa_splits_the_singular_values(scale: float) -> None:
    matrix = weight(40, 30)
    factors, result = lrs.pissa(matrix, 6, scale=scale), lrs.svd(matrix, 6)
    root = np.sqrt(float64(result.S) / scale)
    expected_up, expected_down = float64(result.U) * root, root[:, None] * float64(result.Vh)
    unit = eps(matrix)
    assert ratio(float64(factors.up) - expected_up, np.linalg.norm(expected_up), unit) < SVD_LIMIT
    assert ratio(float64(factors.down) - expected_down, np.linalg.norm(expected_down), unit) < SVD_LIMIT


@pytest.mark.parametrize("initializer", PLAIN[:3], ids=lambda function: function.__name__)
def test_scale_does_not_change_the_factors(initializer: Initializer) -> None:
    matrix = weight(20, 30)
    one, other = initializer(matrix, 4), initializer(matrix, 4, scale=-7.5)
    assert other.scale == -7.5
    assert [bits(part) for part in one[1:4] if part is not None] == [
        bits(part) for part in other[1:4] if part is not None
    ]


def test_loldu_diagonals() -> None:
    matrix = weight(60, 50, torch.float64)
    d = float64(lrs.ldu(matrix, 32).D)

    def core(diagonal: str, seed: int = 0) -> np.ndarray:
        factors = lrs.loldu(matrix, 32, diagonal=diagonal, seed=seed)
        assert bits(factors.up) == bits(lrs.loldu(matrix, 32).up)
        return float64(factors.core)

    assert np.array_equal(core("ldu"), d)
    assert np.array_equal(core("ones"), np.ones(32))
    assert np.array_equal(core("zeros"), np.zeros(32))
    mean = core("mean")
    assert np.all(mean == mean[0])
    assert ratio(mean - d.mean(), np.linalg.norm(d), eps(matrix)) < LIMIT
    uniform = core("uniform")
    assert np.abs(uniform).max() <= abs(d.mean()) / 2
    assert np.unique(uniform).size == 32
    normal = core("normal")
    assert np.unique(normal).size == 32
    # Five standard errors: a sample of another mean or spread fails.
    assert abs(normal.mean() - d.mean()) < 5 * d.std() / np.sqrt(32)
    assert 0.4 < normal.std() / d.std() < 1.8
    for diagonal in ("uniform", "normal"):
        assert np.array_equal(core(diagonal, seed=5), core(diagonal, seed=5))
        assert not np.array_equal(core(diagonal, seed=5), core(diagonal, seed=6))


@pytest.mark.parametrize("diagonal", ["ldu", "ones", "zeros", "mean", "uniform", "normal"])
def test_loldu_residual_uses_the_diagonal_that_is_returned(diagonal: str) -> None:
    matrix = weight(30, 40)
    before = float64(matrix).copy()
    factors = lrs.loldu_(matrix, 8, diagonal=diagonal, seed=2)
    check_residual(before, matrix, factors)


@pytest.mark.parametrize("in_place", IN_PLACE, ids=lambda function: function.__name__)
@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual_uses_the_factors_as_stored(dtype: torch.dtype, asked: torch.dtype, in_place: Initializer) -> None:
    matrix = weight(24, 28, dtype)
    before = float64(matrix).copy()
    factors = in_place(matrix, 6, dtype=asked)
    assert all(part is None or part.dtype == asked for part in factors[1:4])
    check_residual(before, matrix, factors)


@pytest.mark.parametrize("in_place", IN_PLACE, ids=lambda function: function.__name__)
def test_zero_and_deficient_weights(in_place: Initializer) -> None:
    for matrix in (torch.zeros(12, 9), torch.ones(12, 9), torch.outer(torch.arange(12.0), torch.arange(9.0))):
        before = float64(matrix).copy()
        factors = in_place(matrix, 4)
        assert all(part is None or bool(part.isfinite().all()) for part in factors[1:4])
        check_residual(before, matrix, factors)


@pytest.mark.parametrize("method", ["olora", "lamda", "pissa"])
def test_full_rank_residual_is_nothing(method: str) -> None:
    matrix = weight(20, 31)
    size = np.linalg.norm(float64(matrix))
    options: dict[str, Any] = {} if method == "olora" else {"tol": 1e-12}
    getattr(lrs, f"{method}_")(matrix, 20, **options)
    assert ratio(float64(matrix), size, eps(matrix)) < SVD_LIMIT


@pytest.mark.parametrize("in_place", IN_PLACE, ids=lambda function: function.__name__)
def test_failure_leaves_the_weight_as_it_was(in_place: Initializer) -> None:
    matrix = weight(16, 16)
    matrix[3, 1] = torch.nan
    before = bits(matrix)
    with pytest.raises(ValueError, match="weight"):
        in_place(matrix, 4)
    assert bits(matrix) == before

    huge = weight(16, 16) * 1e13  # the factors are finite, but not in float16
    before = bits(huge)
    if in_place is not lrs.loldu_:
        with pytest.raises(lrs.LinAlgError):
            in_place(huge, 4, dtype="float16")
        assert bits(huge) == before
    with pytest.raises(ValueError, match="scale"):
        in_place(huge, 4, scale=float("nan"))
    assert bits(huge) == before


@pytest.mark.parametrize("in_place", IN_PLACE, ids=lambda function: function.__name__)
def test_autograd_sees_the_change(in_place: Initializer) -> None:
    parameter = torch.nn.Parameter(weight(8, 8))
    version = parameter._version
    x = torch.ones(2, 8, requires_grad=True)
    y = torch.nn.functional.linear(x, parameter)
    factors = in_place(parameter, 2)
    assert parameter._version > version
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert not factors.up.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_plain_forms_leave_the_version_alone() -> None:
    parameter = torch.nn.Parameter(weight(8, 8))
    version = parameter._version
    for initializer in PLAIN:
        initializer(parameter, 2)
    assert parameter._version == version


def test_inference_tensors() -> None:
    with torch.inference_mode():
        matrix = weight(8, 8)
        before = float64(matrix).copy()
        check_residual(before, matrix, lrs.olora_(matrix, 2))


def test_numpy_in_place() -> None:
    for _, in_place in PAIRS:
        matrix = weight(12, 15).numpy().copy()
        before = matrix.astype(np.float64)
        factors = in_place(matrix, 3)
        assert type(factors.up) is np.ndarray
        error = matrix - (before - product(factors))
        assert ratio(error, np.linalg.norm(before) + magnitude(factors), eps(matrix)) < LIMIT


def test_reproducible(threads: None) -> None:
    matrix = weight(200, 150)
    for initializer in [*IN_PLACE, lrs.lora_xs]:
        results = []
        for count in (1, 2, 4):
            lrs.set_num_threads(count)
            changed = matrix.clone()
            factors = initializer(changed, 24)
            results.append([bits(part) for part in (*factors[1:4], changed) if part is not None])
        assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("method", ["olora", "olora_", "loldu", "loldu_", "lamda", "pissa_"])
def test_no_float32_copy_of_the_weight(method: str) -> None:
    # The copy would be 64 MiB; what the methods need beside W is a few blocks of `rank` columns.
    code = f"""
import re, torch, lowrank_swift as lrs

def memory(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

generator = torch.Generator().manual_seed(0)
# A decaying spectrum, as pretrained weights have it, so that the SVD needs few passes.
small, large = (
    (torch.randn(n, 32, generator=generator) * 0.7 ** torch.arange(32.0)).to(torch.bfloat16)
    @ torch.randn(32, n, generator=generator).to(torch.bfloat16)
    for n in (512, 4096)
)
lrs.{method}(small, 8)  # libraries allocate their buffers once
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
lrs.{method}(large, 8)
print((memory("VmHWM") - before) / (large.numel() * 4))
"""
    assert float(run_python(code)) < 0.25
