# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import lowrank_swift as lrs
import numpy as np
import pytest
import torch
from lowrank_swift import _native
from support import bits, weight

INITIALIZERS = [lrs.olora, lrs.olora_, lrs.loldu, lrs.loldu_, lrs.lamda, lrs.lamda_, lrs.pissa, lrs.pissa_, lrs.lora_xs]
FUNCTIONS: list[Callable[..., Any]] = [lrs.qr, lrs.ldu, lrs.svd, lrs.spectrum, *INITIALIZERS]
SEEDED = [lrs.svd, lrs.spectrum, lrs.lora_xs, lrs.loldu, lrs.loldu_, lrs.lamda, lrs.lamda_, lrs.pissa, lrs.pissa_]
TOLERANT = [lrs.svd, lrs.spectrum, lrs.lora_xs, lrs.lamda, lrs.lamda_, lrs.pissa, lrs.pissa_]


def named(function: Callable[..., Any]) -> str:
    return function.__name__


every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=named)


@every_function
@pytest.mark.parametrize("bad", [None, 3, "weight", [[1.0, 2.0], [3.0, 4.0]], object()], ids=repr)
def test_weight_of_another_type(function: Callable[..., Any], bad: Any) -> None:
    with pytest.raises(TypeError, match=rf"weight: expected .*, got {type(bad).__name__}"):
        function(bad, 1)


@every_function
@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn],
    ids=str,
)
def test_weight_of_another_dtype(function: Callable[..., Any], dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"weight: expected .*float32"):
        function(torch.ones(4, 4).to(dtype), 1)


@every_function
@pytest.mark.parametrize("dtype", [">f4", object, "U3", "M8[s]"])
def test_numpy_dtypes_that_dlpack_lacks(function: Callable[..., Any], dtype: Any) -> None:
    with pytest.raises((TypeError, BufferError), match="weight"):
        function(np.zeros((4, 4), dtype=dtype), 1)


@every_function
@pytest.mark.parametrize("shape", [(), (4,), (4, 4, 4), (1, 4, 4, 1)], ids=str)
def test_weight_of_other_dimensions(function: Callable[..., Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"weight: expected 2 dimensions, got {len(shape)}"):
        function(torch.ones(shape), 1)


@every_function
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_empty_weight(function: Callable[..., Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"rank|weight"):
        function(torch.ones(shape), 1)


@every_function
@pytest.mark.parametrize("rank", [0, -1, 5, 2**31, 2**40, 2**63 - 1, -(2**63)])
def test_rank_out_of_range(function: Callable[..., Any], rank: int) -> None:
    message = re.escape(f"rank: expected 1 <= rank <= min(m, n) = 4, got {rank}")
    with pytest.raises(ValueError, match=message):
        function(weight(6, 4), rank)


@every_function
@pytest.mark.parametrize("rank", [2**63, 2**100, -(2**63) - 1])
def test_rank_beyond_64_bits(function: Callable[..., Any], rank: int) -> None:
    with pytest.raises(ValueError, match="rank: expected an int of at most 64 bits"):
        function(weight(6, 4), rank)


@every_function
@pytest.mark.parametrize("rank", [2.0, True, False, "2", None, [2], np.float32(2), np.True_, 2 + 0j], ids=repr)
def test_rank_of_another_type(function: Callable[..., Any], rank: Any) -> None:
    with pytest.raises(TypeError, match=f"rank: expected an int, got {type(rank).__name__}"):
        function(weight(6, 4), rank)


@every_function
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_non_finite_weight(function: Callable[..., Any], dtype: torch.dtype, bad: float) -> None:
    matrix = weight(20, 18, dtype)
    matrix[13, 1] = bad  # a column that all methods read
    before = bits(matrix)
    with pytest.raises(ValueError, match=r"weight: .*13, 1"):
        function(matrix, 3)
    assert bits(matrix) == before


@pytest.mark.parametrize("function", [f for f in FUNCTIONS if f not in (lrs.ldu, lrs.loldu, lrs.loldu_)], ids=named)
def test_non_finite_corner(function: Callable[..., Any]) -> None:
    matrix = weight(20, 18)
    matrix[-1, -1] = math.nan
    with pytest.raises(ValueError, match="weight"):
        function(matrix, 3)


@every_function
@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, "int8", "float", "f4", "float128", ""], ids=str)
def test_dtype_that_factors_cannot_have(function: Callable[..., Any], dtype: Any) -> None:
    with pytest.raises(TypeError, match="dtype: expected one of float32, float64, bfloat16, float16"):
        function(weight(6, 4), 2, dtype=dtype)


@every_function
def test_dtype_of_another_framework(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"dtype: expected a torch.dtype or its name"):
        function(weight(6, 4), 2, dtype=np.float32)
    for dtype in (torch.float32, torch.ones(2)):
        with pytest.raises(TypeError, match="dtype: expected a numpy dtype or its name"):
            function(weight(6, 4).numpy().copy(), 2, dtype=dtype)
    with pytest.raises(TypeError, match="dtype: expected one of float32, float64, float16, got bfloat16"):
        function(weight(6, 4).numpy().copy(), 2, dtype="bfloat16")


@pytest.mark.parametrize("function", INITIALIZERS, ids=named)
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_scale_that_is_no_number(function: Callable[..., Any], scale: float) -> None:
    matrix = weight(6, 4)
    before = bits(matrix)
    with pytest.raises(ValueError, match="scale: expected"):
        function(matrix, 2, scale=scale)
    assert bits(matrix) == before


@pytest.mark.parametrize("function", INITIALIZERS, ids=named)
@pytest.mark.parametrize("scale", ["1", None, [1.0], 1j], ids=repr)
def test_scale_of_another_type(function: Callable[..., Any], scale: Any) -> None:
    with pytest.raises(TypeError, match=f"scale: expected a float, got {type(scale).__name__}"):
        function(weight(6, 4), 2, scale=scale)


def test_scale_beyond_float64() -> None:
    with pytest.raises(ValueError, match="scale: expected a number within the range of float64"):
        lrs.olora(weight(6, 4), 2, scale=10**400)


@pytest.mark.parametrize("function", [lrs.pissa, lrs.pissa_], ids=named)
@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_pissa_divides_by_the_scale(function: Callable[..., Any], scale: float) -> None:
    with pytest.raises(ValueError, match="scale: expected"):
        function(weight(6, 4), 2, scale=scale)


@pytest.mark.parametrize("function", SEEDED, ids=named)
def test_seed(function: Callable[..., Any]) -> None:
    function(weight(6, 4), 2, seed=2**64 - 1)
    for seed in (-1, 2**64, 2**200):
        with pytest.raises(ValueError, match=re.escape("seed: expected 0 <= seed < 2**64, got")):
            function(weight(6, 4), 2, seed=seed)
    for bad in (1.0, True, None, "1"):
        with pytest.raises(TypeError, match=f"seed: expected an int, got {type(bad).__name__}"):
            function(weight(6, 4), 2, seed=bad)


@pytest.mark.parametrize("function", TOLERANT, ids=named)
def test_tol(function: Callable[..., Any]) -> None:
    for tol in (-1e-3, math.nan, math.inf, 1.0):
        with pytest.raises(ValueError, match="tol: expected"):
            function(weight(6, 4), 2, tol=tol)
    with pytest.raises(TypeError, match="tol: expected a float, got str"):
        function(weight(6, 4), 2, tol="1e-3")


@pytest.mark.parametrize("function", [lrs.loldu, lrs.loldu_], ids=named)
def test_diagonal(function: Callable[..., Any]) -> None:
    for diagonal in ("", "one", "LDU", "ldu\0", "\ud800"):
        with pytest.raises(ValueError, match="diagonal: expected"):
            function(weight(6, 4), 2, diagonal=diagonal)
    with pytest.raises(TypeError, match="diagonal: expected a str, got int"):
        function(weight(6, 4), 2, diagonal=1)


@every_function
def test_options_are_keywords(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        function(weight(6, 4), 2, 1.0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        function(weight(6, 4), 2, alpha=1.0)


@pytest.mark.parametrize("function", [f for f in INITIALIZERS if f.__name__.endswith("_")], ids=named)
def test_overlapping_weight_is_not_changed(function: Callable[..., Any]) -> None:
    for matrix in (torch.ones(1, 6).expand(6, 6), torch.ones(20).as_strided((6, 6), (2, 1))):
        before = bits(matrix)
        with pytest.raises(BufferError, match="weight"):
            function(matrix, 2)
        assert bits(matrix) == before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_factors_that_do_not_fit(dtype: str) -> None:
    matrix = weight(8, 8, torch.float64) * 1e200
    for function in (lrs.qr, lrs.svd, lrs.olora, lrs.lamda, lrs.pissa):
        with pytest.raises(lrs.LinAlgError):
            function(matrix, 2, dtype=dtype)
    # A unit row of U is as large as the ratio of entries.
    skewed = torch.tensor([[1e-30, 1e30]], dtype=torch.float64)
    with pytest.raises(lrs.LinAlgError):
        lrs.loldu(skewed, 1, dtype=dtype)


STATUSES = {
    1: ValueError,
    2: ValueError,
    3: ValueError,
    4: BufferError,
    5: BufferError,
    6: TypeError,
    7: BufferError,
    8: lrs.BackendUnavailableError,
    9: lrs.LinAlgError,
    10: MemoryError,
    11: lrs.InternalError,
}


@pytest.mark.parametrize(("status", "exception"), STATUSES.items())
def test_each_status_has_its_exception(status: int, exception: type[Exception]) -> None:
    assert _native._test_status(0) is None
    with pytest.raises(exception) as info:
        _native._test_status(status)
    assert type(info.value) is exception
    assert str(info.value)


@pytest.mark.parametrize("exception", [lrs.LinAlgError, lrs.BackendUnavailableError, lrs.InternalError])
def test_exceptions_pickle(exception: type[Exception]) -> None:
    assert issubclass(exception, RuntimeError)
    assert exception.__module__ == "lowrank_swift"
    error = exception("what came")
    for other in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(other) is exception
        assert other.args == ("what came",)


@pytest.mark.parametrize("count", [-1, 4097, 2**31, 2**70])
def test_number_of_threads_out_of_range(count: int) -> None:
    before = lrs.get_num_threads()
    with pytest.raises(ValueError, match="count: expected"):
        lrs.set_num_threads(count)
    assert lrs.get_num_threads() == before


def test_number_of_threads_of_another_type() -> None:
    for bad in (1.0, True, "1", None):
        with pytest.raises(TypeError, match=f"count: expected an int, got {type(bad).__name__}"):
            lrs.set_num_threads(bad)


def adapter(rank: int = 2, core: tuple[int, ...] | None = None) -> lrs.Factors:
    return lrs.Factors(
        "test", torch.ones(6, rank), None if core is None else torch.ones(core), torch.ones(rank, 4), 1.0
    )


@pytest.mark.parametrize(
    ("x", "factors", "out", "exception", "name"),
    [
        (None, adapter(), torch.ones(3, 6), TypeError, "x"),
        (torch.ones(3, 5), adapter(), torch.ones(3, 6), ValueError, "x|down"),
        (torch.ones(3, 4), adapter(), torch.ones(3, 5), ValueError, "out|up"),
        (torch.ones(3, 4), adapter(), torch.ones(2, 6), ValueError, "out|x"),
        (torch.ones(3, 4), adapter(), None, TypeError, "out"),
        (torch.ones(3, 4), "olora", torch.ones(3, 6), TypeError, "factors"),
        (torch.ones(()), adapter(), torch.ones(3, 6), ValueError, "x"),
        (torch.ones(2, 3, 4), adapter(), torch.ones(3, 2, 6), ValueError, "out"),
        (torch.ones(3, 4, dtype=torch.int32), adapter(), torch.ones(3, 6), TypeError, "x"),
        (torch.ones(3, 4), adapter(core=(3,)), torch.ones(3, 6), ValueError, "core"),
        (torch.ones(3, 4), adapter(core=(2, 3)), torch.ones(3, 6), ValueError, "core"),
        (torch.ones(3, 4), adapter(core=(2, 2, 2)), torch.ones(3, 6), ValueError, "core"),
        (torch.ones(3, 4), adapter()._replace(up=torch.ones(6, 3)), torch.ones(3, 6), ValueError, "up|down"),
        (torch.ones(3, 4), adapter()._replace(up=torch.ones(6)), torch.ones(3, 6), ValueError, "up"),
        (torch.ones(3, 4), adapter()._replace(down=torch.ones(4)), torch.ones(3, 6), ValueError, "down"),
        (torch.ones(3, 4), adapter()._replace(up=None), torch.ones(3, 6), TypeError, "up"),
        (torch.ones(3, 4), adapter()._replace(scale=math.nan), torch.ones(3, 6), ValueError, "scale"),
        (torch.ones(3, 4), adapter()._replace(scale="1"), torch.ones(3, 6), TypeError, "scale"),
        (torch.ones(3, 4), adapter(), torch.ones(1, 6).expand(3, 6), BufferError, "out"),
    ],
)
def test_forward(x: Any, factors: Any, out: Any, exception: type[Exception], name: str) -> None:
    with pytest.raises(exception, match=rf"^({name})\b"):
        lrs.adapter_forward(x, factors, out)


def test_forward_onto_its_own_input() -> None:
    square = lrs.Factors("test", torch.ones(4, 2), None, torch.ones(2, 4), 1.0)
    x = torch.ones(3, 4)
    with pytest.raises(BufferError, match=r"out|x"):
        lrs.adapter_forward(x, square, x)
    assert torch.equal(x, torch.ones(3, 4))


def test_backward() -> None:
    grad, x, h = torch.ones(3, 6), torch.ones(3, 4), torch.ones(3, 2)
    for need, exception, text in (
        (["down"], ValueError, "need: 'down' needs x"),
        (["core"], ValueError, "need: 'core' does not exist"),
        (["weight"], ValueError, "need: expected names among x, down, core, up"),
        ("up", TypeError, "need: expected a collection of names, got str"),
        (3, TypeError, "need: expected a collection of names, got int"),
    ):
        with pytest.raises(exception, match=text):
            lrs.adapter_backward(grad, None, h, adapter(), need=need)
    for arguments in ((torch.ones(3, 5), x, h), (grad, torch.ones(3, 5), h), (grad, torch.ones(2, 4), h)):
        with pytest.raises(ValueError, match=r"grad|x"):
            lrs.adapter_backward(*arguments, adapter())
    with pytest.raises(ValueError, match="h"):
        lrs.adapter_backward(grad, x, torch.ones(3, 3), adapter())
    with pytest.raises(ValueError, match="h: expected the leading dimensions"):
        lrs.adapter_backward(torch.ones(2, 3, 6), None, torch.ones(6, 2), adapter())
    with pytest.raises(ValueError, match="x: expected shape"):  # also where it is not needed
        lrs.adapter_backward(grad, torch.ones(3, 5), h, adapter(), need=["up"])
    for frozen in (-1, 3):
        with pytest.raises(ValueError, match="frozen_columns: expected"):
            lrs.adapter_backward(grad, x, h, adapter(), frozen_columns=frozen)
    with pytest.raises(TypeError, match="frozen_columns: expected an int, got float"):
        lrs.adapter_backward(grad, x, h, adapter(), frozen_columns=1.0)


@pytest.mark.parametrize("function", [lrs.merge_, lrs.unmerge_], ids=named)
def test_merge(function: Callable[..., Any]) -> None:
    for bad, exception in (
        (None, TypeError),
        (torch.ones(6, 5), ValueError),
        (torch.ones(5, 4), ValueError),
        (torch.ones(6), ValueError),
        (torch.ones(6, 4, dtype=torch.int32), TypeError),
        (torch.ones(1, 4).expand(6, 4), BufferError),
    ):
        before = None if bad is None else bits(bad)
        with pytest.raises(exception, match="weight"):
            function(bad, adapter())
        assert bad is None or bits(bad) == before
    with pytest.raises(TypeError, match=r"factors: expected a lowrank_swift.Factors, got tuple"):
        function(torch.ones(6, 4), (1, 2))
    for scale in (None, [], "1", 1j):
        with pytest.raises(TypeError, match="scale: expected a float"):
            function(torch.ones(6, 4), adapter()._replace(scale=scale))
    shared = torch.ones(4, 4)
    with pytest.raises(BufferError, match=r"weight|up|down"):
        function(shared, lrs.Factors("test", shared, None, torch.ones(4, 4), 1.0))


def test_delta() -> None:
    with pytest.raises(TypeError, match="up: expected"):
        adapter()._replace(up=[[1.0]]).delta()
    with pytest.raises(ValueError, match="up: expected 2 dimensions, got 1"):
        adapter()._replace(up=torch.ones(6)).delta()
    with pytest.raises(ValueError, match=r"up|down"):
        adapter()._replace(up=torch.ones(6, 3)).delta()
    with pytest.raises(TypeError, match="up: expected one of float32"):
        adapter()._replace(up=torch.ones(6, 2, dtype=torch.int32)).delta()
    with pytest.raises(BufferError, match="up: "):
        adapter()._replace(up=torch.ones(6, 2, device="meta")).delta()
    with pytest.raises(lrs.LinAlgError, match="scale: expected"):
        adapter()._replace(scale=3e38).delta()


HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("function", [lrs.olora_, lrs.loldu_, lrs.lamda_], ids=named)
def test_residual_beyond_the_range(function: Callable[..., Any], dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    matrix = (weight(40, 30).sign() * 0.9 * largest).to(dtype)
    before = bits(matrix)
    for scale in (-1.0, 1e4, 1e38):
        with pytest.raises(lrs.LinAlgError, match=r"range of|overflowed"):
            function(matrix, 3, scale=scale)
        assert bits(matrix) == before


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("function", [lrs.merge_, lrs.unmerge_], ids=named)
def test_merged_weight_beyond_the_range(function: Callable[..., Any], dtype: torch.dtype) -> None:
    sign = 1 if function is lrs.merge_ else -1
    matrix = torch.zeros(6, 4, dtype=dtype)
    matrix[5, 3] = sign * torch.finfo(dtype).max
    matrix[0, 0] = torch.inf  # is not finite before, and may stay so
    before = bits(matrix)
    large = torch.finfo(dtype).max / 8
    factors = adapter()._replace(up=torch.ones(6, 2, dtype=dtype), down=torch.ones(2, 4, dtype=dtype), scale=large)
    message = rf"scale: expected .* range of {str(dtype)[6:]}, got one beyond it at \[5, 3\]"
    with pytest.raises(lrs.LinAlgError, match=message):
        function(matrix, factors)
    assert bits(matrix) == before
    matrix[5, 3] = 0
    function(matrix, factors)
    assert matrix[0, 0] == torch.inf and matrix[5, 3] == sign * 2 * large


def test_empty_tensors_with_a_huge_side() -> None:
    tall, none = torch.empty(2**62, 0), torch.empty(0, 0)
    factors = lrs.Factors("test", none, torch.empty(0), none, 1.0)
    with pytest.raises(ValueError, match="x: expected a tensor that fits the address space"):
        lrs.adapter_forward(tall, factors, tall)
    tall = torch.empty(2**50, 0)
    assert lrs.adapter_forward(tall, factors, torch.empty(2**50, 0)).shape == (2**50, 0)
    assert lrs.merge_(torch.empty(2**50, 0), factors._replace(up=tall)).shape == (2**50, 0)
    up = torch.empty(2**50, 0)
    _native.effective_up_backward(tall, up, torch.empty(0), 0, torch.empty(2**50, 0), torch.empty(0))
    _native.base_product(tall, torch.empty(0, 0), torch.empty(0), torch.empty(2**50, 0))


def test_a_product_deeper_than_openblas_counts() -> None:
    deep = torch.ones(1, 1).expand(1, 2**31)
    out = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"x: expected fewer than 2\^31 columns, got \[1, 2147483648\]"):
        _native.base_product(deep, deep, None, out)
    assert out == 0


@pytest.mark.parametrize("mode", [None, 1, "", np.ones(2)], ids=repr)
def test_mode_of_show_config(mode: Any) -> None:
    with pytest.raises(ValueError, match="mode: expected"):
        lrs.show_config(mode)


def test_tensor() -> None:
    for shape, exception in (
        ([2, 3], TypeError),
        (None, TypeError),
        (("2",), TypeError),
        ((2.0,), TypeError),
        ((True,), TypeError),
        ((-1,), ValueError),
        ((2**64,), ValueError),
        ((1,) * 33, ValueError),
    ):
        with pytest.raises(exception, match="shape: expected"):
            lrs.Tensor(shape)
    for dtype in (None, 3, "int8", "", "\ud800"):
        with pytest.raises((TypeError, ValueError), match="dtype: expected"):
            lrs.Tensor((2, 3), dtype)
    with pytest.raises(MemoryError):
        lrs.Tensor((2**40, 2**40))
