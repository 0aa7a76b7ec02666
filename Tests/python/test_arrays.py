# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Arrays of which only `__dlpack__` is known, and the package's own Tensor."""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import lowrank_swift as lrs
import numpy as np
import pytest
import torch
from lowrank_swift import _native
from support import DTYPES, bits, run_python, views, weight

FUNCTIONS: list[Callable[..., Any]] = [
    lrs.qr,
    lrs.ldu,
    lrs.svd,
    lrs.olora,
    lrs.loldu,
    lrs.lamda,
    lrs.pissa,
    lrs.lora_xs,
]


class Bare:
    """An object with `__dlpack__` and nothing else, over a torch or a NumPy array."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class Foreign(Bare):
    """An array of a library that follows the array API standard."""

    @staticmethod
    def __array_namespace__(api_version: str | None = None) -> Any:
        return types.SimpleNamespace(from_dlpack=lambda other: Foreign(torch.from_dlpack(other)))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)


class Unversioned(Bare):
    """An array of a library from before DLPack 1.0, such as JAX's, whose arrays never change."""

    def __dlpack__(self, stream: None = None) -> Any:
        return self.array.__dlpack__()


def tensors(result: Any) -> list[Any]:
    """The arrays of a named tuple of results."""
    return [item for item in result if not isinstance(item, (str, int, float, type(None)))]


def read(array: Any) -> torch.Tensor:
    return torch.from_dlpack(array)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_those_of_torch(function: Callable[..., Any], dtype: torch.dtype) -> None:
    matrix = weight(9, 7, dtype)
    expected = tensors(function(matrix, 3))
    for kind, result_type in ((Bare, lrs.Tensor), (Foreign, Foreign), (Unversioned, lrs.Tensor)):
        result = tensors(function(kind(matrix), 3))
        assert [type(item) for item in result] == [result_type] * len(expected)
        assert [read(item).dtype for item in result] == [item.dtype for item in expected]
        assert [bits(read(item)) for item in result] == [bits(item) for item in expected]


@pytest.mark.parametrize("layout", views(weight(9, 7)))
def test_layouts(layout: str) -> None:
    matrix = views(weight(9, 7))[layout]
    assert bits(read(lrs.qr(Bare(matrix), 3).R)) == bits(lrs.qr(weight(9, 7), 3).R)
    other = matrix.clone(memory_format=torch.preserve_format)
    lrs.olora_(Bare(matrix), 3)
    lrs.olora_(other, 3)
    assert bits(matrix) == bits(other)


@pytest.mark.parametrize("kind", [Bare, Foreign])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_by_its_name(kind: Any, name: str) -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    class Printed:
        def __str__(self) -> str:
            return f"library.{name}"

    matrix = kind(weight(9, 7))
    for dtype in (name, Named(name), type(name, (), {}), Printed()):
        assert str(read(lrs.olora(matrix, 3, dtype=dtype).up).dtype) == f"torch.{name}"
    with pytest.raises(TypeError, match="dtype: expected one of float32, float64, bfloat16, float16, got int32"):
        lrs.olora(matrix, 3, dtype=type("int32", (), {}))


@pytest.mark.parametrize("kind", [Bare, Foreign])
@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)], ids=str)
def test_adapter(kind: Any, leading: tuple[int, ...]) -> None:
    factors = lrs.loldu(weight(9, 7), 3)
    foreign = lrs.Factors("loldu", *(kind(factor) for factor in tensors(factors)), factors.scale)
    x, grad = torch.randn(*leading, 7), torch.randn(*leading, 9)
    out, foreign_out = torch.zeros(*leading, 9), torch.zeros(*leading, 9)
    h = lrs.adapter_forward(x, factors, out)
    foreign_h = lrs.adapter_forward(kind(x), foreign, kind(foreign_out))
    assert bits(foreign_out) == bits(out)
    assert read(foreign_h).shape == h.shape
    assert bits(read(foreign_h)) == bits(h)

    expected = lrs.adapter_backward(grad, x, h, factors)
    gradients = lrs.adapter_backward(kind(grad), kind(x), foreign_h, foreign)
    result_type = Foreign if kind is Foreign else lrs.Tensor
    assert [type(item) for item in gradients] == [result_type] * 4
    assert [bits(read(item)) for item in gradients] == [bits(item) for item in expected]

    assert type(foreign.delta()) is result_type
    assert bits(read(foreign.delta())) == bits(factors.delta())
    assert repr(foreign).startswith("Factors(method='loldu', up=")


def test_each_argument_may_be_of_another_kind() -> None:
    factors = lrs.olora(Bare(weight(9, 7)), 3)
    matrix = weight(9, 7).numpy().copy()
    lrs.merge_(matrix, factors)
    expected = weight(9, 7)
    lrs.merge_(expected, lrs.olora(weight(9, 7), 3))
    assert bits(matrix) == bits(expected)


def test_leading_dimensions_that_need_a_copy() -> None:
    factors = lrs.olora(weight(9, 7), 3)
    x = torch.ones(4, 3, 7)
    for bad in (x.transpose(0, 1), x[:, :2]):
        with pytest.raises(ValueError, match="x: expected leading dimensions that can be flattened without a copy"):
            lrs.adapter_forward(Bare(bad), factors, torch.zeros(*bad.shape[:-1], 9))
    every_second = torch.randn(8, 3, 7)[::2, :1]  # a single stride all the same
    out, expected = torch.zeros(4, 1, 9), torch.zeros(4, 1, 9)
    lrs.adapter_forward(Bare(every_second), factors, out)
    lrs.adapter_forward(every_second, factors, expected)
    assert bits(out) == bits(expected)
    with pytest.raises(ValueError, match="x: expected at least 1 dimension, got 0"):
        lrs.adapter_forward(Bare(torch.tensor(1.0)), factors, torch.zeros(9))


@pytest.mark.parametrize("function", [lrs.olora_, lrs.loldu_, lrs.lamda_, lrs.pissa_])
def test_in_place_needs_memory_that_says_it_is_writable(function: Callable[..., Any]) -> None:
    matrix = weight(9, 7)
    expected = matrix.clone()
    function(expected, 3)
    read_only = weight(9, 7).numpy().copy()
    read_only.flags.writeable = False
    for kind, array in ((Unversioned, matrix), (Bare, read_only)):
        with pytest.raises(BufferError, match="weight: expected writable memory, got a read-only array"):
            function(kind(array), 3)
        assert bits(array) == bits(weight(9, 7))
    function(Bare(matrix), 3)
    assert bits(matrix) == bits(expected)


def test_errors_name_the_argument() -> None:
    with pytest.raises(TypeError, match=r"weight: expected float32, .*, got DLPack type code 5, 64 bits, 1 lanes"):
        lrs.qr(Bare(torch.ones(4, 6, dtype=torch.complex64)), 2)
    with pytest.raises(TypeError, match="weight: expected float32"):
        lrs.qr(Bare(torch.ones(4, 6, dtype=torch.int64)), 2)
    with pytest.raises(ValueError, match="weight: expected 2 dimensions, got 3"):
        lrs.qr(Bare(torch.ones(4, 6, 2)), 2)
    with pytest.raises(TypeError, match=r"weight: expected a torch.Tensor, .* another array with __dlpack__, got list"):
        lrs.qr([[1.0]], 1)

    class OnDevice(Bare):
        def __dlpack_device__(self) -> Any:
            return (8, 0)

    with pytest.raises(BufferError, match=r"weight: expected a tensor on the CPU or a CUDA device, got .* \(8, 0\)"):
        lrs.qr(OnDevice(weight(4, 6)), 2)


def test_borrowed_memory_is_handed_back() -> None:
    array = weight(9, 7).numpy().copy()
    before = sys.getrefcount(array)
    for kind in (Bare, Unversioned):
        lrs.qr(kind(array), 3)
        with pytest.raises(ValueError, match="rank"):
            lrs.qr(kind(array), 0)
        with pytest.raises(BufferError):
            lrs.olora_(Unversioned(array), 2)
    gc.collect()
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "int64"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0, 4), (257, 3)], ids=str)
def test_new_tensors(shape: tuple[int, ...], dtype: str) -> None:
    tensor = lrs.Tensor(shape, dtype)
    assert (tensor.shape, tensor.dtype, tensor.__dlpack_device__()) == (shape, dtype, (1, 0))
    assert repr(tensor) == f"lowrank_swift.Tensor(shape={shape}, dtype='{dtype}')"
    shared = torch.from_dlpack(tensor)
    assert (tuple(shared.shape), str(shared.dtype)) == (shape, f"torch.{dtype}")
    assert not shared.any()
    assert shared.is_contiguous()
    assert shared.numel() == 0 or shared.data_ptr() % 64 == 0
    if dtype != "bfloat16":
        array = np.from_dlpack(tensor)
        assert array.flags.writeable
        array[...] = 3
        assert bool((shared == 3).all())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (((2, -1),), ValueError),
        (((2**62, 2**62),), MemoryError),
        (((2**60,),), MemoryError),
        (((2**64,),), ValueError),
        (((2.0,),), TypeError),
        (([2, 3],), TypeError),
        (((2,), "int8"), TypeError),
        (((2,), ""), TypeError),
        ((), TypeError),
    ],
    ids=str,
)
def test_new_tensors_that_cannot_be(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        lrs.Tensor(*arguments)


def test_exports() -> None:
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    tensor = lrs.Tensor((2, 3))
    for keywords, expected in (
        ({}, b"dltensor"),
        ({"max_version": None, "stream": None, "dl_device": None, "copy": None}, b"dltensor"),
        ({"max_version": (0, 8)}, b"dltensor"),
        ({"max_version": (1, 0), "copy": False}, b"dltensor_versioned"),
        ({"max_version": (2, 1), "dl_device": (1, 0)}, b"dltensor_versioned"),
    ):
        assert name(tensor.__dlpack__(**keywords)) == expected
    for keywords in ({"dl_device": (2, 0)}, {"copy": True}):
        with pytest.raises(BufferError, match="exported as it is"):
            tensor.__dlpack__(**keywords)
    for keywords in ({"max_version": 1}, {"dl_device": "cpu"}, {"unknown": 1}):
        with pytest.raises(TypeError):
            tensor.__dlpack__(**keywords)


def test_read_only_is_passed_on() -> None:
    array = weight(4, 6).numpy().copy()
    array.flags.writeable = False
    tensor = _native.borrow(array, "x")
    assert not np.from_dlpack(tensor).flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        tensor.__dlpack__()
    matrix = tensor._as_matrix()
    assert matrix is not None
    assert not np.from_dlpack(matrix).flags.writeable


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("consumed", [True, False])
def test_memory_lives_as_long_as_its_exports(versioned: bool, consumed: bool) -> None:
    tensor = lrs.Tensor((2, 3))
    before = sys.getrefcount(tensor)
    capsule: Any = tensor.__dlpack__(max_version=(1, 0) if versioned else None)
    assert sys.getrefcount(tensor) == before + 1
    if consumed:
        capsule = torch.utils.dlpack.from_dlpack(capsule)
        assert sys.getrefcount(tensor) == before + 1
    del capsule
    assert sys.getrefcount(tensor) == before
    array = np.from_dlpack(tensor)
    view = tensor._as_matrix()
    del tensor
    gc.collect()
    array[...] = 7
    assert np.array_equal(np.from_dlpack(view), array)


def test_memory_is_freed() -> None:
    code = """
import gc, resource, numpy as np, lowrank_swift as lrs
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
lrs.Tensor((1 << 21,))
before = peak()
for _ in range(50):
    tensor = lrs.Tensor((1 << 21,))
    array = np.from_dlpack(tensor)
    view = tensor._as_matrix()
    tensor.__dlpack__()
print(peak() - before)
"""
    assert float(run_python(code)) < 50, "MiB, of which 400 were allocated"


def test_tensors_are_no_more_than_memory() -> None:
    tensor = lrs.Tensor((2, 3))
    for function in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            function(tensor)
    with pytest.raises(TypeError):
        type("Derived", (lrs.Tensor,), {})


def test_tensors_at_the_end_of_the_process() -> None:
    code = "import lowrank_swift as lrs, torch; t = lrs.Tensor((2, 3)); torch.kept = torch.from_dlpack(t), t; print(1)"
    assert run_python(code).strip() == "1"
