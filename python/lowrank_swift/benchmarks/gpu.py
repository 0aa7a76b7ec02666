# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""`python -m lowrank_swift.benchmarks.gpu`: CUDA tensors beside torch's and PEFT's ways, with results checked first.

Times are those of the device between two events around a call, with its cache cleared before; the median of all rounds
counts. What one row finds is written before the next begins, and a row that fails keeps no other from running.
Without a GPU every row says that it needs one, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowrank_swift as lrs
from lowrank_swift import Factors
from lowrank_swift.torch import GradualFreeze, LaMDA, LoLDU, OLoRA, adapt

from . import peers
from .adapters import BARE, PEFT, adapted, frozen_linear, layer_errors
from .device import FLOOR, Gpu
from .measure import Run, Timing, environment
from .networks import llama
from .table import OURS, Goal, Line, WrongResult, check

__all__ = ["main"]

PEFT_16 = "PEFT LoRA, bfloat16"
LLAMA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EPS = torch.finfo(torch.float32).eps


Measure = Callable[[Gpu], Iterator[Line]]


def _check(what: str, error: float, limit: float) -> float:
    if not error <= limit:
        raise WrongResult(f"{what}: the error is {error:.3g}, {limit:.3g} is allowed")
    return error / limit


def _residual_error(weight: Tensor, changed: Tensor, factors: Factors) -> float:
    """How far residual and adapter are from the weight, relative to it."""
    sum_ = changed.double() + factors.delta().double()
    return float((sum_ - weight.double()).norm() / weight.double().norm())


def _panel_error(weight: Tensor, factors: Factors) -> float:
    """How far the product is from the weight in the first columns, where it is exact but for rounding."""
    rank = factors.up.shape[1]
    up, panel = factors.up.double(), weight[:, :rank].double()
    up = up if factors.core is None else up * factors.core.double()
    return float((up @ factors.down[:, :rank].double() - panel).norm() / panel.norm())


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
        _check(f"{what}, panel", _panel_error(weight, factors), 100 * EPS)
        identity = torch.eye(rank, dtype=torch.float64, device=gpu.device)
        _check(f"{what}, Q", float((factors.up.double().mT @ factors.up.double() - identity).norm()), 100 * EPS)
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
        error = _check(what, _residual_error(weight, work, factors), 100 * EPS)
        _check(f"{what}, panel", _panel_error(weight, factors), 1000 * EPS)
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
        left, right, values = u.double(), vh.double().mT, s.double()
        wide = weight.double()
        residuals = (wide @ right - left * values, wide.mT @ left - right * values)
        return max(float(each.norm(dim=0).max() / values[0]) for each in residuals)

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


def _share(own: float, theirs: float) -> float:
    """Return the ratio of two differences of times, which reaches no goal where one is lost in the noise."""
    return own / theirs if min(own, theirs) > 0 else math.nan


def _step(gpu: Gpu) -> Iterator[Line]:
    tokens, side, rank, dtype = gpu.side(4096), gpu.side(4096), 32, torch.bfloat16
    weight, x, grad = gpu.matrix(side, side, dtype), gpu.matrix(tokens, side, dtype), gpu.matrix(tokens, side, dtype)
    x.requires_grad_()
    what = f"T={tokens} {side}x{side} r={rank} {dtype}"
    layers = {
        BARE: nn.Sequential(frozen_linear(weight)),
        PEFT: peers.peft_lora(frozen_linear(weight), rank).to(gpu.device),
        PEFT_16: peers.peft_model(nn.Sequential(frozen_linear(weight)), rank, ["0"], same_dtype=True).to(gpu.device),
    }
    # Passes over x, or what is as large: x, then y read and written; g, then the gradient of x read and written, and x
    # again where the down-projection trains. All else is small.
    passes, errors = {}, {}
    for method, base, count in ((LoLDU, "intact", 6), (LaMDA, "intact", 6), (OLoRA, "residual", 7)):
        name = f"{method.__name__} {base}"
        layers[name], passes[name] = adapted(weight, method, rank, base), count
        found = layer_errors(layers[name], weight, x, grad)
        errors[name] = check(what, {f"{OURS}, {name}, {part}": error for part, error in found.items()})

    def step(model: nn.Module) -> Run:
        leaves = [x, *(parameter for parameter in model.parameters() if parameter.requires_grad)]

        def run() -> None:
            model(x).backward(grad)
            for leaf in leaves:
                leaf.grad = None

        return run

    contenders = {name: step(model) for name, model in layers.items()}
    timings = gpu.time(contenders, calls=1 if gpu.is_quick else 10)
    bare = timings[BARE]
    detail = {key: timing.record() for key, timing in timings.items()}
    goal, near = Goal(0.4, at_most=True), Goal(1.3, at_most=True)
    for name, count in passes.items():
        own, floor = timings[name].excess_over(bare), gpu.floor(count, x.detach())
        row, error = f"overhead, {name}", errors[name]
        for peer in (PEFT, PEFT_16):
            theirs = timings[peer].excess_over(bare)
            yield Line(row, what, own, "ms", floor, peer, theirs, _share(own, theirs), goal, error, detail)
        yield Line(row, what, own, "ms", floor, FLOOR, floor, _share(own, floor), near, error, detail)


def _peak(gpu: Gpu) -> Iterator[Line]:
    layers, width = (24, 2048) if not gpu.is_quick else (2, 128)
    sizes = {"width": width, "inner": 11 * width // 4, "layers": layers, "heads": width // 64, "key_heads": width // 64}
    ids = torch.randint(1000, (4, 1024 if not gpu.is_quick else 32), device=gpu.device)
    what = f"{layers} layers, width {width}, {ids.numel()} tokens, r=32 bfloat16"

    def training(change: Callable[[nn.Module], nn.Module]) -> Callable[[], Run]:
        def prepare() -> Run:
            with gpu.device:  # Random weights are made faster there.
                model = llama(**sizes, vocabulary=1000, dtype=torch.bfloat16)
            model = change(model.to(gpu.device)).to(gpu.device).train()
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

            def step() -> None:
                loss = model(input_ids=ids, labels=ids).loss
                if not loss.isfinite():
                    raise WrongResult(f"{what}: the loss is {float(loss)}")
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            return step

        return prepare

    def ours(method: Any) -> Callable[[nn.Module], nn.Module]:
        def change(model: nn.Module) -> nn.Module:
            adapt(model, method(32), targets=LLAMA_LAYERS, base="intact", progress=False)
            if method is LaMDA:
                GradualFreeze(model, total_steps=1, fraction=0)
            return model

        return change

    theirs = {
        PEFT: gpu.peak_bytes(training(lambda model: peers.peft_model(model, 32, LLAMA_LAYERS))),
        PEFT_16: gpu.peak_bytes(training(lambda model: peers.peft_model(model, 32, LLAMA_LAYERS, same_dtype=True))),
    }
    for method in (LoLDU, LaMDA):
        own, row = gpu.peak_bytes(training(ours(method))), f"peak memory, {method.__name__}"
        for peer, peak in theirs.items():
            yield Line(row, what, own, "bytes", None, peer, peak, peak / max(own, 1), Goal(1.32))


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


def _environment(gpu: Gpu) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(gpu.device)
    return {
        **environment(),
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "copy_gigabytes_per_second": gpu.bandwidth(),
    }


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench-gpu.json").write_text(json.dumps(record, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the rows, print a line for each comparison and write ``bench-gpu.json``; return 1 if a row failed."""
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
    if device.type == "cuda" and not torch.cuda.is_available():
        for name in names:
            print(f"{name}: needs a CUDA device, and torch finds none", flush=True)
        return 0
    gpu = Gpu(device, 5 if options.quick else 20, options.quick)
    lines: list[Line] = []
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}
    record: dict[str, Any] = {"command": sys.argv}
    if device.type == "cuda":
        record["environment"] = _environment(gpu)
    for place, name in enumerate(names, start=1):
        print(f"[{place}/{len(names)}] {name}", flush=True)
        begin = time.perf_counter()
        try:
            for line in ROWS[name](gpu):
                lines.append(line)
                print(_show(line), flush=True)
        except WrongResult as error:
            failed[name] = f"WRONG: {error}"
        except Exception as error:  # The rows after it may tell more than none.
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {error}"
        seconds[name] = time.perf_counter() - begin
        if name in failed:
            print(f"{name}: {failed[name]}", flush=True)
        if options.out is not None and device.type == "cuda":
            record |= {"when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "failed": failed}
            record |= {"seconds": seconds, "lines": [each.record() for each in lines]}
            _write(options.out, record)
    print(f"{sum(seconds.values()):.0f} seconds; {len(failed)} of {len(names)} rows failed", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
