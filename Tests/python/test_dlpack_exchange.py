# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Tensors taken through the C exchange API of their type: torch's, and one made here."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Any

import lowrank_swift as lrs
import numpy as np
import pytest
import torch
from dlpack_structures import ALLOCATE, EXPORT, WORK_STREAM, DLTensor, ExchangeAPI, Versioned, new_capsule, pointer_of
from lowrank_swift import _native
from support import bits, weight
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.testing._internal.two_tensor import TwoTensor

needs_torch_exchange = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no DLPack C exchange API"
)

RENAME = ctypes.pythonapi.PyCapsule_SetName
RENAME.restype, RENAME.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]


def managed(array: Any) -> int:
    """Address of a DLManagedTensorVersioned that the caller has to delete."""
    capsule = array.__dlpack__(max_version=(1, 0))
    address = pointer_of(capsule, b"dltensor_versioned")
    assert RENAME(capsule, USED_NAME) == 0
    return int(address)


USED_NAME = b"used_dltensor_versioned"  # a capsule borrows its name


def exporting_type(
    *, major: int = 1, previous: ExchangeAPI | None = None, unowned: bool = True, fails: bool = False
) -> tuple[type, ExchangeAPI, list[str]]:
    """A type with an exchange API over NumPy arrays, its table, and the calls that it gets."""
    calls: list[str] = []
    lent: list[Any] = []

    def export_managed(exporter: Any, out: int) -> int:
        calls.append("managed")
        if fails:
            return -1
        ctypes.c_void_p.from_address(out).value = managed(exporter.array)
        return 0

    def export_unowned(exporter: Any, out: int) -> int:
        calls.append("unowned")
        if fails:
            return -1
        lent.append(exporter.array.__dlpack__(max_version=(1, 0)))
        address = pointer_of(lent[-1], b"dltensor_versioned") + Versioned.tensor.offset
        ctypes.memmove(out, address, ctypes.sizeof(DLTensor))
        return 0

    table = ExchangeAPI(
        major,
        3,
        None if previous is None else ctypes.addressof(previous),
        ALLOCATE(),
        EXPORT(export_managed),
        None,
        EXPORT(export_unowned) if unowned else EXPORT(),
        WORK_STREAM(),
    )

    class Exporter:
        __dlpack_c_exchange_api__ = new_capsule(ctypes.addressof(table), b"dlpack_exchange_api", None)

        def __init__(self, array: Any) -> None:
            self.array = array

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

        def __dlpack__(self, **arguments: Any) -> Any:
            calls.append("python")
            return self.array.__dlpack__(**arguments)

    return Exporter, table, calls


def example() -> np.ndarray:
    return weight(4, 6).numpy().copy()


def test_inputs_are_not_owned_and_outputs_are_managed() -> None:
    exporter, table, calls = exporting_type()
    w, q, r = example(), np.zeros((4, 2), "f"), np.zeros((2, 6), "f")
    before = sys.getrefcount(q)
    _native.qr(exporter(w), 2, exporter(q), exporter(r))
    assert calls == ["unowned", "managed", "managed"]
    expected = lrs.qr(w, 2)
    assert bits(q) == bits(expected.Q)
    assert bits(r) == bits(expected.R)
    gc.collect()
    assert sys.getrefcount(q) == before, "the deleter has run"
    assert table.major == 1


def test_managed_where_nothing_else_is_offered() -> None:
    exporter, _table, calls = exporting_type(unowned=False)
    assert _native.check_weight(exporter(example()), 2) == (4, 6, "float32")
    assert calls == ["managed"]


def test_what_may_outlive_the_call_is_managed() -> None:
    exporter, _table, calls = exporting_type()
    array = example()
    before = sys.getrefcount(array)
    tensor = _native.borrow(exporter(array), "x")
    assert calls == ["managed"]
    assert sys.getrefcount(array) > before
    assert bits(np.from_dlpack(tensor)) == bits(array)
    del tensor
    gc.collect()
    assert sys.getrefcount(array) == before


def test_read_only_outputs_are_refused() -> None:
    exporter, _table, calls = exporting_type()
    array = example()
    array.flags.writeable = False
    before = sys.getrefcount(array)
    with pytest.raises(BufferError, match="out_q: expected writable memory, got a read-only array"):
        _native.qr(example(), 2, exporter(array), np.zeros((2, 6), "f"))
    assert calls == ["managed"]
    assert sys.getrefcount(array) == before


def test_older_tables_are_found_behind_newer_ones() -> None:
    _older, table, calls = exporting_type()
    exporter, _newer, unused = exporting_type(major=2, previous=table)
    assert _native.check_weight(exporter(example()), 2) == (4, 6, "float32")
    assert (calls, unused) == (["unowned"], [])


@pytest.mark.parametrize("case", ["newer only", "fails", "no capsule", "another capsule"])
def test_otherwise_python_is_asked(case: str) -> None:
    exporter, _table, calls = exporting_type(major=2 if case == "newer only" else 1, fails=case == "fails")
    if case == "no capsule":
        exporter.__dlpack_c_exchange_api__ = 3  # type: ignore[attr-defined]
    elif case == "another capsule":
        exporter.__dlpack_c_exchange_api__ = new_capsule(1, b"another", None)  # type: ignore[attr-defined]
    assert _native.check_weight(exporter(example()), 2) == (4, 6, "float32")
    assert calls == (["unowned", "python"] if case == "fails" else ["python"])


def test_types_are_told_apart() -> None:
    exporter, _table, calls = exporting_type()
    for _ in range(3):
        assert _native.check_weight(example(), 2) == (4, 6, "float32")
        assert _native.check_weight(exporter(example()), 2) == (4, 6, "float32")
        assert _native.check_weight(lrs.Tensor((4, 6)), 2) == (4, 6, "float32")
    assert calls == ["unowned"] * 3


class Silent(torch.Tensor):
    """A torch tensor whose Python side of DLPack must not be called."""

    def __dlpack__(self, *arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("__dlpack__ was called")

    def __dlpack_device__(self) -> Any:
        raise AssertionError("__dlpack_device__ was called")


@needs_torch_exchange
def test_torch_is_not_asked_through_python() -> None:
    w, q, r = weight(4, 6), torch.zeros(4, 2), torch.zeros(2, 6)
    before = [sys.getrefcount(tensor) for tensor in (w, q, r)]
    _native.qr(w.as_subclass(Silent), 2, q.as_subclass(Silent), r.as_subclass(Silent))
    assert bits(q) == bits(lrs.qr(w, 2).Q)
    assert [sys.getrefcount(tensor) for tensor in (w, q, r)] == before


@pytest.mark.parametrize("leaf", [True, False])
def test_gradients_are_left_alone(leaf: bool) -> None:
    parameter = torch.nn.Parameter(weight(6, 5))
    matrix = parameter if leaf else parameter * 1
    version = matrix._version
    result = lrs.qr(matrix, 2)
    assert not result.Q.requires_grad
    assert matrix._version == version
    before = matrix.detach().clone()
    factors = lrs.olora_(matrix, 2)
    assert matrix._version == version + 1
    assert matrix.requires_grad
    assert not factors.up.requires_grad
    assert not torch.equal(matrix.detach(), before)
    out = torch.zeros(3, 6, requires_grad=True)
    h = lrs.adapter_forward(torch.ones(3, 5, requires_grad=True), factors, out)
    assert not h.requires_grad
    assert out.detach().any()


def refused() -> dict[str, Callable[[], torch.Tensor]]:
    def functional() -> torch.Tensor:
        with FunctionalTensorMode():
            return FunctionalTensor.to_functional(weight(4, 6))

    return {
        "sparse": lambda: weight(4, 6).to_sparse(),
        "sparse rows": lambda: weight(4, 6).to_sparse_csr(),
        "meta": lambda: weight(4, 6).to("meta"),
        "quantised": lambda: torch.quantize_per_tensor(weight(4, 6), 0.1, 0, torch.quint8),
        "complex": lambda: torch.ones(4, 6, dtype=torch.complex64),
        "conjugate": lambda: torch.ones(4, 6, dtype=torch.complex64).conj(),
        "negative": lambda: torch.view_as_complex(torch.ones(4, 6, 2)).conj().imag,
        "zero": lambda: torch._efficientzerotensor(4, 6),
        "wrapper": lambda: TwoTensor(weight(4, 6), weight(4, 6)),
        "nested": lambda: torch.nested.nested_tensor([weight(4, 6)]),
        "jagged": lambda: torch.nested.nested_tensor([weight(4, 6)], layout=torch.jagged),
        "functional": functional,
        "functional of C++": lambda: torch._to_functional_tensor(weight(4, 6)),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", refused())
def test_tensors_that_are_more_than_memory_are_refused(kind: str) -> None:
    tensor = refused()[kind]()
    with pytest.raises((BufferError, TypeError, ValueError), match="weight"):
        lrs.qr(tensor, 2)
    with pytest.raises((BufferError, TypeError, ValueError), match="weight"):
        lrs.olora_(tensor, 2)
    factors = lrs.olora(weight(4, 6), 2)
    with pytest.raises((BufferError, TypeError, ValueError), match=r"^x\b"):
        lrs.adapter_forward(tensor, factors, torch.zeros(4, 4))


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_transforms_are_refused(transform: str) -> None:
    def function(matrix: torch.Tensor) -> torch.Tensor:
        lrs.qr(matrix, 2)
        return matrix.sum()

    with pytest.raises(BufferError, match="weight: cannot be borrowed"):
        if transform == "vmap":
            torch.func.vmap(function)(torch.ones(3, 4, 6))
        elif transform == "grad":
            torch.func.grad(function)(weight(4, 6))
        else:
            torch.func.jvp(function, (weight(4, 6),), (weight(4, 6),))


def test_lazy_copies_are_not_written_through() -> None:
    matrix = weight(6, 5)
    before = matrix.clone()
    copy = torch._lazy_clone(matrix)
    lrs.olora_(copy, 2)
    assert torch.equal(matrix, before)
    assert not torch.equal(copy, before)


def test_inference_tensors() -> None:
    with torch.inference_mode():
        matrix = weight(6, 5)
        lrs.olora_(matrix, 2)
        assert not torch.equal(matrix, weight(6, 5))
