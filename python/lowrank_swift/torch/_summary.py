# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""How much of a model trains."""

from __future__ import annotations

from torch import nn

from ._targets import require_adapted

__all__ = ["print_trainable_parameters"]


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how many parameters of a model train, and how many numbers the adapters' frozen factors add.

    Args:
        model (torch.nn.Module): an adapted model. What trains beside the adapters, such as a new head, counts too.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if it has no adapted layer.
    """
    layers = require_adapted(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(buffer.numel() for _, layer in layers for buffer in layer.adapters.buffers())
    print(
        f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.4%}); "
        f"frozen factors of the adapters: {frozen:,} numbers"
    )
