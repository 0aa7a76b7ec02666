# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Which names `targets=` means: the whole name, or its last parts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["check_targets", "names_meant"]


def check_targets(targets: object, what: str) -> None:
    """Refuse what can't name things of a kind, such as a "module name".

    Raises:
        TypeError: if it is no sequence.
        ValueError: if it is empty or holds anything but names.
    """
    if isinstance(targets, str) or not isinstance(targets, Sequence):
        raise TypeError(f"targets: expected a sequence of {what}s, got {targets!r}")
    if not targets or not all(isinstance(target, str) and target for target in targets):
        raise ValueError(f"targets: expected at least one {what} and no empty one, got {targets!r}")


def names_meant(targets: Sequence[str], names: Collection[str], of_what: str) -> set[str]:
    """Return the names that equal a target or end with ".target".

    Raises:
        ValueError: if a target matches nothing.
    """
    meant: set[str] = set()
    for target in targets:
        found = {name for name in names if name == target or name.endswith(f".{target}")}
        if not found:
            raise ValueError(f"targets: expected names of {of_what}, got {target!r}, which none has")
        meant |= found
    return meant
