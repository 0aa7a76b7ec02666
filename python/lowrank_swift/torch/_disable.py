# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Doing without the adapters for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ._targets import require_adapted

__all__ = ["disabled"]


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Compute the pretrained function inside a ``with`` block, merged or not.

    Over an intact base that is bit for bit; to a residual the layers add again what was subtracted, which gives the
    pretrained outputs to rounding.

    Args:
        model (torch.nn.Module): an adapted model.

    Yields:
        torch.nn.Module: ``model``, the same object.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if it has no adapted layer.

    Example:
        >>> with disabled(model), torch.no_grad():
        ...     reference = model(x)
    """
    before = [(layer, layer.disabled) for _, layer in require_adapted(model)]
    try:
        for layer, _ in before:
            layer.disabled = True
        yield model
    finally:
        for layer, was_disabled in before:
            layer.disabled = was_disabled
