# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""One of two processes that train together; test_distributed.py starts them and reads what they leave.

Its arguments are "ddp" or "fsdp" and a folder, in which every configuration gets one of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lowrank_swift.peft
import torch
import torch.distributed as dist
from accelerate import Accelerator
from lowrank_swift.torch import GradualFreeze
from peft import get_peft_model
from peft_support import MODELS, trained
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

CASE = MODELS["llama"]
STEPS, FRACTION, RANK = 6, 0.5, 4


def make_model(config_name: str) -> nn.Module:
    config = getattr(lowrank_swift.peft, config_name)
    return get_peft_model(CASE.model(), config(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))


def make_freeze(config_name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> GradualFreeze | None:
    return GradualFreeze(model, STEPS, FRACTION, optimizer) if config_name == "LaMDAConfig" else None


def batch(step: int, rank: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(10 * step + rank))
    return {"input_ids": ids, "labels": ids}


def ddp(config_name: str, folder: Path) -> None:
    """Each process saves its own adapter, after the first half and at the end."""
    accelerator = Accelerator(cpu=True)
    peft_model = make_model(config_name)
    optimizer = torch.optim.AdamW(trained(peft_model), lr=1e-2, weight_decay=0.1)
    model, optimizer = accelerator.prepare(peft_model, optimizer)
    assert isinstance(model, nn.parallel.DistributedDataParallel), type(model)
    freeze = make_freeze(config_name, peft_model, optimizer)
    for step in range(STEPS):
        if step == STEPS // 2:
            torch.save(peft_model.state_dict(), folder / f"half-{accelerator.process_index}.pt")
        accelerator.backward(model(**batch(step, accelerator.process_index)).loss)
        optimizer.step()
        if freeze is not None:
            freeze.step()
        optimizer.zero_grad()
    torch.save(peft_model.state_dict(), folder / f"end-{accelerator.process_index}.pt")


def fsdp(config_name: str, folder: Path) -> None:
    """The sharded model is trained, saved by PEFT from its gathered tensors, and its outputs beside it."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = make_model(config_name)
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2, weight_decay=0.1)
    freeze = make_freeze(config_name, model, optimizer)
    for step in range(STEPS):
        model(**batch(step, rank)).loss.backward()
        optimizer.step()
        if freeze is not None:
            freeze.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=batch(0, 0)["input_ids"]).logits
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(folder / "adapter", state_dict=state)
    torch.save(logits, folder / f"logits-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in ("LoLDUConfig", "LaMDAConfig", "OLoRAConfig"):
        own = Path(sys.argv[2]) / name
        own.mkdir(exist_ok=True)
        {"ddp": ddp, "fsdp": fsdp}[sys.argv[1]](name, own)
    # A process that leaves while another still communicates may abort.
    dist.barrier()
    dist.destroy_process_group()
