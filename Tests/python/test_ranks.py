# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Spectra and rank allocation against the definitions, over tensors."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import lowrank_swift as lrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowrank_swift import _native
from lowrank_swift._allocation import allocate_with_spectra
from support import DTYPES, SHAPES, SVD_LIMIT, bits, eps, float64, views, weight

safetensors = pytest.importorskip("safetensors.torch")


def with_spectrum(values: Any, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A float64 matrix of these singular values."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, len(values), generator=generator, dtype=torch.float64) for n in (rows, columns))
    scaled = torch.linalg.qr(left).Q * torch.as_tensor(values, dtype=torch.float64)
    return scaled @ torch.linalg.qr(right).Q.T


def shares_of(matrix: Any) -> list[float]:
    """E(1), E(2), ... from LAPACK in float64."""
    squares = np.linalg.svd(float64(matrix), compute_uv=False) ** 2
    return [1.0] * len(squares) if squares[0] == 0 else list(np.cumsum(squares) / squares.sum())


def follow_the_rule(
    shares: dict[str, list[float]], budget: int, rank_min: int, limits: dict[str, int], costs: dict[str, int]
) -> tuple[dict[str, int], int]:
    """The definition, step by step: always the smallest (E_l(k), name, k) of the layers that may take one more."""
    ranks = dict.fromkeys(shares, rank_min)
    left = budget - rank_min * sum(costs.values())
    while True:
        open_layers = [
            (shares[name][k - 1], name, k)
            for name, k in ranks.items()
            if k < limits[name] and shares[name][k - 1] < 1 - 10 * 2.0**-23 and costs[name] <= left
        ]
        if not open_layers:
            return ranks, left
        _, name, _ = min(open_layers)
        ranks[name] += 1
        left -= costs[name]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
def test_spectrum(rows: int, columns: int, rank: int, dtype: torch.dtype) -> None:
    matrix = weight(rows, columns, dtype)
    exact = np.linalg.svd(float64(matrix), compute_uv=False)
    for layout, view in views(matrix).items():
        values, share = lrs.spectrum(view, rank)
        assert values.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        assert values.shape == (rank,)
        error = np.linalg.norm(float64(values) - exact[:rank]) / (max(rows, columns) * exact[0] * eps(values))
        assert error < SVD_LIMIT, layout
        expected = float((exact[:rank] ** 2).sum() / (exact**2).sum())
        assert abs(share - expected) < SVD_LIMIT * max(rows, columns) * eps(values), layout


def test_spectrum_is_that_of_the_svd_for_long_sides() -> None:
    matrix = weight(1100, 1030)
    values, share = lrs.spectrum(matrix, 3, tol=0.01, seed=4)
    assert bits(values) == bits(lrs.svd(matrix, 3, tol=0.01, seed=4).S)
    assert share == pytest.approx(float((float64(values) ** 2).sum() / (float64(matrix) ** 2).sum()), rel=1e-7)


def test_spectrum_in_other_frameworks_and_dtypes() -> None:
    matrix = weight(20, 12)
    values, share = lrs.spectrum(matrix, 5)
    in_numpy = lrs.spectrum(matrix.numpy(), 5)
    assert isinstance(in_numpy.singular_values, np.ndarray)
    assert bits(in_numpy.singular_values) == bits(values)
    assert in_numpy.share == share
    wide = lrs.spectrum(matrix, 5, dtype=torch.float64).singular_values
    assert wide.dtype is torch.float64
    assert bits(wide.float()) == bits(values)
    bare = lrs.Tensor((20, 12), "bfloat16")
    assert isinstance(lrs.spectrum(bare, 5).singular_values, lrs.Tensor)
    assert lrs.spectrum(bare, 5).share == 1.0


def test_spectrum_does_not_depend_on_threads() -> None:
    matrix = weight(400, 300, torch.bfloat16)
    try:
        results = []
        for threads in (1, 2, 3):
            lrs.set_num_threads(threads)
            values, share = lrs.spectrum(matrix, 40)
            results.append((bits(values), share))
    finally:
        lrs.set_num_threads(0)
    assert results[0] == results[1] == results[2]


spectra = st.lists(st.floats(0, 1), min_size=6, max_size=6).map(lambda values: sorted(values, reverse=True))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(spectra, st.just([1.0] * 6), st.just([0.0] * 6), st.just([1.0] + [0.0] * 5)), min_size=1, max_size=5
    ),
    st.integers(0, 40),
    st.integers(1, 3),
    st.integers(3, 9),
    st.booleans(),
)
def test_the_rule(layers: list[list[float]], extra: int, rank_min: int, rank_max: int, by_parameters: bool) -> None:
    """Against the definition, one step at a time, on the same shares."""
    names = [f"layer {i}" for i in range(len(layers))][::-1]
    weights = {
        name: with_spectrum(values, 6 + i, 9, seed=i)
        for i, (name, values) in enumerate(zip(names, layers, strict=True))
    }
    # Shares as the library computes them, so that equal ones are equal.
    _, found = allocate_with_spectra(weights, rank_min, rank_min=rank_min)
    shares = {name: [found[name].share(k) for k in range(1, 7)] for name in names}
    limits = {name: min(6, rank_max) for name in names}
    costs = {name: sum(weights[name].shape) if by_parameters else 1 for name in names}
    budget = rank_min * sum(costs.values()) + extra * (15 if by_parameters else 1)
    given_budget = {"parameters": budget} if by_parameters else {"mean_rank": budget / len(names)}
    ranks = lrs.allocate_ranks(weights, **given_budget, rank_min=rank_min, rank_max=rank_max)
    spent = budget if by_parameters else math.floor(budget / len(names) * len(names))
    expected, left = follow_the_rule(shares, spent, rank_min, limits, costs)
    assert (ranks, ranks.unspent) == (expected, left)
    assert list(ranks) == names


def test_spread_energy_gets_more() -> None:
    steep, flat = with_spectrum([2.0**-k for k in range(30)], 40, 30), with_spectrum([1.0] * 30, 40, 30)
    ranks = lrs.allocate_ranks({"steep": steep, "flat": flat}, 8)
    assert ranks["flat"] > ranks["steep"] >= 1
    assert sum(ranks.values()) == 16
    assert ranks.unspent == 0


def test_ties_go_by_name_not_by_order() -> None:
    matrix = weight(10, 8)
    assert lrs.allocate_ranks({"b": matrix, "a": matrix}, 2.5) == {"a": 3, "b": 2}
    assert list(lrs.allocate_ranks({"b": matrix, "a": matrix}, 2.5)) == ["b", "a"]
    assert lrs.allocate_ranks({"b": matrix, "a": matrix}, 2.999) == {"a": 3, "b": 2}, "the budget is rounded down"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_unspent_budget_is_reported(dtype: torch.dtype) -> None:
    rank_three = torch.randint(-3, 4, (12, 3)).double() @ torch.randint(-3, 4, (3, 9)).double()
    assert int(torch.linalg.matrix_rank(rank_three)) == 3
    weights = {"zero": torch.zeros(5, 4, dtype=dtype), "rank three": rank_three.to(dtype), "full": weight(4, 6, dtype)}
    ranks = lrs.allocate_ranks(weights, 10)
    assert ranks == {"zero": 1, "rank three": 3, "full": 4}
    assert ranks.unspent == 22
    ranks = lrs.allocate_ranks(weights, parameters=500, rank_max=2)
    assert ranks == {"zero": 1, "rank three": 2, "full": 2}
    assert ranks.unspent == 500 - 9 - 2 * 21 - 2 * 10


def test_singular_values_are_computed_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that comes to the end of what is known is looked at again; the ranks are those of all values."""
    flat = torch.eye(1500, 1100) + 1e-3 * weight(1500, 1100)
    # Heads of large values, so that the steps go to the flat layer far beyond twice the mean rank.
    steep = with_spectrum([2.0**-k for k in range(12)], 1200, 1050).float()
    asked: list[int] = []
    spectrum = _native.spectrum

    def watched(weight: Any, rank: int, *rest: Any) -> Any:
        asked.append(rank)
        return spectrum(weight, rank, *rest)

    monkeypatch.setattr(_native, "spectrum", watched)
    ranks = lrs.allocate_ranks({"flat": flat, "steep": steep}, 12, tol=0.2)
    assert asked[:2] == [24, 24]
    assert sum(ranks.values()) == 24
    assert ranks["flat"] == 23
    assert len(asked) == 2, "23 of the 24 values that are known tell all"
    asked.clear()
    more = lrs.allocate_ranks({"flat": flat, "a": steep, "b": steep, "c": steep}, 12, tol=0.2)
    assert asked == [24] * 4 + [48]
    assert (more["flat"], more.unspent) == (45, 0)


def test_results_are_dicts() -> None:
    ranks = lrs.allocate_ranks({"a": weight(8, 6), "b": weight(6, 6)}, 4)
    assert isinstance(ranks, dict)
    assert json.loads(json.dumps(ranks)) == ranks
    again = pickle.loads(pickle.dumps(ranks))
    assert again == ranks
    assert again.unspent == ranks.unspent


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "mean_rank, parameters: expected exactly one of the two, got neither"),
        ({"mean_rank": 2, "parameters": 100}, ValueError, "expected exactly one of the two, got both"),
        ({"mean_rank": 0}, ValueError, "mean_rank: expected a finite number of at least rank_min = 1, got 0"),
        ({"mean_rank": math.nan}, ValueError, "mean_rank: expected"),
        ({"mean_rank": math.inf}, ValueError, "mean_rank: expected"),
        ({"mean_rank": True}, TypeError, "mean_rank: expected a number, got bool"),
        ({"mean_rank": "3"}, TypeError, "mean_rank: expected a number, got str"),
        ({"parameters": 3}, ValueError, "parameters: expected 46 <= parameters"),
        ({"parameters": 2**63}, ValueError, "parameters: expected"),
        ({"parameters": 1e3}, TypeError, "parameters: expected an int, got float"),
        ({"mean_rank": 2, "rank_min": 0}, ValueError, "rank_min: expected at least 1, got 0"),
        ({"mean_rank": 20, "rank_min": 9}, ValueError, r"rank_min: expected at most min\(m, n\) = 8 of 'a', got 9"),
        ({"mean_rank": 2**40, "rank_min": 2**40}, ValueError, "rank_min: expected at most"),
        ({"mean_rank": 2, "rank_min": 1.0}, TypeError, "rank_min: expected an int, got float"),
        ({"mean_rank": 2, "rank_min": True}, TypeError, "rank_min: expected an int, got bool"),
        ({"mean_rank": 3, "rank_min": 3, "rank_max": 2}, ValueError, "rank_max: expected at least 3, got 2"),
        ({"mean_rank": 3, "rank_max": "2"}, TypeError, "rank_max: expected an int, got str"),
        ({"mean_rank": 2, "targets": "a"}, TypeError, "targets: expected a sequence of names, got 'a'"),
        ({"mean_rank": 2, "targets": []}, ValueError, "targets: expected at least one name"),
        ({"mean_rank": 2, "targets": [3]}, ValueError, "targets: expected at least one name"),
        ({"mean_rank": 2, "targets": ["c"]}, ValueError, "targets: expected names of weight matrices, got 'c'"),
        ({"mean_rank": 2, "tol": 0.0}, ValueError, "a: tol: expected 0 < tol < 1"),
        ({"mean_rank": 2, "tol": "x"}, TypeError, "a: tol: expected a float"),
        ({"mean_rank": 2, "seed": -1}, ValueError, "a: seed: expected"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lrs.allocate_ranks({"a": weight(10, 8), "b": weight(12, 16)}, **arguments)


def test_budgets_beyond_all_layers() -> None:
    matrix = {"a": weight(10, 8)}
    assert lrs.allocate_ranks(matrix, 2**40) == {"a": 8}
    assert lrs.allocate_ranks(matrix, 1e300) == {"a": 8}
    assert lrs.allocate_ranks(matrix, parameters=2**63 - 1) == {"a": 8}
    assert lrs.allocate_ranks(matrix, 3, rank_max=2**40) == {"a": 3}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (None, TypeError, "b: weight: expected"),
        (torch.ones(3), ValueError, "b: weight: expected 2 dimensions"),
        (torch.ones(0, 4), ValueError, "b: weight: expected a matrix with at least one entry"),
        (torch.ones(3, 4, dtype=torch.int32), TypeError, "b: weight: expected float32"),
        (torch.full((3, 4), math.nan), ValueError, "b: weight: expected finite values"),
        (torch.full((3, 4), math.inf, dtype=torch.bfloat16), ValueError, "b: weight: expected finite values"),
        (torch.ones(3, 4, device="meta"), (BufferError, TypeError, RuntimeError, ValueError), "b: "),
    ],
    ids=str,
)
def test_weights_that_are_none(bad: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        lrs.allocate_ranks({"a": weight(10, 8), "b": bad}, 2)


def test_sources_of_other_types() -> None:
    for source in (3, None, object(), b"model.safetensors", [3], [None, "model.safetensors"]):
        with pytest.raises(TypeError, match="weights: expected"):
            lrs.allocate_ranks(source, 2)  # type: ignore[arg-type]
    for mapping in ({}, {3: weight(4, 4)}):
        with pytest.raises(ValueError, match="weights: expected at least one matrix, by name"):
            lrs.allocate_ranks(mapping, 2)  # type: ignore[arg-type]


def test_read_only_and_shared_weights_are_only_read() -> None:
    matrix = weight(10, 8).numpy()
    matrix.flags.writeable = False
    before = bits(matrix)
    assert lrs.allocate_ranks({"a": matrix, "b": matrix}, 2) == {"a": 2, "b": 2}
    parameter = torch.nn.Parameter(weight(10, 8))
    assert lrs.allocate_ranks({"a": parameter}, 2) == {"a": 2}
    assert bits(matrix) == before


def test_native_arguments() -> None:
    """The extension's own checks, behind which the public functions never come."""
    one, norm = np.ones(1).tobytes(), np.ones(1).tobytes()
    count = np.ones(1, dtype=np.int64).tobytes()
    assert _native.allocate_ranks(one, count, norm, count, count, 1, 1) == ([1], 0, -1)
    for bad in ((b"", count), (one, count + count), (one, b"12345678"), (b"1", count), (one, np.int64(-1).tobytes())):
        with pytest.raises(ValueError):
            _native.allocate_ranks(bad[0], bad[1], norm, count, count, 1, 1)
    with pytest.raises(TypeError, match="values: expected bytes, got list"):
        _native.allocate_ranks([1.0], count, norm, count, count, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 or 2 dimensions"):
        _native.contents(torch.ones(2, 2, 2), "array")
    with pytest.raises(TypeError):
        _native.contents(torch.ones(2, 2, dtype=torch.int8), "array")
    matrix = weight(5, 4)
    for view in views(matrix).values():
        assert _native.contents(view, "array") == bits(matrix)
    assert _native.contents(torch.ones(3, 0), "array") == b""
    with open(__file__, "rb") as file:
        out = torch.zeros(2, 3)
        _native.read_file(file.fileno(), 4, out)
        assert bits(out) == Path(__file__).read_bytes()[4:28]
        with pytest.raises(ValueError, match="contiguous"):
            _native.read_file(file.fileno(), 0, out.T)
        with pytest.raises(ValueError, match="end of the file"):
            _native.read_file(file.fileno(), 2**40, out)
        with pytest.raises(OSError):
            _native.read_file(file.fileno(), -1, out)
    with pytest.raises(OSError):
        _native.read_file(-1, 0, out)
