# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What every method is made of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from numbers import Real
from typing import ClassVar

from torch import Tensor

from lowrank_swift import Factors

__all__ = ["Method", "Option", "check_alpha", "check_rank"]

Option = str | float | bool | None
"""An option's value, as JSON has it."""


def check_rank(rank: object, name: str, expected: str = "an int") -> None:
    """Raise a TypeError or ValueError that begins with ``name`` unless this is a rank."""
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"{name}: expected {expected}, got {rank!r}")
    if rank < 1:
        raise ValueError(f"{name}: expected at least 1, got {rank}")


def check_alpha(alpha: object, name: str) -> None:
    """Raise a TypeError or ValueError that begins with ``name`` unless this is an alpha, or None."""
    if alpha is None:
        return
    if not isinstance(alpha, Real):
        raise TypeError(f"{name}: expected a number or None, got {alpha!r}")
    if not math.isfinite(alpha) or alpha == 0:
        raise ValueError(f"{name}: expected a finite number other than 0, got {alpha}")


@dataclass(frozen=True)
class Method(ABC):
    """A method's options. A subclass adds its own, its starting factors, and which of the three train.

    Attributes:
        rank (int | Mapping[str, int]): r, for every layer or by the layer's qualified name.
        alpha (float | None): numerator of the scale; None means r, so that the scale is 1 (sqrt(r) with ``rslora``).
        rslora (bool): rank-stabilised scale alpha / sqrt(r) in place of alpha / r (arXiv 2312.03732).
        trains (frozenset[str]): which of "up", "core" and "down" train; an option may change it.

    Raises:
        TypeError: if a rank is not an integer or alpha no number.
        ValueError: if a rank is not positive, or alpha is zero or not finite.
    """

    rank: int | Mapping[str, int]
    _: KW_ONLY
    alpha: float | None = None
    rslora: bool = False

    trains: ClassVar[frozenset[str]]

    def __post_init__(self) -> None:
        for rank in self.rank.values() if isinstance(self.rank, Mapping) else (self.rank,):
            check_rank(rank, "rank", "an int or a mapping of module names to ints")
        check_alpha(self.alpha, "alpha")

    def rank_of(self, module_name: str) -> int:
        """Return the rank for a layer.

        Raises:
            ValueError: if ranks are given by name and this one is missing.
        """
        if isinstance(self.rank, int):
            return self.rank
        if module_name not in self.rank:
            raise ValueError(f"rank: expected a rank for every adapted layer, got none for {module_name!r}")
        return self.rank[module_name]

    def scale(self, rank: int) -> float:
        """Return s for a layer of this rank."""
        alpha = rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def options(self) -> dict[str, Option]:
        """Return all options but the rank, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rank"}

    @abstractmethod
    def initialize(self, weight: Tensor, rank: int) -> Factors:
        """Return the starting factors for one weight, in float32 (float64 for a float64 weight), weight untouched."""
