# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The autograd function of an adapted layer.

Letters as everywhere: x input, W weight, down A [r, n], core C [r] or [r, r] or none, up B [m, r], h what A makes of x.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._adapter import Term
from ._ops import effective_up, effective_up_backward_
from .layers import LayerType, TermGradients

__all__ = ["adapted_output", "terms_output"]


def adapted_output(x: Tensor, weight: Tensor, bias: Tensor | None, layer: LayerType, terms: Sequence[Term]) -> Tensor:
    """Return what a layer and terms make of a prepared input."""
    return _output(_AdaptedFunction, x, weight, bias, layer, terms)


def terms_output(x: Tensor, like: Tensor, layer: LayerType, terms: Sequence[Term]) -> Tensor:
    """Return what terms alone make of a prepared input, as an output of ``layer.operate`` like another."""
    return _output(_TermsFunction, x, like, None, layer, terms)


def _output(
    function: type[_AdaptedFunction],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layer: LayerType,
    terms: Sequence[Term],
) -> Tensor:
    arguments = (
        x,
        weight,
        bias,
        layer,
        tuple([term.scale for term in terms]),
        *[tensor for term in terms for tensor in term.tensors],
    )
    # The transforms of torch.func have gradients of their own, and what they can't do is for `apply` to refuse.
    # Without a gradient `apply` is time lost, and Dynamo traces it of variadic arguments with one too many.
    is_transformed = torch._C._are_functorch_transforms_active()
    call = function.apply if is_transformed or _needs_grad(arguments) else function.forward
    out: Tensor = call(*arguments)[0]
    return out


def _needs_grad(arguments: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in arguments)


class _TermTensors(NamedTuple):
    """The tensors of a `Term`, or whether each needs a gradient: the flat arguments of the autograd function."""

    down: Any
    core: Any
    up: Any
    start: Any
    frozen_columns: Any
    start_down: Any


_TENSORS_PER_TERM = len(_TermTensors._fields)
_FIRST_TERM = 5  # of the function's arguments


def _grouped(flat: Sequence[Any]) -> Iterator[_TermTensors]:
    for i in range(0, len(flat), _TENSORS_PER_TERM):
        yield _TermTensors(*flat[i : i + _TENSORS_PER_TERM])


class _AdaptedFunction(torch.autograd.Function):
    """What a layer computes plus the terms. Keeps h for the backward, and x only where a ``down`` trains."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        x, weight, bias, layer, scales, *flat = arguments
        return _with_terms(layer.operate(x, weight, bias), x, layer, scales, flat)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, layer, scales, *flat = inputs
        _keep(ctx, x, weight, layer, scales, flat, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        arguments = (ctx.layer, ctx.scales, ctx.size, ctx.needs_input_grad, grad, *ctx.saved_tensors)
        # Grad mode is on where the gradient itself is to be differentiated, and always in torch.func.
        compute = _BackwardFunction.apply if torch.is_grad_enabled() else _backward
        grad_x, *grads = compute(*arguments)
        return (grad_x, None, None, None, None, *grads)

    @staticmethod
    def vmap(*_: Any) -> None:
        raise _no_vmap()


class _TermsFunction(_AdaptedFunction):
    """The terms alone; in place of a weight it takes a tensor like its output."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        x, like, _, layer, scales, *flat = arguments
        return _with_terms(torch.zeros_like(like), x, layer, scales, flat)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, _, _, layer, scales, *flat = inputs
        _keep(ctx, x, None, layer, scales, flat, output)


def _with_terms(
    out: Tensor, x: Tensor, layer: LayerType, scales: Sequence[float], flat: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Add terms to an output in place, and return it with every term's h."""
    kept = []
    for scale, (down, core, up, start, _, start_down) in zip(scales, _grouped(flat), strict=True):
        if start_down is not None:
            kept.append(layer.add_change(x, down, up, start_down, start, scale, out))
            continue
        if start is not None:
            core, up = None, effective_up(up, core, start)
        kept.append(layer.add_term(x, down, core, up, scale, out))
    return (out, *kept)


def _keep(
    ctx: Any,
    x: Tensor,
    weight: Tensor | None,
    layer: LayerType,
    scales: Sequence[float],
    flat: Sequence[Tensor | None],
    output: tuple[Tensor, ...],
) -> None:
    """Keep what the backward needs."""
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    needed = list(_grouped(ctx.needs_input_grad[_FIRST_TERM:]))
    ctx.layer, ctx.scales, ctx.size = layer, scales, x.shape
    ctx.save_for_backward(
        x if any(need.down for need in needed) else None,
        weight if ctx.needs_input_grad[0] else None,
        *flat,
        *(h if need.core or need.up else None for h, need in zip(kept, needed, strict=True)),
    )


class _BackwardFunction(torch.autograd.Function):
    """`_backward`, which has no derivative: to differentiate it is an error, also in nested ``torch.func.grad``.

    ``torch.autograd.function.once_differentiable`` does not reach the outer levels of ``torch.func`` and would leave
    zeros there.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor | None, ...]:
        return _backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> None:
        raise RuntimeError("an adapted layer can be differentiated once, not twice")

    @staticmethod
    def vmap(*_: Any) -> None:
        raise _no_vmap()


for _function in (_AdaptedFunction, _TermsFunction, _BackwardFunction):
    # `apply` asks for the signature in every call, and making it takes as long as a small layer's whole forward.
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore[attr-defined]


def _no_vmap() -> RuntimeError:
    return RuntimeError("torch.vmap can't map over an adapted layer; x may have any leading dimensions instead")


def _backward(
    layer: LayerType,
    scales: Sequence[float],
    size: torch.Size,
    needs_input_grad: Sequence[bool],
    grad: Tensor,
    *kept: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and of the tensors of all terms, from what the forward kept."""
    x, weight, *saved = kept
    needed = list(_grouped(needs_input_grad[_FIRST_TERM:]))
    terms = _grouped(saved[: _TENSORS_PER_TERM * len(needed)])
    # Under autocast the forward's product was made in grad's dtype from a cast of W; elsewhere the cast is no copy.
    if weight is not None:
        grad_x: Tensor | None = layer.input_gradient(grad, weight.to(grad.dtype), size)
    else:
        grad_x = grad.new_zeros(size) if needs_input_grad[0] else None
    grads: list[Tensor | None] = []
    for scale, term, need, h in zip(scales, terms, needed, saved[_TENSORS_PER_TERM * len(needed) :], strict=True):
        grads.extend(_term_backward(layer, grad, x, h, scale, term, need, grad_x))
    return (grad_x, *grads)


def _term_backward(
    layer: LayerType,
    grad: Tensor,
    x: Tensor | None,
    h: Tensor | None,
    scale: float,
    term: _TermTensors,
    need: _TermTensors,
    grad_x: Tensor | None,
) -> _TermTensors:
    """Add a term's part to ``grad_x`` and return the gradients of its tensors."""
    down, core, up, start, frozen_columns, start_down = term
    grad_core, grad_up = (
        torch.empty_like(tensor) if needs else None for tensor, needs in ((core, need.core), (up, need.up))
    )
    if start_down is not None:
        gradients = TermGradients(need.down, None, grad_up)
        grad_down = layer.change_gradients(grad, x, h, down, up, start_down, start, scale, grad_x, gradients)
    elif start is None:
        gradients = TermGradients(need.down, grad_core, grad_up)
        grad_down = layer.term_gradients(grad, x, h, down, core, up, scale, frozen_columns, grad_x, gradients)
    else:
        product = effective_up(up, core, start)
        grad_product = torch.empty_like(product) if need.core or need.up else None
        gradients = TermGradients(need.down, None, grad_product)
        grad_down = layer.term_gradients(grad, x, h, down, None, product, scale, None, grad_x, gradients)
        if grad_product is not None:
            effective_up_backward_(grad_product, up, core, frozen_columns, grad_up, grad_core)
    return _TermTensors(grad_down, grad_core, grad_up, None, None, None)
