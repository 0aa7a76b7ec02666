# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""How ranks are allocated: spectra, as far as they are needed, then the rule."""

from __future__ import annotations

import math
import operator
import os
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from . import _native
from ._arrays import Array, framework_of
from ._checkpoint import Checkpoint, StoredMatrix
from ._progress import progress_bar
from ._rank_allocation import RankAllocation, Weights
from ._spectrum_cache import SpectrumCache
from ._targets import check_targets, names_meant
from ._weights import check_weight

__all__ = ["LayerSpectrum", "allocate_with_spectra"]

_ALL_AT_ONCE = 1024
"""Up to this min(m, n) the native spectrum finds all singular values whatever the rank."""


class LayerSpectrum(NamedTuple):
    """What is known of one layer: its shape ``(m, n)``, leading singular values, descending, and Frobenius norm."""

    shape: tuple[int, int]
    values: array[float]
    norm: float

    def share(self, rank: int) -> float:
        """Return E(rank), the share of ``||W||_F^2`` in the first singular values; 1 for ``W = 0``.

        It is summed as the native rule sums it, to the same bits.
        """
        if self.norm == 0:
            return 1.0
        total = 0.0
        for value in self.values[:rank]:
            total += (value / self.norm) * (value / self.norm)
        return min(1.0, total)


class _Budget(NamedTuple):
    """What the ranks may cost, and whether a rank step of an m x n layer costs m + n of it or 1."""

    total: int
    by_parameters: bool

    def cost(self, shape: tuple[int, int]) -> int:
        return sum(shape) if self.by_parameters else 1


def allocate_with_spectra(
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
) -> tuple[RankAllocation, dict[str, LayerSpectrum]]:
    """Return what :func:`allocate_ranks` does, and the spectra by layer, as far as they were needed."""
    sources = _sources(weights, targets)
    shapes = {name: _shape(name, source) for name, source in sources.items()}
    rank_min, rank_max = _limit("rank_min", rank_min, 1), _limit("rank_max", rank_max, rank_min)
    limits = {name: min(*shape, rank_max or min(shape)) for name, shape in shapes.items()}
    for name, limit in limits.items():
        if limit < rank_min:
            raise ValueError(f"rank_min: expected at most min(m, n) = {limit} of {name!r}, got {rank_min}")
    budget = _budget(mean_rank, parameters, list(shapes.values()), rank_min)
    mean = budget.total / sum(budget.cost(shape) for shape in shapes.values())
    kept = SpectrumCache(cache, tol, seed)
    spectra: dict[str, LayerSpectrum] = {}

    def find(name: str, rank: int) -> None:
        try:
            spectra[name] = LayerSpectrum(shapes[name], *kept.spectrum(sources[name], rank))
        except (ValueError, TypeError, BufferError, _native.LinAlgError) as error:
            raise type(error)(f"{name}: {error}") from error

    with progress_bar("Spectra", len(sources), progress) as advance:
        for name, limit in limits.items():
            enough = limit if min(shapes[name]) <= _ALL_AT_ONCE else max(rank_min, 2 * math.ceil(mean))
            find(name, min(limit, enough))
            advance()
        names = sorted(sources)
        while True:
            ranks, unspent, undecided = _follow_the_rule(names, spectra, limits, rank_min, budget)
            if undecided < 0:
                break
            name = names[undecided]
            find(name, min(limits[name], 2 * len(spectra[name].values)))
    kept.save()
    granted = dict(zip(names, ranks, strict=True))
    result = RankAllocation((name, granted[name]) for name in sources)
    result.unspent = unspent
    return result, spectra


def _follow_the_rule(
    names: Sequence[str],
    spectra: Mapping[str, LayerSpectrum],
    limits: Mapping[str, int],
    rank_min: int,
    budget: _Budget,
) -> tuple[list[int], int, int]:
    values = array("d")
    for name in names:
        values.extend(spectra[name].values)
    return _native.allocate_ranks(
        values.tobytes(),
        array("q", [len(spectra[name].values) for name in names]).tobytes(),
        array("d", [spectra[name].norm for name in names]).tobytes(),
        array("q", [limits[name] for name in names]).tobytes(),
        array("q", [budget.cost(spectra[name].shape) for name in names]).tobytes(),
        rank_min,
        budget.total,
    )


def _sources(weights: Weights, targets: Sequence[str] | None) -> dict[str, Array | StoredMatrix]:
    """Return the matrices that the targets name."""
    sources: Mapping[str, Array | StoredMatrix]
    if isinstance(weights, Mapping):
        sources = weights
        if not weights or not all(isinstance(name, str) for name in weights):
            raise ValueError(f"weights: expected at least one matrix, by name, got {list(weights)!r:.80}")
    elif isinstance(weights, (str, os.PathLike, Sequence)):
        sources = Checkpoint(weights).matrices
    else:
        raise TypeError(f"weights: expected a mapping, a path or a sequence of paths, got {type(weights).__name__}")
    if targets is None:
        return dict(sources)
    check_targets(targets, "name")
    meant = names_meant(targets, sources, "weight matrices")
    return {name: source for name, source in sources.items() if name in meant}


def _shape(name: str, source: Array | StoredMatrix) -> tuple[int, int]:
    try:
        if isinstance(source, StoredMatrix):
            if 0 in source.shape:
                raise ValueError(f"weight: expected a matrix with at least one entry, got shape {list(source.shape)}")
            return source.shape
        framework_of(source, "weight")
        checked = check_weight(source, 1, None)
    except (ValueError, TypeError, BufferError) as error:
        raise type(error)(f"{name}: {error}") from error
    return checked.rows, checked.columns


def _limit(name: str, value: int | None, least: int) -> int:
    """Return a limit of ranks as an int; 0 for None."""
    if value is None and name == "rank_max":
        return 0
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    number = operator.index(value)  # type: ignore[arg-type]
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {number}")
    return number


def _budget(
    mean_rank: float | None, parameters: int | None, shapes: Sequence[tuple[int, int]], rank_min: int
) -> _Budget:
    if (mean_rank is None) == (parameters is None):
        given = "neither" if mean_rank is None else "both"
        raise ValueError(f"mean_rank, parameters: expected exactly one of the two, got {given}")
    if mean_rank is not None:
        if isinstance(mean_rank, bool) or not isinstance(mean_rank, (int, float)):
            raise TypeError(f"mean_rank: expected a number, got {type(mean_rank).__name__}")
        if not rank_min <= mean_rank < math.inf:
            raise ValueError(f"mean_rank: expected a finite number of at least rank_min = {rank_min}, got {mean_rank}")
        # More than all layers could take changes nothing but what is left, and has to fit 64 bits.
        return _Budget(min(math.floor(mean_rank * len(shapes)), 2**62), by_parameters=False)
    if isinstance(parameters, bool) or not hasattr(type(parameters), "__index__"):
        raise TypeError(f"parameters: expected an int, got {type(parameters).__name__}")
    number, least = operator.index(parameters), rank_min * sum(map(sum, shapes))  # type: ignore[arg-type]
    if not least <= number < 2**63:
        bounds = f"{least} <= parameters < 2**63, the least for rank_min = {rank_min} in every layer"
        raise ValueError(f"parameters: expected {bounds}, got {number}")
    return _Budget(number, by_parameters=True)
