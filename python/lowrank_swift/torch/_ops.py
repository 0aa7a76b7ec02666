# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The adapter's operators as torch.library operators, one for each native call.

Each takes its outputs as arguments and writes them in place, as the C ABI does, so that the fake kernels, which
torch.compile needs, have nothing to compute. None has an autograd formula: they run inside an autograd function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_swift import _native

from ._precision import working_dtype

__all__ = [
    "adapter_backward_",
    "adapter_forward_",
    "base_product_",
    "change_backward_",
    "change_forward_",
    "effective_up",
    "effective_up_backward_",
]

_library = torch.library.Library("lowrank_swift", "DEF")  # type: ignore[no-untyped-call]


def _exported(tensor: Tensor | None) -> Tensor | None:
    """Return what ``__dlpack__`` agrees to export: a Parameter's values without its gradient."""
    return tensor.detach() if tensor is not None and tensor.requires_grad else tensor


def _adapter_forward(
    x: Tensor, down: Tensor | None, core: Tensor | None, up: Tensor, scale: float, out: Tensor, h: Tensor | None
) -> None:
    if x.dim() == 2:
        _native.adapter_forward(_exported(x), _exported(down), _exported(core), _exported(up), scale, out, h)
    elif all(tensor is None or _is_one_matrix(tensor) for tensor in (x, out, h)):
        h = None if h is None else h.flatten(0, 1)
        _adapter_forward(x.flatten(0, 1), down, core, up, scale, out.flatten(0, 1), h)
    else:
        for i in range(x.shape[0]):
            _adapter_forward(x[i], down, core, up, scale, out[i], None if h is None else h[i])


def _is_one_matrix(batch: Tensor) -> bool:
    """Return whether the matrices of a batch follow each other in memory as the rows of one do."""
    return batch.shape[0] == 1 or batch.stride(0) == batch.shape[1] * batch.stride(1)


def _adapter_backward(
    grad: Tensor,
    x: Tensor | None,
    h: Tensor | None,
    down: Tensor | None,
    core: Tensor | None,
    up: Tensor,
    scale: float,
    frozen_columns: Tensor | None,
    grad_x: Tensor | None,
    grad_down: Tensor | None,
    grad_core: Tensor | None,
    grad_up: Tensor | None,
) -> None:
    _native.adapter_backward(
        _exported(grad),
        _exported(x),
        _exported(h),
        _exported(down),
        _exported(core),
        _exported(up),
        scale,
        _frozen_on_host(frozen_columns),
        grad_x,
        grad_down,
        grad_core,
        grad_up,
    )
    _clear_frozen(grad_up, frozen_columns)


def _frozen_on_host(frozen_columns: Tensor | None) -> int:
    """Return the number where the host has it. To read it from a device would wait, and can't be captured."""
    return int(frozen_columns) if frozen_columns is not None and frozen_columns.is_cpu else 0


def _clear_frozen(grad_up: Tensor | None, frozen_columns: Tensor | None) -> None:
    """Clear the first columns of a gradient where a device has their number, which may change between two replays."""
    if grad_up is not None and frozen_columns is not None and not frozen_columns.is_cpu:
        _clear_columns(grad_up, frozen_columns)


def _clear_columns(matrix: Tensor, count: Tensor) -> None:
    matrix.masked_fill_(torch.arange(matrix.shape[1], device=matrix.device) < count, 0)


def _change_forward(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    start_down: Tensor,
    start_up: Tensor,
    scale: float,
    out: Tensor,
    h: Tensor,
) -> None:
    _native.change_forward(_exported(x), _exported(down), _exported(up), start_down, start_up, scale, out, h)


def _change_backward(
    grad: Tensor,
    x: Tensor | None,
    h: Tensor | None,
    down: Tensor,
    up: Tensor,
    start_down: Tensor,
    start_up: Tensor,
    scale: float,
    grad_x: Tensor | None,
    grad_down: Tensor | None,
    grad_up: Tensor | None,
) -> None:
    _native.change_backward(
        _exported(grad),
        _exported(x),
        _exported(h),
        _exported(down),
        _exported(up),
        start_down,
        start_up,
        scale,
        grad_x,
        grad_down,
        grad_up,
    )


def _effective_up(up: Tensor, core: Tensor | None, start: Tensor | None, out: Tensor) -> None:
    _native.effective_up(_exported(up), _exported(core), _exported(start), out)


def _effective_up_backward(
    grad: Tensor,
    up: Tensor,
    core: Tensor | None,
    frozen_columns: Tensor | None,
    grad_up: Tensor | None,
    grad_core: Tensor | None,
) -> None:
    frozen = _frozen_on_host(frozen_columns)
    _native.effective_up_backward(_exported(grad), _exported(up), _exported(core), frozen, grad_up, grad_core)
    _clear_frozen(grad_up, frozen_columns)


def _base_product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    _native.base_product(_exported(x), _exported(weight), _exported(bias), out)


for _schema, _kernel in (
    (
        "adapter_forward_(Tensor x, Tensor? down, Tensor? core, Tensor up, float scale, Tensor(a!) out,"
        " Tensor(b!)? h) -> ()",
        _adapter_forward,
    ),
    (
        "adapter_backward_(Tensor grad, Tensor? x, Tensor? h, Tensor? down, Tensor? core, Tensor up, float scale,"
        " Tensor? frozen_columns, Tensor(a!)? grad_x, Tensor(b!)? grad_down, Tensor(c!)? grad_core,"
        " Tensor(d!)? grad_up) -> ()",
        _adapter_backward,
    ),
    (
        "change_forward_(Tensor x, Tensor down, Tensor up, Tensor start_down, Tensor start_up, float scale,"
        " Tensor(a!) out, Tensor(b!) h) -> ()",
        _change_forward,
    ),
    (
        "change_backward_(Tensor grad, Tensor? x, Tensor? h, Tensor down, Tensor up, Tensor start_down,"
        " Tensor start_up, float scale, Tensor(a!)? grad_x, Tensor(b!)? grad_down, Tensor(c!)? grad_up) -> ()",
        _change_backward,
    ),
    ("effective_up_(Tensor up, Tensor? core, Tensor? start, Tensor(a!) out) -> ()", _effective_up),
    (
        "effective_up_backward_(Tensor grad, Tensor up, Tensor? core, Tensor? frozen_columns, Tensor(a!)? grad_up,"
        " Tensor(b!)? grad_core) -> ()",
        _effective_up_backward,
    ),
    ("base_product_(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()", _base_product),
):
    _name = _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _kernel, _device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"lowrank_swift::{_name}", lambda *_: None, lib=_library)

#: out += scale * ((x A^T) C^T) B^T and h = x A^T, for 2-D x, or one such product for each matrix of 3-D x, out and h; h
#: has the dtype and device of out. Without a down x is h, and there is no other.
adapter_forward_ = torch.ops.lowrank_swift.adapter_forward_.default

#: Gradients of the forward for 2-D x. grad_x is added to, the others are overwritten; what is None is not computed.
#: Without a down grad_x is the gradient of h.
adapter_backward_ = torch.ops.lowrank_swift.adapter_backward_.default

#: out += scale * x (B A - B0 A0)^T and h = x A^T for 2-D x, as one adapter of twice the rank.
change_forward_ = torch.ops.lowrank_swift.change_forward_.default

#: Gradients of that forward. grad_x is added to, the others are overwritten; what is None is not computed.
change_backward_ = torch.ops.lowrank_swift.change_backward_.default

#: Gradients of `effective_up`. What is None is not computed.
effective_up_backward_ = torch.ops.lowrank_swift.effective_up_backward_.default

#: out = x weight^T + bias for 2-D float32 tensors, by OpenBLAS.
base_product_ = torch.ops.lowrank_swift.base_product_.default


def effective_up(up: Tensor, core: Tensor | None, start: Tensor | None) -> Tensor:
    """Return ``B C - start`` (m x r): what an adapter with a frozen ``down`` multiplies ``h`` with.

    It has the dtype that sums are taken in, and is exactly zero where ``start`` is this function's own result for the
    same ``up`` and ``core`` without a start. A start rounded to 16 bits would not cancel.
    """
    out = torch.empty_like(up, dtype=working_dtype(up.dtype))
    torch.ops.lowrank_swift.effective_up_.default(up, core, start, out)
    return out
