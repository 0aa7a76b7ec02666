# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""LaMDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import lowrank_swift as lrs
from lowrank_swift import Factors

from ._method import Method

__all__ = ["LaMDA"]


@dataclass(frozen=True)
class LaMDA(Method):
    """LaMDA (arXiv 2406.12832): singular vectors around a square core; the core trains, and ``up`` at first.

    :class:`lowrank_swift.torch.GradualFreeze` freezes ``up`` step by step. With ``core_only`` it is frozen from the
    start; over an intact base the core is then stored as its deviation from diag(S_r), zero at the start.

    Attributes:
        core_only (bool): whether the core alone trains.
        tol (float): bound on the residual norms of the singular triplets, over the largest singular value.
        seed (int): seed of the factorisation's random start.
    """

    tol: float = 1e-4
    seed: int = 0
    core_only: bool = False

    trains: ClassVar[frozenset[str]] = frozenset({"up", "core"})

    def __post_init__(self) -> None:
        """Check the options, and leave out what ``core_only`` freezes."""
        super().__post_init__()
        if not isinstance(self.core_only, bool):
            raise TypeError(f"core_only: expected a bool, got {type(self.core_only).__name__}")
        if self.core_only:
            object.__setattr__(self, "trains", frozenset({"core"}))

    def initialize(self, weight: Tensor, rank: int) -> Factors:
        """Return up = U_r, core = diag(S_r) as a full matrix, down = V_r^T."""
        return lrs.lamda(weight, rank, scale=self.scale(rank), tol=self.tol, seed=self.seed)
