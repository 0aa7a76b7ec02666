# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""LaMDA++: a rank for each layer of a model."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn

import lowrank_swift as lrs
from lowrank_swift import RankAllocation

from ._errors import errors_naming
from ._targets import find_sites
from .layers import SUPPORTED_LAYERS, is_supported

__all__ = ["allocate_ranks"]


def allocate_ranks(
    model: nn.Module,
    targets: Sequence[str],
    mean_rank: float | None = None,
    *,
    parameters: int | None = None,
    rank_min: int = 1,
    rank_max: int | None = None,
    tol: float = 1e-4,
    seed: int = 0,
    progress: bool | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> RankAllocation:
    """Distribute a budget of ranks over the layers of a model by how the energy of their weights is spread: LaMDA++.

    :func:`lowrank_swift.allocate_ranks` over the layers that :func:`adapt` would adapt: there is the rule, and what the
    other arguments mean.

    Args:
        model (torch.nn.Module): the pretrained model, on the CPU or CUDA devices. Not modified.
        targets (Sequence[str]): as for :func:`adapt`.
        mean_rank (float | None): the budget is this times the number of layers, rounded down.
        parameters (int | None): in place of `mean_rank`: the budget in numbers of ``up`` and ``down``.
        rank_min (int): of every layer, at least 1.
        rank_max (int | None): of every layer; beside it ``min(m, n)`` is the limit.
        tol (float): tolerance of singular values.
        seed (int): of their computation.
        progress (bool | None): a bar on stderr: always, never, or (None) on a terminal if it takes over a second.
        cache (str | os.PathLike | None): a JSON file that keeps singular values for later calls.

    Returns:
        RankAllocation: ranks by qualified name, for ``LaMDA(rank=ranks)`` and the same targets, with what is left of
        the budget as ``unspent``.

    Raises:
        TypeError: if the type of an argument or a weight's dtype is not supported.
        ValueError: as :func:`lowrank_swift.allocate_ranks`; if a target names nothing or a module without a matrix.
        LinAlgError: if finite entries overflow on the way.
        OSError: if the cache can't be read or written.

    Example:
        >>> ranks = allocate_ranks(model, ["query", "value"], mean_rank=32)
        >>> model = adapt(model, LaMDA(rank=ranks), targets=["query", "value"])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    weights = {}
    for site in find_sites(model, targets):
        if not is_supported(site.layer):
            kind = type(site.layer).__name__
            raise ValueError(f"targets: expected {SUPPORTED_LAYERS} modules, got {kind} at {site.name!r}")
        if site.weight.is_meta:
            raise ValueError(f"model: expected materialised weights, got one on the meta device at {site.name!r}")
        with errors_naming(site.name):
            weights[site.name] = site.matrix
    return lrs.allocate_ranks(
        weights,
        mean_rank,
        parameters=parameters,
        rank_min=rank_min,
        rank_max=rank_max,
        tol=tol,
        seed=seed,
        progress=progress,
        cache=cache,
    )
