# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The initializers beside what people use today, and the checks that both computed the same thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

import lowrank_swift as lrs
from lowrank_swift import Factors

__all__ = ["Row", "rows"]


@dataclass
class Row:
    """One line of the table: our call, its peers, and the proof that ours is right."""

    name: str
    weight: Tensor
    rank: int
    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]]
    error: Callable[[], float]
    """Largest error of our result, in the unit that `limit` has."""
    limit: float
    before: Callable[[], object] = field(default=lambda: None)


def _ratio(residual: Tensor, weight: Tensor) -> float:
    """Residual over max(m, n) * eps * norm, with the epsilon of the weight's own dtype."""
    scale = max(weight.shape) * torch.finfo(weight.dtype).eps * weight.double().norm()
    return float(residual.norm() / scale)


def _delta(factors: Factors) -> Tensor:
    up, down = factors.up.double(), factors.down.double()
    if factors.core is not None:
        up = up * factors.core.double() if factors.core.ndim == 1 else up @ factors.core.double()
    return factors.scale * up @ down


def _torch_truncated_qr(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    q = torch.linalg.qr(wide[:, :rank]).Q
    return q, q.T @ wide


def _torch_olora_(weight: Tensor, rank: int) -> None:
    if weight.dtype == torch.float32:
        weight.addmm_(*_torch_truncated_qr(weight, rank), alpha=-1)
        return
    q, r = _torch_truncated_qr(weight, rank)
    weight.copy_(weight.float().addmm_(q, r, alpha=-1))


def _torch_truncated_lu(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    permutation, lower, upper = torch.linalg.lu(weight.float())
    diagonal = upper.diagonal()[:rank]
    return permutation @ lower[:, :rank], diagonal, upper[:rank] / diagonal[:, None]


def _torch_loldu_(weight: Tensor, rank: int) -> None:
    up, diagonal, down = _torch_truncated_lu(weight, rank)
    weight.copy_(weight.float().addmm_(up * diagonal, down, alpha=-1))


def _peft_olora(weight: Tensor, rank: int) -> Callable[[], object]:
    """PEFT's initializer on its own layer; the layer's base shares the memory of `weight`."""
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    base.weight = nn.Parameter(weight, requires_grad=False)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False)
    layer = LoraLinear(base, "default", config=config, r=rank, lora_alpha=rank, init_lora_weights=False)

    def run() -> None:
        base.weight.data = weight
        layer.olora_init("default")

    return run


def rows(shapes: list[tuple[int, int, int]], dtypes: list[torch.dtype]) -> Iterator[Row]:
    """Yield the table's rows for the shapes (m, n, rank) and dtypes."""
    for m, n, rank in shapes:
        for dtype in dtypes:
            generator = torch.Generator().manual_seed(0)
            original = torch.randn(m, n, generator=generator).div_(n**0.5).to(dtype)
            yield from _rows_of(original, rank)


def _rows_of(original: Tensor, rank: int) -> Iterator[Row]:
    weight = original.clone()
    wide = original.double()

    def restore() -> None:
        weight.copy_(original)

    def error_in_place(initializer: Callable[[Tensor, int], Factors]) -> Callable[[], float]:
        def error() -> float:
            restore()
            factors = initializer(weight, rank)
            return _ratio(weight.double() + _delta(factors) - wide, original)

        return error

    def error_qr() -> float:
        factors = lrs.olora(original, rank)
        exact = torch.linalg.qr(wide[:, :rank])
        residual = factors.up.double() - exact.Q
        return max(_ratio(residual, exact.Q.float()), _ratio(factors.down.double() - exact.Q.T @ wide, original.float()))

    def error_ldu() -> float:
        result = lrs.ldu(original, rank)
        permuted = wide[result.perm]
        product = result.L.double() * result.D.double() @ result.U.double()
        return max(
            _ratio((product - permuted)[:, :rank], original.float()),
            _ratio((product - permuted)[:rank], original.float()),
        )

    def error_svd() -> float:
        u, s, vh = (part.double() for part in lrs.svd(original, rank)[:3])
        left = (wide @ vh.T - u * s).norm(dim=0).max()
        right = (wide.T @ u - vh.T * s).norm(dim=0).max()
        return float(max(left, right) / s[0])

    yield Row(
        "olora",
        weight,
        rank,
        lambda: lrs.olora(weight, rank),
        {"torch, truncated": lambda: _torch_truncated_qr(weight, rank)},
        error_qr,
        30,
        restore,
    )
    yield Row(
        "olora_",
        weight,
        rank,
        lambda: lrs.olora_(weight, rank),
        {"PEFT olora_init": _peft_olora(weight, rank), "torch, truncated": lambda: _torch_olora_(weight, rank)},
        error_in_place(lrs.olora_),
        30,
        restore,
    )
    yield Row(
        "loldu",
        weight,
        rank,
        lambda: lrs.loldu(weight, rank),
        {"torch.linalg.lu": lambda: _torch_truncated_lu(weight, rank)},
        error_ldu,
        30,
        restore,
    )
    yield Row(
        "loldu_",
        weight,
        rank,
        lambda: lrs.loldu_(weight, rank),
        {"torch.linalg.lu": lambda: _torch_loldu_(weight, rank)},
        error_in_place(lrs.loldu_),
        30,
        restore,
    )
    yield Row(
        "lamda",
        weight,
        rank,
        lambda: lrs.lamda(weight, rank),
        {
            "torch.svd_lowrank, niter=16": lambda: torch.svd_lowrank(weight.float(), q=rank, niter=16),
            "torch.linalg.svd": lambda: torch.linalg.svd(weight.float(), full_matrices=False),
        },
        error_svd,
        1e-4,
        restore,
    )
