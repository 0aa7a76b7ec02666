# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Rows: what LaMDA costs before, during and after its freezing, beside PEFT's LoRA of the same rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_swift.demo.metrics import bytes_kept
from lowrank_swift.torch import GradualFreeze, LaMDA, adapt

from . import peers
from .measure import time_side_by_side
from .networks import linear_layers, llama, minilm, minilm_source
from .table import OURS, Line, Row, Session, check, in_limit
from .verify import error_ratio

__all__ = ["rows", "updates"]

LORA, LORA_SAME_DTYPE = "PEFT LoRA", "PEFT LoRA, 16-bit"
FRACTION, STEPS = 0.3, 100
STAGES = (("before", 0.0), ("during", 0.5), ("after", 1.0))
# Rows, columns, how many: all linear layers of a Llama-2-7B.
LLAMA_2_7B = ((4096, 4096, 4 * 32), (11008, 4096, 2 * 32), (4096, 11008, 32))


class _Contender:
    """An adapted model, its optimizer and, for LaMDA, its freezing advanced to a share of the columns."""

    def __init__(self, model: nn.Module, ids: Tensor, frozen: float | None, *, trains: bool) -> None:
        self.model, self._ids = model.train(), ids
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-4, weight_decay=0.0)
        self._freeze: GradualFreeze | None = None
        if frozen is not None:
            # With one step for each hundredth, so that the schedule stands where it should after a known number.
            self._freeze = GradualFreeze(model, total_steps=100, fraction=1.0, optimizer=self._optimizer)
        if trains:
            self.step()
        if self._freeze is not None and frozen is not None:
            for _ in range(round(100 * frozen)):
                self._freeze.step()

    def loss(self) -> Tensor:
        loss: Tensor = self.model(input_ids=self._ids).last_hidden_state.float().square().mean()
        return loss

    def step(self) -> None:
        """One training step; the schedule stays where it is."""
        self.loss().backward()  # type: ignore[no-untyped-call, unused-ignore]
        self._optimizer.step()
        self._optimizer.zero_grad()

    def costs(self) -> dict[str, int]:
        """Return the bytes that are held for different purposes, and how many numbers train."""
        trained = [parameter for parameter in self._trained if parameter.requires_grad]
        state = [v for entry in self._optimizer.state.values() for v in entry.values() if isinstance(v, Tensor)]
        copies = [] if self._freeze is None else [columns.copy for columns in self._freeze._columns]
        return {
            "kept": bytes_kept(self.model, self.loss),
            "gradients": sum(parameter.nbytes for parameter in trained),
            "optimizer": sum(tensor.nbytes for tensor in state),
            "copies_of_frozen_columns": sum(copy.nbytes for copy in copies if copy is not None),
            "trained_numbers": sum(parameter.numel() for parameter in trained),
        }


def updates(shapes: Sequence[tuple[int, int, int]], rank: int, steps: int, fraction: float) -> dict[str, int]:
    """Return how many numbers a whole training updates by each method.

    Args:
        shapes: Rows, columns, and how many matrices have them.
        rank: Of all adapters.
        steps: Of the training.
        fraction: Share of the steps in which LaMDA freezes.
    """
    end = max(1, round(fraction * steps))
    # Before step t + 1 the first min(r, r t // F) columns are frozen.
    columns = sum(rank - min(rank, rank * t // end) for t in range(steps))
    return {
        "lora": steps * rank * sum(count * (m + n) for m, n, count in shapes),
        "lamda": sum(count * (steps * rank * rank + columns * m) for m, n, count in shapes),
        "core_only": steps * rank * rank * sum(count for _, _, count in shapes),
    }


def _lamda(model: nn.Module, targets: Sequence[str], rank: int, ids: Tensor, what: str) -> tuple[nn.Module, float]:
    """Return the model with adapters, and the error of its output, over the limit: at the start it is the base's."""
    model.eval()
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state.double()
        adapt(model, LaMDA(rank), targets=list(targets), base="intact", progress=False)
        found = model(input_ids=ids).last_hidden_state.double()
    return model, check(what, {OURS: in_limit(error_ratio(found - expected, expected, dtype))})


def _freezing(name: str, make: Callable[[Session], nn.Module], dtype: torch.dtype, rank: int) -> Row:
    def run(session: Session) -> Iterator[Line]:
        r, trains = session.rank(rank), dtype == torch.float32
        batch, length = (2, 16) if session.is_quick else (16, 128)
        what = f"{name} {str(dtype).removeprefix('torch.')} r={r} T={batch}x{length}"
        ids = torch.randint(5, 1000, (batch, length), generator=torch.Generator().manual_seed(0))
        targets = list(linear_layers(make(session)))
        # Steps in 16 bits are not timed: without 16-bit products, as on many CPUs, their time says nothing.
        names = (LORA,) if trains else (LORA, LORA_SAME_DTYPE)
        entries = {}
        for peer in names:
            model = peers.peft_model(make(session), r, targets, same_dtype=peer == LORA_SAME_DTYPE)
            entries[peer] = _Contender(model, ids, None, trains=trains)
        errors = []
        for stage, frozen in STAGES:
            model, error = _lamda(make(session), targets, r, ids, what)
            errors.append(error)
            entries[stage] = _Contender(model, ids, frozen, trains=trains)
        costs = {key: entry.costs() for key, entry in entries.items()}
        for peer in names:
            for stage, _ in STAGES:
                yield from _byte_lines(stage, what, costs[stage], peer, costs[peer], max(errors), trains=trains)
        if trains:
            yield from _step_lines(session, what, entries, max(errors))

    return Row("freezing", f"{name} {dtype}", run)


def _byte_lines(
    stage: str, what: str, ours: dict[str, int], peer: str, theirs: dict[str, int], error: float, *, trains: bool
) -> Iterator[Line]:
    detail = {"ours": ours, "theirs": theirs}

    def line(part: str, keys: Sequence[str]) -> Line:
        mine, its = (sum(costs[key] for key in keys) for costs in (ours, theirs))
        return Line(f"freezing, {stage}, {part}", what, mine, "bytes", None, peer, its, mine / its, None, error, detail)

    yield line("kept", ["kept"])
    if trains:
        yield line("training state", ["gradients", "optimizer", "copies_of_frozen_columns"])


def _step_lines(session: Session, what: str, entries: dict[str, _Contender], error: float) -> Iterator[Line]:
    timings = time_side_by_side(
        {key: entry.step for key, entry in entries.items()},
        before=lambda: None,
        repetitions=session.repetitions,
        seconds_each=session.seconds_each,
    )
    lora = timings[LORA]
    for stage, _ in STAGES:
        own = timings[stage]
        ratio, detail = lora.ratio_to(own), {"ours": own.record(), "theirs": lora.record()}
        yield Line(
            f"freezing, {stage}, step", what, own.median, "ms", None, LORA, lora.median, ratio, None, error, detail
        )


def _updates(session: Session) -> Iterator[Line]:
    rank = session.rank(32)
    counts = updates(LLAMA_2_7B, rank, STEPS, FRACTION)
    what, lora = f"{STEPS} steps of a Llama-2-7B r={rank}", counts["lora"] / 1e6
    for label, key in (("LaMDA", "lamda"), ("core-only LaMDA", "core_only")):
        own = counts[key] / 1e6
        yield Line(f"freezing, updates, {label}", what, own, "M", None, LORA, lora, own / lora)


def _minilm(session: Session, dtype: torch.dtype) -> nn.Module:
    return minilm(dtype)


def _llama(session: Session, dtype: torch.dtype) -> nn.Module:
    """Of Llama-2-7B's proportions, a quarter as wide and two layers deep."""
    model: Any = llama(
        width=session.side(1024),
        inner=session.side(2752),
        layers=2,
        heads=8,
        key_heads=8,
        vocabulary=1000,
        dtype=dtype,
    )
    decoder: nn.Module = model.model
    return decoder


def rows() -> Iterator[Row]:
    """Yield the rows."""
    for dtype in (torch.float32, torch.bfloat16):
        row = _freezing("MiniLM", partial(_minilm, dtype=dtype), dtype, 32)
        yield Row(row.name, row.what, row.run, needs=minilm_source)
    yield _freezing("Llama-shaped", partial(_llama, dtype=torch.bfloat16), torch.bfloat16, 32)
    yield Row("freezing", "numbers updated in a training", _updates)
