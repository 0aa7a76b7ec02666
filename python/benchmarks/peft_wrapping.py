# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What PEFT's get_peft_model and a training step cost with this package and without it. Writes JSON.

Three comparisons, each in turn within one run: OLoRA under install() beside PEFT's own; LoLDUConfig's wrapping beside
plain LoRA's; and a step and the bytes kept for the backward of every method beside LoRA's.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from lowrank_swift.benchmarks.measure import environment, time_side_by_side, use_threads
from lowrank_swift.peft import LaMDAConfig, LoLDUConfig, OLoRAConfig, fast_init
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

# Of about 1.1e9 parameters with 22 layers, as TinyLlama has them, and one that fits a laptop's patience.
MODELS = {
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4},
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 2},
}
LAYERS = {"1b": 22, "small": 4}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VOCABULARY = {"1b": 32000, "small": 1000}


METHODS: dict[str, Callable[..., Any]] = {
    "LoRA (PEFT)": LoraConfig,
    "LoRA (PEFT), of the base's dtype": LoraConfig,
    "LoLDU": LoLDUConfig,
    "LaMDA": LaMDAConfig,
    "LaMDA, up frozen": LaMDAConfig,
    "OLoRA, intact": OLoRAConfig,
}


def main(
    model: Annotated[str, typer.Option(help=f"Shape of the model: {', '.join(MODELS)}.")] = "1b",
    rank: Annotated[int, typer.Option(min=1, help="Rank of all adapters.")] = 32,
    whole: Annotated[bool, typer.Option(help="Let PEFT's OLoRA wrap the whole model, not one matrix a shape.")] = False,
    step_layers: Annotated[int, typer.Option(min=1, help="Layers of the model that the training step has.")] = 2,
    step_dtype: Annotated[
        str, typer.Option(help="Of the training step; bfloat16 is slow on processors without products of it.")
    ] = "float32",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a training step.")] = 512,
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions of each contender.")] = 5,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of torch and of lowrank_swift.")
    ] = torch.get_num_threads(),
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time wrapping and training steps."""
    console = Console()
    use_threads(threads)
    facts = environment()
    if facts["build"] != "release":
        raise SystemExit("lowrank_swift was built for debugging: its times mean nothing")
    base = make_model(model, LAYERS[model], torch.bfloat16, VOCABULARY[model])
    # Few words, so that the head, which no method touches, does not hide what differs.
    step_base = make_model(model, step_layers, DTYPES[step_dtype], 1000)
    record = {
        "environment": facts,
        "command": sys.argv,
        "model": {"shape": model, "parameters": sum(p.numel() for p in base.parameters()), "dtype": "bfloat16"},
        "rank": rank,
        "olora": olora(base, rank, whole),
        "wrapping": wrapping(base, rank, repetitions),
        "step": {"dtype": step_dtype, **steps(step_base, rank, tokens, repetitions)},
        "kept_by_layer": kept_by_layer(step_base, rank, tokens),
    }
    print_tables(console, record)
    if out is not None:
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(out)
        console.print(f"written to {out}")


def make_model(name: str, layers: int, dtype: torch.dtype, vocabulary: int) -> nn.Module:
    """Return a randomly initialised Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=layers, **MODELS[name])
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def seconds(call: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def lora(rank: int, **options: Any) -> LoraConfig:
    """Return PEFT's configuration for all linear layers."""
    return LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", **options)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the base model without adapters, its weights as they are."""
    return model.unload()


def olora(base: nn.Module, rank: int, whole: bool) -> dict[str, Any]:
    """Time get_peft_model with init_lora_weights="olora", and check that both compute the same residuals."""
    config = lora(rank, init_lora_weights="olora")
    shapes = Counter(
        tuple(m.weight.shape) for n, m in base.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"
    )
    plain = seconds(lambda: unwrap(get_peft_model(base, lora(rank))))
    result: dict[str, Any] = {"layers": sum(shapes.values()), "plain_lora_seconds": plain}
    single = {shape: _single(shape) for shape in shapes}
    theirs = {}
    for shape, layer in single.items():
        wrapped = copy.deepcopy(layer)
        theirs[shape] = seconds(lambda wrapped=wrapped: get_peft_model(wrapped, lora(rank, init_lora_weights="olora")))
        with fast_init():
            ours = get_peft_model(copy.deepcopy(layer), lora(rank, init_lora_weights="olora"))
        expected = wrapped[0].base_layer.weight.float()
        error = (ours.base_model.model[0].base_layer.weight.float() - expected).abs().max()
        if not error <= torch.finfo(torch.bfloat16).eps * expected.abs().max():
            raise SystemExit(f"the residuals of {shape} differ by {error}: the times mean nothing")
    result["peft_seconds_of_one"] = {f"{m}x{n}": theirs[m, n] for m, n in shapes}
    result["peft_seconds_extrapolated"] = plain + sum(theirs[shape] * count for shape, count in shapes.items())
    model = copy.deepcopy(base) if whole else base
    with fast_init():
        result["fast_init_seconds"] = seconds(lambda: get_peft_model(model, config))
    if whole:
        fresh = copy.deepcopy(base)
        result["peft_seconds"] = seconds(lambda: get_peft_model(fresh, lora(rank, init_lora_weights="olora")))
    else:
        unwrap_in_place(base)
    peft_seconds = result.get("peft_seconds", result["peft_seconds_extrapolated"])
    result["ratio"] = peft_seconds / result["fast_init_seconds"]
    return result


def unwrap_in_place(model: nn.Module) -> None:
    """Put the base layers of a wrapped model back; their values have changed, which later times don't depend on."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "base_layer"):
                setattr(module, name, child.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config


def _single(shape: tuple[int, int]) -> nn.Module:
    torch.manual_seed(1)
    layer = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16))
    nn.init.normal_(layer[0].weight, std=0.02)
    return layer


def wrapping(base: nn.Module, rank: int, repetitions: int) -> dict[str, Any]:
    """Time get_peft_model with this package's configurations beside plain LoRA."""
    configs = {
        "LoRA (PEFT)": lambda: lora(rank),
        "LoLDU": lambda: LoLDUConfig(r=rank, target_modules="all-linear"),
        "OLoRA, intact": lambda: OLoRAConfig(r=rank, target_modules="all-linear"),
    }
    contenders = {name: (lambda make=make: get_peft_model(base, make())) for name, make in configs.items()}
    timings = time_side_by_side(
        contenders, before=lambda: unwrap_in_place(base), repetitions=repetitions, seconds_each=60
    )
    unwrap_in_place(base)
    return {name: timing.record() for name, timing in timings.items()}


def steps(base: nn.Module, rank: int, tokens: int, repetitions: int) -> dict[str, Any]:
    """Time forward and backward, and count the bytes that the forward keeps."""
    ids = torch.randint(0, base.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    models = {name: adapted(base, name, rank) for name in METHODS}
    result = {
        name: {"kept_bytes": kept_bytes(lambda m=model: m(input_ids=ids, labels=ids).loss, model), **trained(model)}
        for name, model in models.items()
    }
    timings = time_side_by_side(
        {name: (lambda model=model: step(model, ids)) for name, model in models.items()},
        before=lambda: None,
        repetitions=repetitions,
        seconds_each=60,
    )
    for name, timing in timings.items():
        result[name]["milliseconds"] = timing.record()
    return {"tokens": tokens, "methods": result}


def step(model: nn.Module, ids: torch.Tensor) -> None:
    """Run forward and backward."""
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad()


def trained(model: nn.Module) -> dict[str, int]:
    """Return how many numbers train."""
    return {"trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def adapted(base: nn.Module, name: str, rank: int, targets: Any = "all-linear") -> nn.Module:
    """Return a copy of a model with adapters of a method."""
    model = get_peft_model(
        copy.deepcopy(base),
        METHODS[name](r=rank, lora_alpha=rank, target_modules=targets),
        autocast_adapter_dtype="of the base's dtype" not in name,
    )
    if "up frozen" in name:
        for key, parameter in model.named_parameters():
            if key.endswith(".up"):
                parameter.requires_grad_(False)
    return model.train()


def kept_by_layer(base: nn.Module, rank: int, tokens: int) -> dict[str, dict[str, int]]:
    """Count the bytes that one layer of each shape keeps, with the input in its dtype."""
    result: dict[str, dict[str, int]] = {}
    for name, layer in base.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            key = "{}x{}".format(*layer.weight.shape)
            if key not in result:
                x = torch.randn(tokens, layer.in_features, dtype=layer.weight.dtype, requires_grad=True)
                models = {method: adapted(nn.Sequential(layer), method, rank, ["0"]) for method in METHODS}
                result[key] = {method: kept_bytes(lambda m=model, x=x: m(x), model) for method, model in models.items()}
    return result


def kept_bytes(forward: Callable[[], torch.Tensor], model: nn.Module) -> int:
    """Return the unique storages that a forward saves for the backward, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive.append(forward())
    return sum(kept.values())


def print_tables(console: Console, record: dict[str, Any]) -> None:
    """Print what the JSON holds."""
    ours = record["olora"]
    peft_seconds = ours.get("peft_seconds", ours["peft_seconds_extrapolated"])
    how = "measured" if "peft_seconds" in ours else "extrapolated from one matrix of each shape"
    console.print(
        f"OLoRA on {ours['layers']} layers: {ours['fast_init_seconds']:.2f} s under install(), {peft_seconds:.1f} s by "
        f"PEFT ({how}), {ours['ratio']:.0f} times; plain LoRA {ours['plain_lora_seconds']:.2f} s"
    )
    table = Table(title="Wrapping all linear layers")
    for column in ("method", "ms", "over LoRA"):
        table.add_column(column, justify="left" if column == "method" else "right")
    lora_ms = record["wrapping"]["LoRA (PEFT)"]["median"]
    for name, values in record["wrapping"].items():
        table.add_row(name, f"{values['median']:.0f}", f"{values['median'] - lora_ms:+.0f} ms")
    console.print(table)
    table = Table(title=f"A step of {record['step']['tokens']} tokens in {record['step']['dtype']}")
    for column in ("method", "trained", "ms", "times LoRA's", "kept MB"):
        table.add_column(column, justify="left" if column == "method" else "right")
    methods = record["step"]["methods"]
    lora_ms = methods["LoRA (PEFT)"]["milliseconds"]["median"]
    for name, values in methods.items():
        milliseconds = values["milliseconds"]["median"]
        table.add_row(
            name,
            f"{values['trained']:,}",
            f"{milliseconds:.0f}",
            f"{milliseconds / lora_ms:.2f}",
            f"{values['kept_bytes'] / 1e6:.1f}",
        )
    console.print(table)
    table = Table(title="MB that one layer keeps for the backward")
    table.add_column("method")
    for shape in record["kept_by_layer"]:
        table.add_column(shape, justify="right")
    for name in METHODS:
        table.add_row(name, *(f"{kept[name] / 1e6:.2f}" for kept in record["kept_by_layer"].values()))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
