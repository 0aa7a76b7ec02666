# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""LoLDU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import lowrank_swift as lrs
from lowrank_swift import Factors

from ._method import Method

__all__ = ["LoLDU"]


@dataclass(frozen=True)
class LoLDU(Method):
    """LoLDU (arXiv 2410.13618): the leading factors of W = P L D U, of which only the r diagonal entries train.

    Attributes:
        diagonal (str): start of the diagonal: "ldu" (that of D), "ones", "zeros", "mean", "uniform" or "normal".
        seed (int): seed of the random diagonals.
    """

    diagonal: str = "ldu"
    seed: int = 0

    trains: ClassVar[frozenset[str]] = frozenset({"core"})

    def initialize(self, weight: Tensor, rank: int) -> Factors:
        """Return up = P L[:, :r], core = the diagonal's start [r], down = U[:r]."""
        return lrs.loldu(weight, rank, scale=self.scale(rank), diagonal=self.diagonal, seed=self.seed)
