# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Sums of a weight and adapters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

import lowrank_swift as lrs
from lowrank_swift import Factors, LinAlgError

from ._adapter import Term
from ._precision import working_dtype
from .layers import LayerType

__all__ = ["surely_fits", "with_terms"]


@torch.no_grad()
def with_terms(layer_type: LayerType, weight: Tensor, terms: Sequence[Term]) -> Tensor:
    """Return a layer's weight plus terms as a new tensor of the weight's dtype, rounded to it once.

    Raises:
        ValueError: if a factor is not finite.
        LinAlgError: if a finite entry becomes one that is not.
    """
    total = weight.detach().to(working_dtype(weight.dtype), copy=True)
    for term in terms:
        layer_type.change_(total, partial(_merge, term.factors()))
    result = total.to(weight.dtype)
    # The sum itself has been checked; a narrower type may not hold it.
    if result is not total and not (result.isfinite() | ~weight.isfinite()).all():
        raise LinAlgError(f"weight: expected a sum with the adapter that fits {weight.dtype}, got one that does not")
    return result


def _merge(factors: Factors, matrix: Tensor) -> None:
    lrs.merge_(matrix, factors)


@torch.no_grad()
def surely_fits(weight: Tensor, terms: Sequence[Term]) -> bool:
    """Return whether a bound, which takes no memory, tells that a weight plus or minus terms is finite in its dtype."""
    bound = float(torch.linalg.vector_norm(weight, torch.inf))
    for term in terms:
        factors = term.factors()
        product = abs(factors.scale) * factors.down.shape[0] ** 2
        for factor in (factors.up, factors.core, factors.down):
            product *= 1.0 if factor is None else float(torch.linalg.vector_norm(factor, torch.inf))
        bound += product
    return bound < torch.finfo(weight.dtype).max / 2
