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

    :class:`lowrank_swift.torch.GradualFreeze` freezes ``up`` step by step.

    Attributes:
        tol (float): bound on the residual norms of the singular triplets, over the largest singular value.
        seed (int): seed of the factorisation's random start.
    """

    tol: float = 1e-4
    seed: int = 0

    trains: ClassVar[frozenset[str]] = frozenset({"up", "core"})

    def initialize(self, weight: Tensor, rank: int) -> Factors:
        """Return up = U_r, core = diag(S_r) as a full matrix, down = V_r^T."""
        return lrs.lamda(weight, rank, scale=self.scale(rank), tol=self.tol, seed=self.seed)
