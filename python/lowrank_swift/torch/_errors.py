# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Errors that say which layer they are about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lowrank_swift import LinAlgError

__all__ = ["errors_naming"]


@contextmanager
def errors_naming(module_name: str) -> Iterator[None]:
    """Put the module's name before the message of an error about its weight or its factors."""
    try:
        yield
    except (ValueError, TypeError, LinAlgError) as error:
        raise type(error)(f"{module_name}: {error}") from error
