# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""LaMDA++: a rank for each layer, from the spectra of their weights."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ._rank_allocation import RankAllocation, Weights

__all__ = ["allocate_ranks"]


def allocate_ranks(
    weights: Weights,
    mean_rank: float | None = None,
    *,
    parameters: int | None = None,
    rank_min: int = 1,
    rank_max: int | None = None,
    targets: Sequence[str] | None = None,
    tol: float = 1e-4,
    seed: int = 0,
    progress: bool | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> RankAllocation:
    """Distribute a budget of ranks over layers by how the energy of their weights is spread: LaMDA++.

    With ``E_l(k)`` the share of ``||W_l||_F^2`` in the first k singular values, every layer starts at `rank_min`, and
    single rank steps are granted in increasing order of ``(E_l(k), name, k)``, the layer that has captured least first,
    until the budget is spent. A layer takes no more at its largest rank, once ``E_l(k)`` is 1 (to 10 eps of float32),
    or if ``W_l = 0``. A step that costs more than is left ends its layer's turn, and the others go on. Layers whose
    energy is spread out get more rank, layers whose energy is concentrated get less.

    Singular values are computed as far as the rule needs them: twice the mean rank at first, all of them where
    ``min(m, n) <= 1024``, and twice as many again for a layer that comes to their end.

    Args:
        weights (Mapping[str, Tensor] | str | os.PathLike | Sequence): the matrices by name; or a safetensors file,
            several of one model, or a folder with them (with or without an index). Files are read one matrix at a time,
            without a framework; a layer is called what its tensor is without ``.weight``.
        mean_rank (float | None): the budget is this times the number of layers, rounded down, and a step costs 1.
        parameters (int | None): in place of `mean_rank`: the budget is so many numbers in ``up`` and ``down``, and a
            step of an ``m x n`` layer costs ``m + n``, as LoRA counts; the ``r x r`` core is not counted.
        rank_min (int): of every layer, at least 1.
        rank_max (int | None): of every layer; beside it ``min(m, n)`` is the limit.
        targets (Sequence[str] | None): names of layers, or their last parts, as for :func:`lowrank_swift.torch.adapt`;
            None means all, for files every matrix called ``*.weight``, embeddings too.
        tol (float): tolerance of singular values, as in :func:`spectrum`.
        seed (int): as in :func:`spectrum`.
        progress (bool | None): a bar on stderr: always, never, or (None) on a terminal if it takes over a second.
        cache (str | os.PathLike | None): a JSON file that keeps singular values for later calls, by a SHA-256 of the
            weight, so that a changed weight is computed again; made if need be.

    Returns:
        RankAllocation: a dict of ranks in the order of `weights` (of files: of their names), with what is left of the
        budget as ``unspent``.

    Raises:
        TypeError: if the type of an argument or a weight's dtype is not supported.
        ValueError: if not exactly one budget is given or it does not cover `rank_min`, a number is out of range, a
            target names nothing, a file is not a safetensors file or not a cache, or a weight holds a NaN or infinity.
        BufferError: if a weight is neither on the CPU nor on a CUDA device.
        LinAlgError: if finite entries overflow on the way.
        OSError: if a file can't be read or the cache not be written.

    Example:
        >>> ranks = lrs.allocate_ranks("model.safetensors", 32, targets=["query", "value"])
        >>> model = adapt(model, LaMDA(rank=ranks), targets=["query", "value"])

    Reference:
        LaMDA++, https://arxiv.org/abs/2406.12832; the rule is this project's reading of it.
    """
    # Not above: what reads files would make up a good part of the package's import time.
    from ._allocation import allocate_with_spectra

    ranks, _ = allocate_with_spectra(
        weights,
        mean_rank,
        parameters=parameters,
        rank_min=rank_min,
        rank_max=rank_max,
        targets=targets,
        tol=tol,
        seed=seed,
        progress=progress,
        cache=cache,
    )
    return ranks
