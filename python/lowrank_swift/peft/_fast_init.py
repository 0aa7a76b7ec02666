# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""PEFT's own LoRA with ``init_lora_weights="olora"`` and ``"pissa"``, computed by this package's factorisations.

What PEFT's initializers leave behind is what these leave behind: A and B in float32 before PEFT casts them, the
residual rounded once to the base's dtype, in the base's own memory for OLoRA in float32 and in new memory elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

import lowrank_swift as lrs
from lowrank_swift import Factors

__all__ = ["fast_init", "install", "uninstall"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# As accurate as the full SVD in float32 that PEFT takes for "pissa"; "pissa_niter_N" asks for an approximation.
_PISSA_TOL = 1e-6
_PISSA_NITER_TOL = 1e-4

_Subtract = Callable[[Tensor, int, float], Factors]


def install() -> None:
    """Compute here what PEFT does for ``init_lora_weights="olora"``, ``"pissa"`` and ``"pissa_niter_N"``.

    It goes for all models of the process until :func:`uninstall`. Configurations, adapters and checkpoints stay PEFT's
    own: the factors and the changed base are PEFT's to the rounding of float32. "pissa_niter_N", which PEFT
    approximates from random numbers, takes none here: the residual norms of its singular triplets are within 1e-4 of
    the largest singular value. Installing twice is the same as once.

    PEFT itself goes on to initialise what is not a float32, bfloat16 or float16 matrix on the CPU or a CUDA device
    (quantized, sharded or three-dimensional weights, other devices), with a ``RuntimeWarning`` that says why it is not
    the fast way.

    Different from PEFT, on purpose: "olora" transposes the weight of a ``Conv1D``; ``low_cpu_mem_usage=True`` works; a
    rank over ``min(m, n)``, a weight with a NaN or an infinity and a base weight on the meta device are a
    ``ValueError``; a further adapter on a layer, whose start changes the base under the earlier ones, is a
    ``RuntimeWarning``.

    Example:
        >>> lowrank_swift.peft.install()
        >>> model = get_peft_model(model, LoraConfig(init_lora_weights="olora", target_modules="all-linear"))
    """
    for name, replacement in _REPLACEMENTS.items():
        current = getattr(LoraLayer, name)
        if current is not replacement:
            _originals[name] = current
            setattr(LoraLayer, name, replacement)


def uninstall() -> None:
    """Undo :func:`install`. Models stay as they are. Without an earlier :func:`install` nothing happens.

    Raises:
        RuntimeError: if something else has replaced the same methods of PEFT since; nothing is undone then.
    """
    for name in _originals:
        if getattr(LoraLayer, name) is not _REPLACEMENTS[name]:
            raise RuntimeError(f"LoraLayer.{name}: expected this package's, got another's; uninstall that one first")
    while _originals:
        setattr(LoraLayer, *_originals.popitem())


@contextmanager
def fast_init() -> Iterator[None]:
    """:func:`install` for the time of a ``with`` block; what was installed before stays installed.

    Example:
        >>> with fast_init():
        ...     model = get_peft_model(model, LoraConfig(init_lora_weights="pissa"))
    """
    if _originals:
        yield
        return
    install()
    try:
        yield
    finally:
        uninstall()


def _olora_init(self: LoraLayer, adapter_name: str) -> None:
    if _is_served(self):
        in_place = self.get_base_layer().weight.dtype is torch.float32
        _start(self, adapter_name, lambda w, rank, scale: lrs.olora_(w, rank, scale=scale), in_place=in_place)
    else:
        _originals["olora_init"](self, adapter_name)


def _pissa_init(self: LoraLayer, adapter_name: str, init_lora_weights: str) -> None:
    tol = _pissa_tolerance(init_lora_weights)
    if tol is not None and _is_served(self):
        _start(self, adapter_name, lambda w, rank, scale: lrs.pissa_(w, rank, scale=scale, tol=tol), in_place=False)
    else:
        _originals["pissa_init"](self, adapter_name, init_lora_weights)


_REPLACEMENTS: dict[str, Callable[..., None]] = {"olora_init": _olora_init, "pissa_init": _pissa_init}
_originals: dict[str, Callable[..., None]] = {}


def _pissa_tolerance(init_lora_weights: str) -> float | None:
    """Return the tolerance for a value that PEFT knows, None for one that PEFT is to refuse."""
    if init_lora_weights == "pissa":
        return _PISSA_TOL
    start, separator, iterations = init_lora_weights.partition("pissa_niter_")
    return _PISSA_NITER_TOL if not start and separator and iterations.isdecimal() else None


def _is_served(layer: LoraLayer) -> bool:
    """Return whether the layer's weight is one for this package, and say why if it is not."""
    reason = _reason_against(layer)
    if reason is not None:
        warnings.warn(f"lowrank_swift leaves the initialisation to PEFT: {reason}", RuntimeWarning, stacklevel=3)
    return reason is None


def _reason_against(layer: LoraLayer) -> str | None:
    if isinstance(layer, ParamWrapper):
        return "the target is a parameter, not a layer"
    weight: Any = getattr(layer.get_base_layer(), "weight", None)
    if type(weight) is not nn.Parameter:
        return f"the weight is a {type(weight).__name__}"
    if weight.dim() != 2:
        return f"the weight has {weight.dim()} dimensions"
    if weight.dtype not in _DTYPES:
        return f"the weight is {str(weight.dtype).removeprefix('torch.')}"
    # torch calls the devices of ROCm "cuda" too.
    if weight.device.type not in ("cpu", "meta") and (weight.device.type != "cuda" or torch.version.hip is not None):
        return f"the weight is on {weight.device}"
    return None


def _start(layer: LoraLayer, adapter_name: str, subtract: _Subtract, *, in_place: bool) -> None:
    """Subtract the start from the base's weight and make it the adapter's A and B."""
    weight = cast(nn.Parameter, layer.get_base_layer().weight)
    rank = layer.r[adapter_name]
    _check(layer, adapter_name, weight, rank)
    data = weight.data if in_place else weight.data.clone()
    factors = subtract(data.T if getattr(layer, "fan_in_fan_out", False) else data, rank, layer.scaling[adapter_name])
    weight.data = data
    for linear, factor in ((layer.lora_A[adapter_name], factors.down), (layer.lora_B[adapter_name], factors.up)):
        # With low_cpu_mem_usage the adapter waits on the meta device for its checkpoint; only the base needs the start.
        if not linear.weight.is_meta:
            linear.weight.data = factor


def _check(layer: LoraLayer, adapter_name: str, weight: Tensor, rank: int) -> None:
    if weight.is_meta:
        raise ValueError("weight: expected a materialised base weight to factorise, got one on the meta device")
    if rank > min(weight.shape):
        raise ValueError(
            f"r: expected 1 <= r <= min(m, n) = {min(weight.shape)} for a weight of shape {list(weight.shape)}, got "
            f"{rank}; rank_pattern sets the rank of single layers, exclude_modules leaves them out"
        )
    others = [name for name in layer.lora_A if name != adapter_name]
    if others:
        warnings.warn(
            f"adapter {adapter_name!r} changes base weights that {', '.join(others)} was made for, and with them its "
            "outputs; lowrank_swift.peft.OLoRAConfig leaves the base as it is",
            RuntimeWarning,
            stacklevel=3,
        )
