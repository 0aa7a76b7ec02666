# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What LaMDA costs before, during and after its freezing, beside PEFT's LoRA at the same rank; writes JSON.

Run as ``python python/benchmarks/lamda_freezing.py --out freezing.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import lowrank_swift.torch as lrt
import torch
import typer
from lowrank_swift.benchmarks.measure import environment, time_side_by_side, use_threads
from lowrank_swift.demo.metrics import bytes_kept
from lowrank_swift.demo.model import load_model, locate_model
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

FRACTION = 0.3
LORA = "LoRA (PEFT)"
LORA_SAME_DTYPE = "LoRA (PEFT), 16-bit"
# (rows, columns, how many): all linear layers of Llama-2-7B.
LLAMA_2_7B = [(4096, 4096, 4 * 32), (11008, 4096, 2 * 32), (4096, 11008, 32)]

Step = Callable[[], None]


class Contender:
    """A model with adapters, its optimizer, and a batch.

    Args:
        model: The adapted model.
        loss: Runs it.
        frozen: Share of the columns of ``up`` to freeze, None for LoRA.
        trains: Whether steps are made; else only what the forward keeps is of interest.
    """

    def __init__(  # noqa: D107
        self, model: nn.Module, loss: Callable[[nn.Module], Tensor], frozen: float | None, trains: bool
    ) -> None:
        self.model, self._loss, self._freeze = model, loss, None
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self._trained, lr=1e-4, weight_decay=0.0)
        if frozen is not None:
            # So many steps that the schedule stands where it should after a known number of its own.
            self._freeze = lrt.GradualFreeze(model, total_steps=100, fraction=1.0, optimizer=self.optimizer)
        if trains:
            self.step()
        for _ in range(0 if frozen is None else round(100 * frozen)):
            self._freeze.step()

    def loss(self) -> Tensor:
        """Return the loss on the batch."""
        return self._loss(self.model)

    def step(self) -> None:
        """One training step, the schedule's state left as it is."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def costs(self) -> dict[str, int]:
        """Return the bytes that are held for different purposes, and how many numbers train."""
        kept = bytes_kept(self.model, self.loss)
        state = [v for entry in self.optimizer.state.values() for v in entry.values() if isinstance(v, Tensor)]
        copies = [] if self._freeze is None else [columns.copy for columns in self._freeze._columns]
        return {
            "kept_for_backward": kept,
            "gradients": sum(p.nbytes for p in self._trained if p.requires_grad),
            "optimizer": sum(tensor.nbytes for tensor in state),
            "copies_of_frozen_columns": sum(copy.nbytes for copy in copies if copy is not None),
            "trained_numbers": sum(p.numel() for p in self._trained if p.requires_grad),
        }


def updates(shapes: Sequence[tuple[int, int, int]], rank: int, steps: int, fraction: float) -> dict[str, float]:
    """Return how many numbers are updated in a whole training, by LoRA and by LaMDA, from shapes (m, n, count)."""
    end = max(1, round(fraction * steps))
    # Before step t + 1 the first min(r, r t // F) columns are frozen.
    columns = sum(rank - min(rank, rank * t // end) for t in range(steps))
    lora = steps * rank * sum(count * (m + n) for m, n, count in shapes)
    lamda = sum(count * (steps * rank * rank + columns * m) for m, n, count in shapes)
    core_only = steps * rank * rank * sum(count for _, _, count in shapes)
    return {"lora": lora, "lamda": lamda, "lora_over_lamda": lora / lamda, "lora_over_core_only": lora / core_only}


def contenders(
    make: Callable[[], nn.Module], targets: list[str], rank: int, loss: Callable[[nn.Module], Tensor], base: str
) -> dict[str, Contender]:
    """Return LoRA and LaMDA before, during and after its freezing, each over a model of its own.

    Over a 16-bit model LoRA comes twice, with PEFT's default float32 adapters and with those of the model's dtype.
    Such a model makes no steps: on a CPU without 16-bit products their time says nothing.
    """
    result = {}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, lora_dropout=0.0)
    dtypes = {parameter.dtype for parameter in make().parameters()}
    trains = dtypes == {torch.float32}
    names = (LORA,) if trains else (LORA, LORA_SAME_DTYPE)
    for name in names:
        model = get_peft_model(make(), config, autocast_adapter_dtype=name == LORA)
        result[name] = Contender(model, loss, None, trains)
    for name, frozen in (("before", 0.0), ("during", 0.5), ("after", 1.0)):
        model = lrt.adapt(make(), lrt.LaMDA(rank), targets=targets, base=base, progress=False)
        result[f"LaMDA, {name}"] = Contender(model, loss, frozen, trains)
    return result


def minilm(dtype: torch.dtype) -> tuple[Callable[[], nn.Module], list[str]]:
    """Return what loads the demo's model, in training mode, and its linear layers."""
    source = locate_model(None)
    layers = list(load_model(source).layers)
    return lambda: load_model(source).encoder.to(dtype).train(), layers


def llama(dtype: torch.dtype) -> tuple[Callable[[], nn.Module], list[str]]:
    """Return what makes a model of Llama-2-7B's proportions, a quarter as wide and two blocks deep, and its layers."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=1000, hidden_size=1024, intermediate_size=2752, num_hidden_layers=2, num_attention_heads=8
    )

    def make() -> nn.Module:
        torch.manual_seed(0)
        return LlamaModel(config).to(dtype).train()

    return make, [name for name, module in make().named_modules() if isinstance(module, nn.Linear)]


MODELS = {
    "MiniLM float32": (minilm, torch.float32),
    "MiniLM bfloat16": (minilm, torch.bfloat16),
    "Llama-shaped bfloat16": (llama, torch.bfloat16),
}


def measure(
    name: str, rank: int, tokens: tuple[int, int], base: str, repetitions: int, seconds: float
) -> dict[str, Any]:
    """Return the costs of all contenders over one model."""
    load, dtype = MODELS[name]
    make, targets = load(dtype)
    ids = torch.randint(5, 1000, tokens, generator=torch.Generator().manual_seed(0))

    def loss(model: nn.Module) -> Tensor:
        return model(input_ids=ids).last_hidden_state.float().square().mean()

    entries = contenders(make, targets, rank, loss, base)
    costs = {key: entry.costs() for key, entry in entries.items()}
    steps = {key: entry.step for key, entry in entries.items()}
    timings = {}
    if repetitions > 0 and dtype is torch.float32:
        timings = time_side_by_side(steps, before=lambda: None, repetitions=repetitions, seconds_each=seconds)
    peak = max(cost["kept_for_backward"] for key, cost in costs.items() if key.startswith("LaMDA"))
    linear = dict(make().named_modules())
    shapes = [(linear[target].out_features, linear[target].in_features, 1) for target in targets]
    return {
        "model": name,
        "base": base,
        "rank": rank,
        "tokens": list(tokens),
        "layers": len(targets),
        "bytes": costs,
        "milliseconds": {key: timing.record() for key, timing in timings.items()},
        "kept_ratios": {key: cost["kept_for_backward"] / peak for key, cost in costs.items() if key.startswith("LoRA")},
        "updates": {
            "this model": updates(shapes, rank, 100, FRACTION),
            "Llama-2-7B": updates(LLAMA_2_7B, 32, 100, FRACTION),
        },
    }


def table(result: dict[str, Any]) -> Table:
    """Return the costs as a table."""
    title = "{model}, {layers} layers, rank {rank}, {tokens[0]} x {tokens[1]} tokens, base {base}".format(**result)
    megabytes = {
        "kept_for_backward": "kept",
        "gradients": "gradients",
        "optimizer": "optimizer",
        "copies_of_frozen_columns": "copies",
    }
    grid = Table(title=f"{title}; megabytes", box=None)
    for column in ("", "ms a step", *megabytes.values(), "trained"):
        grid.add_column(column, justify="right" if column else "left", no_wrap=True)
    for key, cost in result["bytes"].items():
        time = result["milliseconds"].get(key)
        step = "-" if time is None else f"{time['median']:.0f}"
        grid.add_row(
            key,
            step,
            *(f"{cost[name] / 1e6:.2f}" if cost[name] else "-" for name in megabytes),
            f"{cost['trained_numbers']:,}",
        )
    return grid


def main(
    models: Annotated[str, typer.Option(help=f"Comma-separated, among {', '.join(MODELS)}.")] = ",".join(MODELS),
    rank: Annotated[int, typer.Option(min=1, help="Rank of all adapters.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Texts in a batch.")] = 16,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a text.")] = 128,
    base: Annotated[str, typer.Option(help="Form of LaMDA's base.")] = "intact",
    repetitions: Annotated[int, typer.Option(min=0, help="Timed steps of each contender; 0 for bytes alone.")] = 10,
    seconds: Annotated[float, typer.Option(min=0, help="Time after which a slow contender is run no more.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Of torch and of lowrank_swift.")] = torch.get_num_threads(),
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure LaMDA before, during and after its freezing beside LoRA."""
    names = [name.strip() for name in models.split(",") if name.strip()]
    for name in names:
        if name not in MODELS:
            raise typer.BadParameter(f"expected names among {', '.join(MODELS)}, got {name!r}", param_hint="--models")
    use_threads(threads)
    console = Console()
    results = []
    for name in names:
        result = measure(name, rank, (batch, length), base, repetitions, seconds)
        results.append(result)
        console.print(table(result))
        for key, ratio in result["kept_ratios"].items():
            console.print(f"{key} keeps {ratio:.2f} times what LaMDA keeps at its peak")
        for where, count in result["updates"].items():
            console.print(
                f"{where}: LoRA updates {count['lora_over_lamda']:.1f} times as many numbers in 100 steps as LaMDA, "
                f"{count['lora_over_core_only']:.0f} times as many as core-only LaMDA"
            )
    record = {"environment": environment(), "command": sys.argv, "results": results}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(out)
        console.print(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
