# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What people use today: PEFT, and the same algorithms written in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_swift import Factors

__all__ = [
    "AddmmLinear",
    "peft_initializer",
    "peft_lora",
    "peft_model",
    "torch_lu",
    "torch_lu_",
    "torch_olora_",
    "torch_olora_upcast_",
    "torch_qr",
]


def torch_qr(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """QR of the first columns only, then one product; a 16-bit weight must be widened."""
    wide = weight.float()
    q = torch.linalg.qr(wide[:, :rank]).Q
    return q, q.T @ wide


def torch_olora_(weight: Tensor, rank: int) -> Factors:
    """OLoRA in place with the fewest passes that torch has; a 16-bit weight is widened once."""
    wide = weight.float()
    q = torch.linalg.qr(wide[:, :rank]).Q
    r = q.T @ wide
    wide.addmm_(q, r, alpha=-1)
    if wide is not weight:
        weight.copy_(wide)
    return Factors("olora", q, None, r, 1.0)


def torch_olora_upcast_(weight: Tensor, rank: int) -> Factors:
    """OLoRA in place as it is mostly written for a 16-bit weight."""
    q, r = torch_qr(weight, rank)
    weight.copy_(weight.float() - q @ r)
    return Factors("olora", q, None, r, 1.0)


def torch_lu(weight: Tensor, rank: int) -> Factors:
    """LoLDU's factors as its authors take them: from a full LU with a dense permutation."""
    permutation, lower, upper = torch.linalg.lu(weight.float())
    diagonal = upper.diagonal()[:rank]
    return Factors("loldu", permutation @ lower[:, :rank], diagonal, upper[:rank] / diagonal[:, None], 1.0)


def torch_lu_(weight: Tensor, rank: int) -> Factors:
    """The same, and the residual."""
    factors = torch_lu(weight, rank)
    weight.copy_(weight.float().addmm_(factors.up * factors.core, factors.down, alpha=-1))
    return factors


def peft_initializer(weight: Tensor, rank: int, how: str) -> Callable[[], tuple[Tensor, Factors]]:
    """PEFT's initializer on its own layer; each call starts from `weight` and returns the new base and the factors.

    Args:
        weight: The base, [m, n].
        rank: Of the factors.
        how: "olora", "pissa" or "pissa_niter_N", as PEFT's `init_lora_weights`.
    """
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    base = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device="meta")
    base.weight = nn.Parameter(weight, requires_grad=False)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False)
    layer: Any = Linear(base, "default", config=config, r=rank, lora_alpha=rank, init_lora_weights=False)

    def run() -> tuple[Tensor, Factors]:
        base.weight.data = weight
        if how == "olora":
            layer.olora_init("default")
        else:
            layer.pissa_init("default", how)
        up, down = layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()
        return base.weight.detach(), Factors(how, up, None, down, layer.scaling["default"])

    return run


def peft_lora(base: nn.Linear, rank: int) -> nn.Module:
    """Return PEFT's LoRA around a frozen layer, as `get_peft_model` makes it."""
    model = nn.Sequential(base)
    peft_model(model, rank, ["0"])
    return model


def peft_model(
    model: nn.Module,
    rank: int,
    targets: Any = "all-linear",
    *,
    config: Any = None,
    same_dtype: bool = False,
    **options: Any,
) -> nn.Module:
    """Return what `get_peft_model` makes of a model, which it changes; LoRA unless `config` is another class.

    Args:
        model: The base.
        rank: Of the adapters, and their alpha.
        targets: As PEFT's `target_modules`.
        config: Class of the configuration.
        same_dtype: Keep 16-bit adapters over a 16-bit base, which PEFT widens to float32 by default.
        options: Of the configuration.
    """
    from peft import LoraConfig, get_peft_model

    chosen = (config or LoraConfig)(r=rank, lora_alpha=rank, target_modules=targets, **options)
    wrapped: nn.Module = get_peft_model(model, chosen, autocast_adapter_dtype=not same_dtype)  # type: ignore[arg-type, unused-ignore]
    return wrapped


class AddmmLinear(nn.Module):
    """LoRA around a frozen layer with as few operations as torch's autograd allows."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        """Keep the layer, and make factors of its dtype."""
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output plus the adapter's."""
        out: Tensor = self.base(x)
        return out.addmm_(x @ self.down.T, self.up.T)
