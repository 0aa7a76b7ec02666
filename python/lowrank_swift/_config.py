# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What the native library found on this machine."""

from __future__ import annotations

from typing import Any

from . import _native
from ._version import __version__

__all__ = ["show_config"]


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print the library's version, instruction set, BLAS, threads and CUDA, as ``numpy.show_config`` does for NumPy.

    ``cuda`` is None before the first CUDA tensor; nothing is opened to answer.

    Args:
        mode: ``"stdout"`` prints; ``"dicts"`` returns the same facts as a dictionary instead.

    Raises:
        ValueError: if `mode` is neither.
    """
    import json  # Not above: it would make up a good part of the package's import time.

    if not isinstance(mode, str) or mode not in ("stdout", "dicts"):
        raise ValueError(f"mode: expected 'stdout' or 'dicts', got {mode!r}")
    config: dict[str, Any] = {"version": __version__, **json.loads(_native.config())}
    if mode == "dicts":
        return config
    print(json.dumps(config, indent=2))
    return None
