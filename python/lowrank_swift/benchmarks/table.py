# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What the rows of the table are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .floor import Machine, Work
from .measure import Run, Timing, time_side_by_side
from .verify import LIMIT

__all__ = [
    "OURS",
    "BenchmarkError",
    "Case",
    "Goal",
    "Line",
    "Row",
    "Session",
    "WrongResult",
    "check",
    "in_limit",
    "matrix",
    "time_case",
]

OURS = "lowrank_swift"


class BenchmarkError(Exception):
    """The benchmark can't be run as asked."""


class WrongResult(Exception):
    """A result is not what float64 says: its time would mean nothing."""


@dataclass(frozen=True)
class Goal:
    """What a ratio should be: at least a number, or at most one."""

    number: float
    at_most: bool = False

    def is_met_by(self, ratio: float) -> bool:
        """Tell whether a ratio will do."""
        return ratio <= self.number if self.at_most else ratio >= self.number

    def __str__(self) -> str:
        """Show it as the table does."""
        return f"{'<=' if self.at_most else '>='} {self.number:.3g}"


@dataclass(frozen=True)
class Line:
    """One comparison, as it is printed and recorded."""

    row: str
    what: str
    ours: float
    unit: str
    floor: float | None
    peer: str
    theirs: float
    ratio: float
    goal: Goal | None = None
    error: float | None = None
    """The largest error of our result, in its limit."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    """What is known of why the goal is not reached, beside the floor."""

    @property
    def is_reached(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        return None if self.goal is None else self.goal.is_met_by(self.ratio)

    @property
    def explanation(self) -> str:
        """Why a goal is not reached, as far as the floor and what is known tell; empty where it is, or nothing is."""
        if self.is_reached is not False or self.goal is None:
            return ""
        parts = [self.reason] if self.reason else []
        if self.floor and self.peer != "floor":
            at_floor = self.floor / self.theirs if self.goal.at_most else self.theirs / self.floor
            within = "a goal within it" if self.goal.is_met_by(at_floor) else "which is short of the goal, too"
            own, its = self.ours / self.floor, self.theirs / self.floor
            parts.append(
                f"ours is at {own:.3g} times the floor, {self.peer} at {its:.3g}; at the floor "
                f"the ratio would be {at_floor:.3g}, {within}"
            )
        return "; ".join(parts)

    def record(self) -> dict[str, Any]:
        """Return what goes into the JSON file."""
        values = asdict(self)
        values["reason"] = self.explanation
        values["goal"] = None if self.goal is None else str(self.goal)
        values["is_reached"] = self.is_reached
        return values


@dataclass(frozen=True)
class Session:
    """How a run measures, and on what."""

    machine: Machine
    repetitions: int = 10
    seconds_each: float = 5.0
    is_quick: bool = False

    def side(self, size: int) -> int:
        """Return a side of a matrix, a sixteenth of it in a quick run."""
        return max(16, size // 16) if self.is_quick else size

    def rank(self, rank: int) -> int:
        """Return a rank, an eighth of it in a quick run."""
        return max(2, rank // 8) if self.is_quick else rank


@dataclass(frozen=True)
class Row:
    """Something to measure: a name to choose it by, what it is, and what measures it."""

    name: str
    what: str
    run: Callable[[Session], Iterator[Line]]
    needs: Callable[[], object] = lambda: None
    """Raises BenchmarkError if something that the row needs is not installed."""


@dataclass(frozen=True)
class Case:
    """Contenders that compute the same, ours among them."""

    contenders: Mapping[str, Run]
    errors: Callable[[], Mapping[str, float]]
    """Errors of all that is to be checked, each over its limit."""
    work: Work
    before: Run = lambda: None


def check(what: str, errors: Mapping[str, float]) -> float:
    """Return the largest error of ours over its limit.

    Raises:
        WrongResult: if any error is beyond its limit, or not a number.
    """
    for name, error in errors.items():
        if not error <= 1:
            raise WrongResult(f"{what}, {name}: the error is {error:.3g} times its limit")
    return max((error for name, error in errors.items() if name.startswith(OURS)), default=math.nan)


def time_case(session: Session, row: str, what: str, case: Case, goals: Mapping[str, float]) -> Iterator[Line]:
    """Check a case, time it, and yield a line for each peer."""
    error = check(what, case.errors())
    timings = time_side_by_side(
        case.contenders, before=case.before, repetitions=session.repetitions, seconds_each=session.seconds_each
    )
    own, floor = timings.pop(OURS), session.machine.milliseconds(case.work)
    for peer, timing in timings.items():
        goal = Goal(goals[peer]) if peer in goals else None
        detail = {"ours": own.record(), "theirs": timing.record()}
        yield Line(row, what, own.median, "ms", floor, peer, timing.median, timing.ratio_to(own), goal, error, detail)
    if "floor" in goals:
        yield _against_floor(row, what, own, floor, goals["floor"], error)


def _against_floor(row: str, what: str, own: Timing, floor: float, goal: float, error: float) -> Line:
    detail = {"ours": own.record()}
    ratio = own.median / floor
    return Line(row, what, own.median, "ms", floor, "floor", floor, ratio, Goal(goal, True), error, detail)


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32, *, decay: bool = False) -> Tensor:
    """Return a seeded Gaussian weight with singular values up to about 2; with `decay`, 64 larger ones on top."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator).div_(max(rows, columns) ** 0.5)
    if decay:
        strengths = 8 / torch.arange(1, 65) ** 0.5
        left = torch.randn(rows, 64, generator=generator).div_(rows**0.5)
        weight.addmm_(left * strengths, torch.randn(64, columns, generator=generator).div_(columns**0.5))
    return weight.to(dtype)


def in_limit(error: float, limit: float = LIMIT) -> float:
    """Return an error over its limit."""
    return error / limit
