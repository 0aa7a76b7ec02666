# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import chain, combinations
from typing import Any

import lowrank_swift as lrs
import numpy as np
import pytest
import torch
from support import LIMIT, bits, eps, float64, magnitude, product, ratio, weight

CORES = ["none", "diagonal", "square"]
TOKENS = [0, 1, 2, 7, 33, 130]


def factors(core: str, rows: int, columns: int, rank: int, dtype: torch.dtype = torch.float32) -> lrs.Factors:
    parts = {
        "none": None,
        "diagonal": weight(1, rank, dtype, seed=3)[0] * 20,
        "square": weight(rank, rank, dtype, seed=3) * 20,
    }
    up, down = weight(rows, rank, dtype, seed=1) * 20, weight(rank, columns, dtype, seed=2) * 20
    return lrs.Factors("test", up, parts[core], down, -0.75)


def dense_core(f: lrs.Factors) -> np.ndarray:
    core = np.eye(f.down.shape[0]) if f.core is None else float64(f.core)
    return np.diag(core) if core.ndim == 1 else core


def close(actual: Any, expected: np.ndarray, size: float, unit: float, dtype: torch.dtype) -> bool:
    """Equal up to the rounding of the sums, and of storing the result in `dtype`."""
    stored = np.linalg.norm(expected) * torch.finfo(dtype).eps
    error = np.linalg.norm(float64(actual) - expected)
    return bool(error <= stored + LIMIT * max(*expected.shape, 1) * size * unit)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_forward(dtype: torch.dtype, tokens: int, core: str) -> None:
    f = factors(core, 48, 37, 9)
    x, start = weight(tokens, 37, dtype, seed=5) * 20, weight(tokens, 48, dtype, seed=6) * 20
    out = start.clone()
    before = bits(x), bits(f.up), bits(f.down)
    h = lrs.adapter_forward(x, f, out)
    assert (bits(x), bits(f.up), bits(f.down)) == before
    assert h.dtype == out.dtype == dtype
    expected_h = float64(x) @ float64(f.down).T
    expected = float64(start) + f.scale * expected_h @ dense_core(f).T @ float64(f.up).T
    sizes = np.linalg.norm(float64(x)) * np.linalg.norm(float64(f.down)), np.linalg.norm(float64(start))
    assert close(h, expected_h, sizes[0], eps(x, f.up), dtype)
    assert close(out, expected, sizes[1] + np.linalg.norm(float64(x)) * magnitude(f), eps(x, f.up), dtype)
    assert tokens == 0 or not torch.equal(out, start)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_backward(dtype: torch.dtype, tokens: int, core: str) -> None:
    f = factors(core, 48, 37, 9, torch.float64 if dtype == torch.float64 else torch.float32)
    x, grad = weight(tokens, 37, dtype, seed=5) * 20, weight(tokens, 48, dtype, seed=6) * 20
    h = (float64(x) @ float64(f.down).T).astype(np.float32 if dtype != torch.float64 else np.float64)
    result = lrs.adapter_backward(grad, x, torch.from_numpy(h), f)

    inputs = {
        name: torch.from_numpy(np.array(value, dtype=np.float64)).requires_grad_()
        for name, value in (
            ("x", float64(x)),
            ("down", float64(f.down)),
            ("core", dense_core(f)),
            ("up", float64(f.up)),
        )
    }
    y = f.scale * (inputs["x"] @ inputs["down"].T) @ inputs["core"].T @ inputs["up"].T
    y.backward(grad.double())
    unit = eps(x, f.up)
    size = np.linalg.norm(float64(grad)) * max(1.0, np.linalg.norm(float64(x))) * (1 + magnitude(f))
    for name, value in result._asdict().items():
        if name == "core" and core == "none":
            assert value is None
            continue
        expected = float64(inputs[name].grad)
        if name == "core" and core == "diagonal":
            expected = np.diag(expected)
        assert value.dtype == (dtype if name == "x" else f.up.dtype)
        assert tuple(value.shape) == expected.shape
        assert close(value, expected, size, unit, value.dtype), name
        assert tokens == 0 or bool(value.any()), name


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("shape", [(6,), (0,), (2, 3), (2, 0, 3), ()])
@pytest.mark.parametrize("frozen", [0, 2])
def test_backward_computes_only_what_is_needed(core: str, shape: tuple[int, ...], frozen: int) -> None:
    f = factors(core, 12, 10, 4)
    tokens = int(np.prod(shape))
    x, grad = weight(6, 10)[:tokens].reshape(*shape, 10), weight(6, 12)[:tokens].reshape(*shape, 12)
    h = x @ f.down.T
    everything = lrs.adapter_backward(grad, x, h, f, frozen_columns=frozen)
    names = [name for name, value in everything._asdict().items() if value is not None]
    assert names == [name for name in everything._fields if name != "core" or core != "none"]
    for need in chain.from_iterable(combinations(names, count) for count in range(len(names) + 1)):
        for kept in [x, None] if "down" not in need else [x]:
            result = lrs.adapter_backward(grad, kept, h, f, need=need, frozen_columns=frozen)
            for name, value in result._asdict().items():
                if name in need:
                    assert value.shape == getattr(everything, name).shape
                    assert bits(value) == bits(getattr(everything, name)), (need, name)
                else:
                    assert value is None
    for need in ({"x"}, ["up", "x"], frozenset(names)):
        assert [value is not None for value in lrs.adapter_backward(grad, x, h, f, need=need)] == [
            name in need for name in everything._fields
        ]
    without_x = lrs.adapter_backward(grad, None, h, f, frozen_columns=frozen)
    assert without_x.down is None
    assert bits(without_x.x) == bits(everything.x)


@pytest.mark.parametrize("frozen", [0, 1, 3, 4])
def test_frozen_columns_have_no_gradient(frozen: int) -> None:
    f = factors("square", 12, 10, 4)
    x, grad = weight(6, 10), weight(6, 12)
    h = x @ f.down.T
    everything = lrs.adapter_backward(grad, None, h, f).up
    result = lrs.adapter_backward(grad, None, h, f, frozen_columns=frozen).up
    assert not result[:, :frozen].any()
    assert bool(result[:, frozen:].all()) or frozen == 4
    size = np.linalg.norm(float64(everything))
    assert ratio(float64(result[:, frozen:]) - float64(everything[:, frozen:]), size, eps(grad)) < LIMIT


def test_leading_dimensions() -> None:
    f = factors("none", 12, 10, 4)
    x = weight(30, 10)
    flat = torch.zeros(30, 12)
    flat_h = lrs.adapter_forward(x, f, flat)
    for shape in ((2, 15), (5, 2, 3), (1, 30)):
        out = torch.zeros(*shape, 12)
        h = lrs.adapter_forward(x.view(*shape, 10), f, out)
        assert bits(out) == bits(flat)
        assert h.shape == (*shape, 4)
        assert bits(h) == bits(flat_h)
        gradients = lrs.adapter_backward(out, x.view(*shape, 10), h, f)
        assert gradients.x.shape == (*shape, 10)
    vector = torch.zeros(12)
    assert lrs.adapter_forward(x[0], f, vector).shape == (4,)
    assert bits(vector) == bits(flat[0])


def test_what_would_need_a_copy_is_refused() -> None:
    f = factors("none", 12, 10, 4)
    scattered = torch.zeros(3, 2, 12).transpose(0, 1)
    with pytest.raises(ValueError, match="out: expected leading dimensions that can be flattened"):
        lrs.adapter_forward(torch.zeros(2, 3, 10), f, scattered)
    with pytest.raises(ValueError, match="x: expected leading dimensions that can be flattened"):
        lrs.adapter_forward(np.zeros((3, 2, 10), "f").transpose(1, 0, 2), f, np.zeros((2, 3, 12), "f"))


def test_strided_operands() -> None:
    f = factors("square", 12, 10, 4)
    x = weight(20, 30)[::2, ::3]
    whole = torch.full((10, 40), torch.nan)
    out = whole[:, 5:17].zero_()
    lrs.adapter_forward(x, lrs.Factors("test", f.up.T.contiguous().T, f.core.T, f.down, 2.0), out)
    expected = 2.0 * float64(x) @ float64(f.down).T @ float64(f.core) @ float64(f.up).T
    assert close(out, expected, np.linalg.norm(float64(x)) * 10 * magnitude(f), eps(x), torch.float32)
    assert int(whole.isnan().sum()) == 10 * 28


def test_autograd_sees_out_change() -> None:
    f = factors("none", 12, 10, 4)
    out = torch.zeros(3, 12)
    version = out._version
    lrs.adapter_forward(torch.zeros(3, 10), f, out)
    assert out._version > version


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_merge_and_unmerge(dtype: torch.dtype, core: str) -> None:
    f = factors(core, 33, 26, 5)
    matrix = weight(33, 26, dtype)
    before = float64(matrix).copy()
    version = matrix._version
    assert lrs.merge_(matrix, f) is matrix
    assert matrix._version > version
    size = np.linalg.norm(before) + magnitude(f)
    assert close(matrix, before + product(f), size, eps(matrix, f.up), dtype)
    merged = float64(matrix).copy()
    assert np.linalg.norm(merged - before) > 0.1 * np.linalg.norm(before)
    lrs.unmerge_(matrix, f)
    assert close(matrix, merged - product(f), size, eps(matrix, f.up), dtype)


@pytest.mark.parametrize("core", CORES)
def test_delta(core: str) -> None:
    f = factors(core, 33, 26, 5)
    delta = f.delta()
    assert delta.shape == (33, 26)
    assert delta.dtype == f.up.dtype
    assert ratio(float64(delta) - product(f), magnitude(f), eps(delta)) < LIMIT
    arrays = lrs.Factors("test", f.up.numpy(), None if f.core is None else f.core.numpy(), f.down.numpy(), f.scale)
    assert type(arrays.delta()) is np.ndarray
    assert bits(arrays.delta()) == bits(delta)


def test_factors_are_an_immutable_record() -> None:
    f = lrs.olora(weight(6, 5), 2, scale=3)
    assert (f.method, f.core, f.scale) == ("olora", None, 3.0)
    assert isinstance(f.scale, float)
    with pytest.raises(AttributeError):
        f.scale = 1.0  # type: ignore[misc]
    assert repr(f) == "Factors(method='olora', up=(6, 2), core=None, down=(2, 5), scale=3.0)"
    assert f == f
    assert f != lrs.olora(weight(6, 5), 2, scale=3)
    assert len({f, f}) == 1


def test_merge_of_non_finite_factors_changes_nothing() -> None:
    for part in ("up", "core", "down"):
        f = factors("diagonal", 6, 5, 2)
        getattr(f, part).view(-1)[1] = torch.inf
        matrix = weight(6, 5)
        before = bits(matrix)
        with pytest.raises(ValueError, match=part):
            lrs.merge_(matrix, f)
        assert bits(matrix) == before
