# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The contenders: how each makes an encoder trainable, and the rank and learning rate that suit it.

All adapters sit on the same layers. The libraries are imported when a method is used, so that reading this table is
cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

__all__ = ["METHODS", "Method", "import_libraries"]


@dataclass(frozen=True, slots=True)
class Method:
    """One way of fine-tuning.

    Args:
        label: Name in tables and plots.
        ours: Whether lowrank_swift provides it.
        colour: In the plot; Okabe and Ito's, which colour-blind readers can tell apart.
        rank: Default rank, the mean one where layers differ, or None where there is none.
        learning_rate: Peak learning rate of the encoder's trainable parameters (AdamW).
        prepare: (encoder, names of the layers to adapt, rank) -> the encoder to train, its trainable parameters marked.
        schedule: (encoder, steps, optimizer) -> what to call after each optimizer step.
    """

    label: str
    ours: bool
    colour: str
    rank: int | None
    learning_rate: float
    prepare: Callable[[nn.Module, Sequence[str], int], nn.Module]
    schedule: Callable[[nn.Module, int, Optimizer], Callable[[], object]] | None = None


def import_libraries() -> None:
    """Import what the methods use, so that no initialisation time includes an import."""
    import peft  # noqa: F401

    import lowrank_swift.torch  # noqa: F401


def _head_only(encoder: nn.Module, targets: Sequence[str], rank: int) -> nn.Module:
    return encoder.requires_grad_(False)


def _full(encoder: nn.Module, targets: Sequence[str], rank: int) -> nn.Module:
    return encoder.requires_grad_(True)


def _lora(encoder: nn.Module, targets: Sequence[str], rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(encoder, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets)))


def _olora(encoder: nn.Module, targets: Sequence[str], rank: int) -> nn.Module:
    from lowrank_swift.torch import OLoRA, adapt

    return adapt(encoder, OLoRA(rank), targets=targets, progress=False)


def _loldu(encoder: nn.Module, targets: Sequence[str], rank: int) -> nn.Module:
    from lowrank_swift.torch import LoLDU, adapt

    return adapt(encoder, LoLDU(rank), targets=targets, progress=False)


def _lamda(encoder: nn.Module, targets: Sequence[str], rank: int) -> nn.Module:
    from lowrank_swift.torch import LaMDA, adapt

    return adapt(encoder, LaMDA(rank), targets=targets, progress=False)


def _lamda_plus_plus(encoder: nn.Module, targets: Sequence[str], rank: int) -> nn.Module:
    from lowrank_swift.torch import LaMDA, adapt, allocate_ranks

    ranks = allocate_ranks(encoder, targets, mean_rank=rank, progress=False)
    return adapt(encoder, LaMDA(ranks), targets=targets, progress=False)


def _freeze_gradually(encoder: nn.Module, steps: int, optimizer: Optimizer) -> Callable[[], object]:
    from lowrank_swift.torch import GradualFreeze

    return GradualFreeze(encoder, total_steps=steps, fraction=0.3, optimizer=optimizer).step


METHODS: dict[str, Method] = {
    "head": Method("head alone", False, "#999999", None, 0.0, _head_only),
    "lora": Method("LoRA (PEFT)", False, "#000000", 16, 2e-3, _lora),
    "olora": Method("OLoRA", True, "#0072B2", 16, 1e-3, _olora),
    "loldu": Method("LoLDU", True, "#D55E00", 128, 2e-3, _loldu),
    "lamda": Method("LaMDA", True, "#009E73", 32, 1e-3, _lamda, _freeze_gradually),
    "lamda++": Method("LaMDA++", True, "#56B4E9", 32, 1e-3, _lamda_plus_plus, _freeze_gradually),
    "full": Method("full fine-tuning", False, "#CC79A7", None, 2e-4, _full),
}
