# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""PiSSA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import lowrank_swift as lrs
from lowrank_swift import Factors

from ._method import Method

__all__ = ["PiSSA"]


@dataclass(frozen=True)
class PiSSA(Method):
    """PiSSA (arXiv 2404.02948): ``up`` and ``down`` share the leading singular triplets of W, and both train.

    Attributes:
        tol (float): bound on the residual norms of the singular triplets, over the largest singular value.
        seed (int): seed of the factorisation's random start.
    """

    tol: float = 1e-4
    seed: int = 0

    trains: ClassVar[frozenset[str]] = frozenset({"up", "down"})

    def initialize(self, weight: Tensor, rank: int) -> Factors:
        """Return up = U_r sqrt(S_r / s), down = sqrt(S_r / s) V_r^T."""
        return lrs.pissa(weight, rank, scale=self.scale(rank), tol=self.tol, seed=self.seed)
