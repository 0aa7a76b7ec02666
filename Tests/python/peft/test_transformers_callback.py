# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""LaMDA's freezing under the Trainer: its steps, accumulation, checkpoints, resumption and clipping."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lowrank_swift.peft import LaMDAConfig, LoLDUConfig
from lowrank_swift.torch._adapter import UpCoreAdapter
from lowrank_swift.transformers import GradualFreezeCallback
from peft import get_peft_model
from peft_support import MODELS
from transformers import Trainer, TrainerCallback, TrainingArguments

pytestmark = pytest.mark.peft

CASE = MODELS["llama"]
RANK = 4


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, 40, (7,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


class Watch(TrainerCallback):
    """Notes after every optimizer step how many columns are frozen, and the ups' values."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.ups: list[torch.Tensor] = []

    def on_step_end(self, args, state, control, **kwargs):
        adapter = next(adapters_of(kwargs["model"]))
        self.counts.append(int(adapter.frozen_columns))
        self.ups.append(adapter.up.detach().clone())


def adapters_of(model):
    return (module for module in model.modules() if isinstance(module, UpCoreAdapter))


def trainer(folder: Path, callbacks, *, config=LaMDAConfig, **options) -> Trainer:
    model = get_peft_model(CASE.model(), config(r=RANK, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    defaults = {
        "output_dir": str(folder),
        "max_steps": 10,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Trainer(model, TrainingArguments(**(defaults | options)), train_dataset=Rows(), callbacks=callbacks)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Trainer, Watch]:
    """One training of ten steps, with its checkpoints."""
    folder, watch = tmp_path_factory.mktemp("whole"), Watch()
    training = trainer(folder, [GradualFreezeCallback(0.8), watch])
    training.train()
    return folder, training, watch


def test_steps_are_optimizer_steps(whole):
    """F = 8 of 10 steps, not of 20 micro-batches."""
    _, training, watch = whole
    assert watch.counts == [min(RANK, RANK * step // 8) for step in range(1, 11)]
    assert training.state.global_step == 10


def test_frozen_columns_do_not_move_and_the_others_do(whole):
    _, _, watch = whole
    for before, after, count in zip(watch.ups, watch.ups[1:], watch.counts, strict=False):
        assert torch.equal(before[:, :count], after[:, :count])
        assert not (before[:, count:] == after[:, count:]).any()


def test_the_state_of_what_is_frozen_is_released(whole):
    _, training, _ = whole
    adapter = next(adapters_of(training.model))
    state = training.optimizer.state
    assert not adapter.up.requires_grad
    assert adapter.up not in state
    assert adapter.core in state


@pytest.mark.parametrize("step", (3, 9))
def test_a_resumed_training_is_the_same_training(whole, step, tmp_path):
    """From a checkpoint in the middle of the freezing, and from one after it."""
    folder, training, watch = whole
    shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    again = Watch()
    resumed = trainer(tmp_path, [GradualFreezeCallback(0.8), again])
    resumed.train(resume_from_checkpoint=True)
    assert again.counts == watch.counts[step:]
    expected = training.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.model.state_dict().items())


def test_a_longer_schedule_keeps_what_is_frozen(whole, tmp_path):
    folder, _, _ = whole
    shutil.copytree(folder / "checkpoint-6", tmp_path / "checkpoint-6")
    again = Watch()
    trainer(tmp_path, [GradualFreezeCallback(0.8), again], max_steps=15).train(resume_from_checkpoint=True)
    assert again.counts == [max(3, min(RANK, RANK * step // 12)) for step in range(7, 16)]


def test_fraction_0_trains_the_core_alone(tmp_path):
    watch = Watch()
    training = trainer(tmp_path, [GradualFreezeCallback(0), watch], max_steps=2)
    before = next(adapters_of(training.model)).up.detach().clone()
    training.train()
    assert watch.counts == [RANK, RANK]
    assert torch.equal(watch.ups[-1], before)


def test_without_the_callback_nothing_is_frozen(tmp_path):
    watch = Watch()
    trainer(tmp_path, [watch], max_steps=2).train()
    assert watch.counts == [0, 0]


def test_errors(tmp_path):
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"fraction: expected a number in \[0, 1\]"):
            GradualFreezeCallback(fraction)
    with pytest.raises(TypeError, match="fraction: expected a number, got None"):
        GradualFreezeCallback(None)
    with pytest.raises(ValueError, match="model: expected an adapter that trains up and core"):
        trainer(tmp_path, [GradualFreezeCallback()], config=LoLDUConfig).train()
