# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What the demo is asked to do, checked before anything slow is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowrank_swift.demo.methods import METHODS

__all__ = ["DemoError", "Settings"]


class DemoError(Exception):
    """Something that the user asked for can't be done; the message is one sentence for them."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The demo's options, named as on the command line.

    Args:
        steps: Optimizer steps of each run.
        rank: One rank for all adapters, or None for each method's own.
        methods: Keys of `METHODS`, in the order in which they run.
        seeds: Number of seeds; the runs use 0, 1, ...
        out: Folder of the results.
        model: Local folder or hub id, or None for the pinned default.
        batch_size: Texts in a batch.
        max_length: Tokens kept of a text.

    Raises:
        DemoError: if a value is out of range.
    """

    steps: int = 64
    rank: int | None = None
    methods: tuple[str, ...] = ("lora", "olora", "loldu", "lamda", "full")
    seeds: int = 1
    out: Path = Path("demo-results")
    model: str | None = None
    batch_size: int = 32
    max_length: int = 64

    def __post_init__(self) -> None:  # noqa: D105
        for name, least in (("steps", 1), ("rank", 1), ("seeds", 1), ("batch_size", 1), ("max_length", 3)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DemoError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
        known = ", ".join(METHODS)
        if not self.methods:
            raise DemoError(f"--methods: expected at least one of {known}, got none")
        for method in self.methods:
            if method not in METHODS:
                raise DemoError(f"--methods: expected names among {known}, got {method!r}")
        if len(set(self.methods)) < len(self.methods):
            raise DemoError(f"--methods: expected each name once, got {','.join(self.methods)}")
        if self.out.exists() and not self.out.is_dir():
            raise DemoError(f"--out: expected a folder, got the file {self.out}")
