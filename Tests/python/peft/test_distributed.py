# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Two CPU processes over gloo: DDP as `accelerate launch` makes it, and FSDP2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import lowrank_swift
import pytest
import torch
from distributed_worker import CASE, RANK, batch
from peft import PeftModel
from peft_support import close, every_config, output
from safetensors.torch import load_file
from torch import distributed

pytestmark = [
    pytest.mark.peft,
    pytest.mark.skipif(
        not (distributed.is_available() and distributed.is_gloo_available()), reason="torch has no gloo"
    ),
]

WORKER = Path(__file__).with_name("distributed_worker.py")


ACCELERATE = [
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--main_process_port",
]
TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"]


def launch(command: list[str], kind: str, folder: Path) -> Path:
    """Run the worker twice. "--multi_gpu" is accelerate's word for several processes; the worker asks for the CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(Path(lowrank_swift.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    result = subprocess.run(
        [sys.executable, "-m", *command, str(port), str(WORKER), kind, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ddp_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(ACCELERATE, "ddp", tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def fsdp_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(TORCHRUN, "fsdp", tmp_path_factory.mktemp("fsdp"))


@every_config
def test_ddp_gives_the_same_adapters_on_both_ranks(config, ddp_folder):
    (half, end), (other_half, other_end) = (
        [torch.load(ddp_folder / config.__name__ / f"{name}-{rank}.pt") for name in ("half", "end")] for rank in (0, 1)
    )
    moved = set()
    for state, other in ((half, other_half), (end, other_end)):
        assert state.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in state.items())
    for key, value in end.items():
        if not torch.equal(value, half[key]):
            moved.add(key.rpartition(".")[2])
    # LaMDA's up is wholly frozen after half of the steps.
    assert moved == {"LoLDUConfig": {"core"}, "LaMDAConfig": {"core"}, "OLoRAConfig": {"up", "down"}}[config.__name__]
    if config.__name__ == "LaMDAConfig":
        assert {int(value) for key, value in end.items() if key.endswith("frozen_columns")} == {RANK}


@every_config
def test_fsdp2_trains_and_saves(config, fsdp_folder):
    folder = fsdp_folder / config.__name__
    first, second = (torch.load(folder / f"logits-{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    loaded = PeftModel.from_pretrained(CASE.model(), folder / "adapter")
    tokens = {"input_ids": batch(0, 0)["input_ids"]}
    assert close(output(loaded, tokens), first)
    assert not close(output(CASE.model(), tokens), first)
    if config.__name__ == "LaMDAConfig":
        state = load_file(folder / "adapter/adapter_model.safetensors")
        assert {int(value) for key, value in state.items() if key.endswith("frozen_columns")} == {RANK}
