# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What CUDA devices need beside the calls that take their tensors."""

from __future__ import annotations

import re
import sys
from typing import Any

from . import _native

__all__ = ["warmup"]


def warmup(device: Any) -> None:
    """Make a CUDA device ready: open the libraries, compile the kernels, make handles and their workspaces.

    The first call with a tensor of the device does the same. It takes some seconds where the kernels have to be
    compiled, and later processes find them in the folder that ``show_config`` names. Only before adapters are captured
    into a CUDA graph it has to be done beforehand; the graph may then be captured on any stream.

    Args:
        device: ``"cuda"``, ``"cuda:1"``, a ``torch.device`` or the number of the device. Without a number it is torch's
            current device, or the first where torch isn't in use.

    Raises:
        TypeError: if `device` is of another type.
        ValueError: if it names no CUDA device.
        BackendUnavailableError: if the driver, the device or a library is not there or can't be used.
    """
    index = _device_index(device)
    torch = sys.modules.get("torch")
    in_use = torch is not None and torch.cuda.is_initialized()
    if index is None:
        index = torch.cuda.current_device() if torch is not None and in_use else 0
    # Of a device that torch does not find, the driver tells more.
    is_known = torch is not None and in_use and index < torch.cuda.device_count()
    stream = torch.cuda.current_stream(index).cuda_stream if torch is not None and is_known else 0
    _native.warmup(index, stream)


def _device_index(device: Any) -> int | None:
    """Return the number of a CUDA device, or None where none is given."""
    if isinstance(device, int) and not isinstance(device, bool):
        if not 0 <= device < 64:
            raise ValueError(f"device: expected 0 <= device < 64, got {device}")
        return device
    kind = getattr(device, "type", None)
    if not isinstance(device, str) and not isinstance(kind, str):
        raise TypeError(f"device: expected a str, an int or a torch.device, got {type(device).__name__}")
    match = re.fullmatch(r"cuda(?::(\d{1,2}))?", str(device))
    if match is None:
        raise ValueError(f"device: expected a CUDA device such as 'cuda:0', got {str(device)!r}")
    return None if match[1] is None else _device_index(int(match[1]))
