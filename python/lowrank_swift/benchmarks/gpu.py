# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""`python -m lowrank_swift.benchmarks.gpu`: CUDA tensors beside torch's and PEFT's ways, with results checked first.

Times are those of the device between two events around a call. Without a GPU every row says that it needs one, and
nothing is written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowrank_swift as lrs
from lowrank_swift import Factors
from lowrank_swift.torch import GradualFreeze, LaMDA, LoLDU, adapt

from . import peers
from .adapters import BARE, PEFT, adapted, clear, frozen_linear
from .measure import Run, Timing, environment
from .networks import llama
from .table import OURS, Goal, Line, WrongResult, matrix

__all__ = ["main"]

FLOOR = "bandwidth floor"
LLAMA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Gpu:
    """Where to measure, and how often."""

    device: torch.device
    repetitions: int
    is_quick: bool

    def side(self, size: int) -> int:
        """Return a size, a sixteenth of it in a quick run."""
        return max(64, size // 16) if self.is_quick else size

    def matrix(self, rows: int, columns: int, dtype: torch.dtype, *, decay: bool = False) -> Tensor:
        """Return a seeded weight on the device."""
        return matrix(rows, columns, dtype, decay=decay).to(self.device)

    def milliseconds(self, run: Run) -> float:
        """Return how long the device works on a call."""
        if self.device.type != "cuda":
            begin = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - begin)
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def time(self, contenders: Mapping[str, Run], before: Run = lambda: None) -> dict[str, Timing]:
        """Time the contenders in turn, after one round to warm up; what takes seconds runs twice."""
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(self.repetitions + 1):
            for name, run in contenders.items():
                if round_ > 2 and max(times[name]) > 1000:
                    continue
                before()
                elapsed = self.milliseconds(run)
                if round_ > 0:
                    times[name].append(elapsed)
        return {name: Timing(tuple(each)) for name, each in times.items()}

    def floor(self, passes: float, weight: Tensor) -> float:
        """Return the time of so many passes over a weight, by the time of a copy, which is two."""
        target = torch.empty_like(weight)
        return self.time({FLOOR: lambda: target.copy_(weight)})[FLOOR].median * passes / 2


Measure = Callable[[Gpu], Iterator[Line]]


def _check(what: str, error: float, limit: float) -> float:
    if not error <= limit:
        raise WrongResult(f"{what}: the error is {error:.3g}, {limit:.3g} is allowed")
    return error / limit


def _residual_error(weight: Tensor, changed: Tensor, factors: Factors) -> float:
    """How far residual and adapter are from the weight, relative to it."""
    sum_ = changed.double() + factors.delta().double()
    return float((sum_ - weight.double()).norm() / weight.double().norm())


def _lines(
    row: str, what: str, timings: Mapping[str, Timing], floor: float | None, goals: Mapping[str, Goal], error: float
) -> Iterator[Line]:
    own = timings[OURS]
    for peer, timing in timings.items():
        if peer != OURS:
            detail = {"ours": own.record(), "theirs": timing.record()}
            ratio = timing.ratio_to(own)
            goal = goals.get(peer)
            yield Line(row, what, own.median, "ms", floor, peer, timing.median, ratio, goal, error, detail)
    if floor is not None and FLOOR in goals:
        detail = {"ours": own.record()}
        ratio = own.median / floor
        yield Line(row, what, own.median, "ms", floor, FLOOR, floor, ratio, goals[FLOOR], error, detail)


def _full_qr_(weight: Tensor, rank: int) -> Factors:
    wide = weight.float()
    q, r = torch.linalg.qr(wide)
    q, r = q[:, :rank].contiguous(), r[:rank].contiguous()
    weight.copy_(wide - q @ r)
    return Factors("olora", q, None, r, 1.0)


def _olora_(dtype: torch.dtype) -> Measure:
    def measure(gpu: Gpu) -> Iterator[Line]:
        side, rank = gpu.side(4096), 32
        weight = gpu.matrix(side, side, dtype)
        work = weight.clone()
        what = f"{side}x{side} r={rank} {dtype}"
        factors = lrs.olora_(work, rank)
        error = _check(what, _residual_error(weight, work, factors), 4 * torch.finfo(dtype).eps)
        timings = gpu.time(
            {
                OURS: lambda: lrs.olora_(work, rank),
                "torch.linalg.qr": lambda: _full_qr_(work, rank),
                "torch, panel": lambda: peers.torch_olora_(work, rank),
            },
            before=lambda: work.copy_(weight),
        )
        goals = {"torch.linalg.qr": Goal(100), "torch, panel": Goal(3), FLOOR: Goal(2.5, at_most=True)}
        # The weight is read for R, then read and written for the residual.
        yield from _lines("olora_", what, timings, gpu.floor(3, weight), goals, error)

    return measure


def _loldu(in_place: bool) -> Measure:
    def measure(gpu: Gpu) -> Iterator[Line]:
        side, rank = gpu.side(4096), 32
        weight = gpu.matrix(side, side, torch.float32)
        work = weight.clone()
        what = f"{side}x{side} r={rank} torch.float32"
        ours = lrs.loldu_ if in_place else lrs.loldu
        factors = lrs.loldu_(work, rank)
        error = _check(what, _residual_error(weight, work, factors), 100 * torch.finfo(torch.float32).eps)
        peer = peers.torch_lu_ if in_place else peers.torch_lu
        timings = gpu.time(
            {OURS: lambda: ours(work, rank), "torch.linalg.lu": lambda: peer(work, rank)},
            before=lambda: work.copy_(weight),
        )
        floor = gpu.floor(2, weight) if in_place else None
        yield from _lines("loldu_" if in_place else "loldu", what, timings, floor, {"torch.linalg.lu": Goal(20)}, error)

    return measure


def _lamda(gpu: Gpu) -> Iterator[Line]:
    side, rank, tol = gpu.side(4096), 32, 1e-4
    weight = gpu.matrix(side, side, torch.float32, decay=True)
    what = f"{side}x{side} r={rank} tol={tol:g}"

    def error_of(u: Tensor, s: Tensor, vh: Tensor) -> float:
        residuals = weight.double() @ vh.double().mT - u.double() * s.double()
        return float(residuals.norm(dim=0).max() / s[0])

    def random() -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(weight, q=rank, niter=16)
        return u, s, v.mT

    result = lrs.svd(weight, rank, tol=tol)
    own = error_of(*result[:3])
    error = _check(what, own, 2 * tol)
    timings = gpu.time(
        {
            OURS: lambda: lrs.lamda(weight, rank, tol=tol),
            "torch.linalg.svd": lambda: torch.linalg.svd(weight, full_matrices=False),
            "torch.svd_lowrank": random,
        }
    )
    goals = {"torch.linalg.svd": Goal(100), "torch.svd_lowrank": Goal(1)}
    yield from _lines("lamda", what, timings, None, goals, error)
    theirs = error_of(*random())
    yield Line("lamda, error", what, own, "", None, "torch.svd_lowrank", theirs, theirs / own, Goal(100), error)


def _step(gpu: Gpu) -> Iterator[Line]:
    tokens, side, rank, dtype = gpu.side(4096), gpu.side(4096), 32, torch.bfloat16
    weight, x, grad = gpu.matrix(side, side, dtype), gpu.matrix(tokens, side, dtype), gpu.matrix(tokens, side, dtype)
    x.requires_grad_()
    what = f"T={tokens} {side}x{side} r={rank} {dtype}"
    layers = {
        BARE: nn.Sequential(frozen_linear(weight)),
        PEFT: peers.peft_lora(frozen_linear(weight), rank).to(gpu.device),
    }
    for method in (LoLDU, LaMDA):
        layers[f"{method.__name__} intact"] = adapted(weight, method, rank, "intact")

    def step(model: nn.Module) -> None:
        model(x).backward(grad)
        clear(model, x)

    expected = layers[BARE](x.detach()).double()
    for name, model in layers.items():
        difference = float((model(x).detach().double() - expected).norm() / expected.norm())
        _check(f"{what}, {name}", difference, 4 * torch.finfo(dtype).eps)
    contenders: dict[str, Run] = {name: lambda model=model: step(model) for name, model in layers.items()}  # type: ignore[misc]
    timings = gpu.time(contenders)
    theirs = timings[PEFT].excess_over(timings[BARE])
    # Two launches beside the base product read x and h, and read and write y; the backward the like of it twice.
    floor = gpu.floor(9, x.detach())
    for name in layers:
        if name in (BARE, PEFT):
            continue
        own = timings[name].excess_over(timings[BARE])
        detail = {key: timing.record() for key, timing in timings.items()}
        goal, near = Goal(0.4, at_most=True), Goal(1.3, at_most=True)
        yield Line(f"overhead, {name}", what, own, "ms", floor, PEFT, theirs, own / theirs, goal, detail=detail)
        yield Line(f"overhead, {name}", what, own, "ms", floor, FLOOR, floor, own / floor, near, detail=detail)


def _peak(gpu: Gpu) -> Iterator[Line]:
    layers, width = (24, 2048) if not gpu.is_quick else (2, 128)
    sizes = {"width": width, "inner": 11 * width // 4, "layers": layers, "heads": width // 64, "key_heads": width // 64}
    ids = torch.randint(1000, (4, 1024 if not gpu.is_quick else 32), device=gpu.device)
    what = f"{layers} layers, width {width}, {ids.numel()} tokens, r=32 bfloat16"

    def peak(prepare: Callable[[nn.Module], nn.Module]) -> float:
        model = llama(**sizes, vocabulary=1000, dtype=torch.bfloat16).to(gpu.device)
        model = prepare(model).to(gpu.device)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return float(torch.cuda.max_memory_allocated())

    def ours(method: Any) -> Callable[[nn.Module], nn.Module]:
        def prepare(model: nn.Module) -> nn.Module:
            adapt(model, method(32), targets=LLAMA_LAYERS, base="intact", progress=False)
            if method is LaMDA:
                GradualFreeze(model, total_steps=1, fraction=0)
            return model

        return prepare

    theirs = peak(lambda model: peers.peft_model(model, 32, LLAMA_LAYERS, same_dtype=True))
    for method in (LoLDU, LaMDA):
        own = peak(ours(method))
        row = f"peak memory, {method.__name__}"
        yield Line(row, what, own, "bytes", None, PEFT, theirs, theirs / own, Goal(1.32))


ROWS: dict[str, Measure] = {
    "olora-float32": _olora_(torch.float32),
    "olora-bfloat16": _olora_(torch.bfloat16),
    "loldu": _loldu(in_place=False),
    "loldu_": _loldu(in_place=True),
    "lamda": _lamda,
    "overhead": _step,
    "memory": _peak,
}


def _show(line: Line) -> str:
    goal = "" if line.goal is None else f", goal {line.goal}, {'reached' if line.is_reached else 'NOT reached'}"
    return (
        f"{line.row}: {line.what}: {line.ours:.4g} {line.unit}, {line.peer} {line.theirs:.4g}: {line.ratio:.3g}{goal}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the rows, print a line for each comparison and write ``bench-gpu.json``; return 1 if a result was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m lowrank_swift.benchmarks.gpu", description="Measure on a CUDA GPU."
    )
    parser.add_argument("--out", type=Path, help="folder of bench-gpu.json; nothing is written without")
    parser.add_argument("--rows", default=",".join(ROWS), help="names of rows, separated by commas")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it")
    parser.add_argument("--device", default="cuda", help="where the tensors are; the CPU tries the rows themselves")
    options = parser.parse_args(arguments)
    names = options.rows.split(",")
    if unknown := sorted(set(names) - set(ROWS)):
        parser.error(f"--rows: expected some of {', '.join(ROWS)}, got {', '.join(unknown)}")
    device = torch.device(options.device)
    gpu = Gpu(device, 5 if options.quick else 20, options.quick)
    lines, wrong = [], []
    for name in names:
        if not torch.cuda.is_available() and (device.type == "cuda" or name == "memory"):
            print(f"{name}: needs a CUDA device, and torch finds none", flush=True)
            continue
        try:
            for line in ROWS[name](gpu):
                lines.append(line)
                print(_show(line), flush=True)
        except WrongResult as error:
            wrong.append(str(error))
            print(f"{name}: WRONG: {error}", flush=True)
    if options.out is not None and lines and device.type == "cuda":
        record = {
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": sys.argv,
            "environment": {**environment(), "gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda},
            "wrong": wrong,
            "lines": [line.record() for line in lines],
        }
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "bench-gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
