# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Knowing a base weight again, where a checkpoint leaves out what is computed from it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["FINGERPRINT", "fingerprint"]

FINGERPRINT = "base_fingerprint"


def fingerprint(weight: Tensor, up: Tensor) -> Tensor:
    """Return 32 bytes that tell a weight, its dtype and shape, and which rows its factorisation took for pivots.

    The rows are where ``up``, a permuted lower triangle, has its zeros: rounding that differs from one processor to the
    next can turn a near tie between pivots round, which makes other factors.
    """
    digest = hashlib.sha256(f"{weight.dtype} {list(weight.shape)}".encode())
    for tensor in (weight.detach(), up == 0):
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
