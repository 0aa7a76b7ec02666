# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""A frozen linear layer with adapters: its autograd function and its module.

Letters as everywhere: x [T, n], W [m, n], down A [r, n], core C [r] or [r, r] or none, up B [m, r], h = x A^T [T, r].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._adapter import Adapter, Term
from ._ops import adapter_backward_, adapter_forward_, effective_up, effective_up_backward_

__all__ = ["AdaptedLinear", "adapted_layers"]


class _TermTensors(NamedTuple):
    """The tensors of a `Term`, or whether each needs a gradient: the flat arguments of the autograd function."""

    down: Any
    core: Any
    up: Any
    start: Any
    frozen_columns: Any


_TENSORS_PER_TERM = len(_TermTensors._fields)


def _grouped(flat: Sequence[Any]) -> Iterator[_TermTensors]:
    for i in range(0, len(flat), _TENSORS_PER_TERM):
        yield _TermTensors(*flat[i : i + _TENSORS_PER_TERM])


class _AdaptedLinearFunction(torch.autograd.Function):
    """``y = x W^T + bias`` plus the terms, for 2-D x. Keeps h for the backward, and x only where a ``down`` trains."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, scales: tuple[float, ...], *flat: Tensor | None
    ) -> tuple[Tensor, ...]:
        out = nn.functional.linear(x, weight, bias)
        kept = []
        for scale, (down, core, up, start, _) in zip(scales, _grouped(flat), strict=True):
            h = out.new_empty(x.shape[0], down.shape[0])
            if start is None:
                adapter_forward_(x, down, core, up, scale, out, h)
            else:
                adapter_forward_(x, down, None, effective_up(up, core, start), scale, out, h)
            kept.append(h)
        return (out, *kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, scales, *flat = inputs
        _, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        needed = list(_grouped(ctx.needs_input_grad[4:]))
        ctx.scales = scales
        ctx.save_for_backward(
            x if any(need.down for need in needed) else None,
            weight if ctx.needs_input_grad[0] else None,
            *flat,
            *(h if need.core or need.up else None for h, need in zip(kept, needed, strict=True)),
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        arguments = (ctx.scales, ctx.needs_input_grad, grad, *ctx.saved_tensors)
        # Grad mode is on where the gradient itself is to be differentiated, and always in torch.func.
        compute = _BackwardFunction.apply if torch.is_grad_enabled() else _backward
        grad_x, *grads = compute(*arguments)
        return (grad_x, None, None, None, *grads)

    @staticmethod
    def vmap(*_: Any) -> None:
        raise _no_vmap()


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


def _no_vmap() -> RuntimeError:
    return RuntimeError("torch.vmap can't map over an adapted layer; x may have any leading dimensions instead")


def _backward(
    scales: Sequence[float], needs_input_grad: Sequence[bool], grad: Tensor, *kept: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and of the tensors of all terms, from what the forward kept."""
    x, weight, *saved = kept
    needed = list(_grouped(needs_input_grad[4:]))
    terms = _grouped(saved[: _TENSORS_PER_TERM * len(needed)])
    # Under autocast the forward's product was made in grad's dtype from a cast of W; elsewhere the cast is no copy.
    grad_x = None if weight is None else grad @ weight.to(grad.dtype)
    grads: list[Tensor | None] = []
    for scale, term, need, h in zip(scales, terms, needed, saved[_TENSORS_PER_TERM * len(needed) :], strict=True):
        grads += _term_backward(grad, x, h, scale, term, need, grad_x)
    return (grad_x, *grads)


def _term_backward(
    grad: Tensor,
    x: Tensor | None,
    h: Tensor | None,
    scale: float,
    term: _TermTensors,
    need: _TermTensors,
    grad_x: Tensor | None,
) -> _TermTensors:
    """Add a term's part to ``grad_x`` and return the gradients of its tensors."""
    down, core, up, start, frozen_columns = term
    grad_down, grad_core, grad_up = (
        torch.empty_like(tensor) if needs else None
        for tensor, needs in ((down, need.down), (core, need.core), (up, need.up))
    )
    x = x if need.down else None
    if start is None:
        adapter_backward_(grad, x, h, down, core, up, scale, frozen_columns, grad_x, grad_down, grad_core, grad_up)
    else:
        product = effective_up(up, core, start)
        grad_product = torch.empty_like(product) if need.core or need.up else None
        adapter_backward_(grad, x, h, down, None, product, scale, None, grad_x, grad_down, None, grad_product)
        if grad_product is not None:
            effective_up_backward_(grad_product, up, core, frozen_columns, grad_up, grad_core)
    return _TermTensors(grad_down, grad_core, grad_up, None, None)


class AdaptedLinear(nn.Module):
    """A frozen ``torch.nn.Linear`` with its adapters, all of which act. Made by :func:`adapt`.

    The layer computes with the parameters of ``base`` and does not call it, so hooks set on ``base`` do not run.

    Attributes:
        base (torch.nn.Linear): the layer that was adapted. Its weight and bias must stay frozen.
        adapters (torch.nn.ModuleDict): the adapters by name.
        merged_weight (torch.Tensor | None): what the layer computes with while it is merged; not in ``state_dict``,
            where base and adapters say the same.
        disabled (bool): whether the layer computes the pretrained function.
    """

    merged_weight: Tensor | None

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.register_buffer("merged_weight", None, persistent=False)
        self.disabled = False
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The weight, shape ``(out_features, in_features)``: merged, the residual, or the untouched one of the base."""
        return self.base.weight if self.merged_weight is None else self.merged_weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, shape ``(out_features,)``."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """Size of the last dimension of the input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Size of the last dimension of the output."""
        return self.base.out_features

    def named_adapters(self) -> Iterator[tuple[str, Adapter]]:
        """Yield the layer's adapters by name, in the order in which they were added."""
        for name, adapter in self.adapters.items():
            assert isinstance(adapter, Adapter)
            yield name, adapter

    def terms(self) -> tuple[Term, ...]:
        """Return what all adapters add to the output of ``base``."""
        return tuple(term for _, adapter in self.named_adapters() for term in adapter.terms())

    def pretrained_terms(self) -> tuple[Term, ...]:
        """Return what turns the output of ``base`` into the pretrained layer's."""
        return tuple(term for _, adapter in self.named_adapters() for term in adapter.pretrained_terms())

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *reports: list[str]
    ) -> None:
        """Refuse to load into a merged layer, which would go on computing with what was merged before."""
        if self.merged_weight is not None and any(key.startswith(prefix) for key in state_dict):
            reports[-1].append(f"{prefix}merged_weight: expected a layer that is not merged; call unmerge first")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *reports)

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output plus the adapters', accumulated in place; merged or disabled, that of one weight.

        Args:
            x (Tensor): shape ``(..., in_features)``, the dtype of the base's weight (any float dtype under autocast).

        Raises:
            ValueError: if the last dimension of ``x`` is not ``in_features``, or a base parameter requires grad.
        """
        weight, bias = self.base.weight, self.base.bias
        if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
            raise ValueError(f"x: expected a last dimension of {weight.shape[1]}, got shape {list(x.shape)}")
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            raise ValueError(
                "base: expected frozen parameters (requires_grad=False), got a weight or bias that requires grad; "
                "an adapted layer computes no gradient for them"
            )
        if self.disabled:
            terms = self.pretrained_terms()
        elif self.merged_weight is not None:
            weight, terms = self.merged_weight, ()
        else:
            terms = self.terms()
        if not terms:
            return nn.functional.linear(x, weight, bias)
        # Reshaped out here, where autograd sees it: an in-place operation on the result of 3-D x is then allowed.
        rows = x.reshape(-1, x.shape[-1])
        arguments = (
            rows,
            weight,
            bias,
            tuple(term.scale for term in terms),
            *(tensor for term in terms for tensor in _tensors(term)),
        )
        function = _AdaptedLinearFunction
        # Where no gradient is asked for, Dynamo traces `apply` of variadic arguments with one too many.
        call = function.forward if torch.compiler.is_compiling() and not _needs_grad(arguments) else function.apply
        out: Tensor = call(*arguments)[0]
        return out.view(*x.shape[:-1], out.shape[-1])


def _needs_grad(arguments: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in arguments)


def _tensors(term: Term) -> _TermTensors:
    return _TermTensors(term.down, term.core, term.up, term.start, term.frozen_columns)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yield the adapted layers of a model by qualified name."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module
