# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""A progress bar for work over many layers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]

_SECONDS_BEFORE_SHOWN = 1.0


@contextmanager
def progress_bar(description: str, total: int, show: bool | None) -> Iterator[Callable[[], None]]:
    """Give a function to call after each of ``total`` pieces of work.

    ``show``: True at once, False never, None on a terminal once the work has taken a second.
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=show is None)
    task = bar.add_task(description, total=total)
    begin = time.monotonic()
    if show:
        bar.start()

    def advance() -> None:
        bar.advance(task)
        if time.monotonic() - begin > _SECONDS_BEFORE_SHOWN:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
