# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What a call of a layer does beside the layer's own forward."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

__all__ = ["at_its_device", "is_bare"]


def is_bare(layer: nn.Module) -> bool:
    """Return whether nothing watches or replaces a call, but what brings the input to the layer's device."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any(hooks) and ("forward" not in vars(layer) or _is_placed(layer))


def at_its_device(x: Tensor, layer: nn.Module) -> Tensor:
    """Return an input where the layer is, if accelerate has placed it there, as a ``device_map`` of several devices."""
    if "_hf_hook" in vars(layer) and _is_placed(layer):
        assert isinstance(layer.weight, Tensor)
        return x.to(layer.weight.device)
    return x


def _is_placed(layer: nn.Module) -> bool:
    """Return whether accelerate runs the layer's own forward on its device, with weights that stay there."""
    own = vars(layer)
    forward: Any = own.get("forward")
    hook: Any = own.get("_hf_hook")
    return (
        isinstance(forward, partial)
        and forward.func.__module__ == "accelerate.hooks"
        and getattr(own.get("_old_forward"), "__func__", None) is type(layer).forward
        and type(hook).__module__ == "accelerate.hooks"
        and type(hook).__name__ == "AlignDevicesHook"
        and not hook.offload
        and not hook.io_same_device
    )
