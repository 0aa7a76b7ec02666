# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""PEFT models on a CUDA device, with transformers, accelerate and bitsandbytes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_support import DEVICE, assert_close, cuda_only
from torch import Tensor, nn

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from lowrank_swift.peft import LaMDAConfig, LoLDUConfig, OLoRAConfig, export_lora, fast_init  # noqa: E402
from lowrank_swift.torch import GradualFreeze  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.peft]

every_config = pytest.mark.parametrize("config", [LoLDUConfig, LaMDAConfig, OLoRAConfig])


def llama(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).to(dtype)


def with_adapter(config: Any, model: nn.Module | None = None, **options: Any) -> Any:
    return peft.get_peft_model(
        llama().to(DEVICE) if model is None else model, config(r=4, target_modules="all-linear", **options)
    )


def batch(device: torch.device | str) -> dict[str, Tensor]:
    ids = torch.randint(64, (3, 11), generator=torch.Generator().manual_seed(1)).to(device)
    return {"input_ids": ids, "labels": ids}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(**batch(next(model.parameters()).device)).logits


def train(model: Any, steps: int = 3) -> list[Tensor]:
    """Losses of plain gradient descent, which doesn't enlarge small differences."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(steps):
        loss = model(**batch(next(model.parameters()).device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


@every_config
def test_training(config: Any) -> None:
    host = with_adapter(config, llama())
    model = with_adapter(config)
    assert {value.device.type for value in model.state_dict().values()} == {DEVICE.type}
    for got, expected in zip(train(model), train(host), strict=True):
        assert_close(got, expected, limit=1000)


@every_config
def test_files_and_merging(config: Any, tmp_path: Path) -> None:
    model = with_adapter(config)
    train(model)
    expected = logits(model).cpu()
    model.save_pretrained(tmp_path / "own")
    export_lora(model, tmp_path / "lora")
    for folder in ("own", "lora"):
        for memory in (False, True):
            loaded = peft.PeftModel.from_pretrained(llama().to(DEVICE), tmp_path / folder, low_cpu_mem_usage=memory)
            assert_close(logits(loaded), expected, limit=1000)
    model.merge_adapter()
    assert_close(logits(model), expected, limit=1000)
    model.unmerge_adapter()
    assert torch.equal(logits(model).cpu(), expected)
    with model.disable_adapter():
        assert_close(logits(model), logits(llama()), limit=1000)
    assert_close(logits(model.merge_and_unload()), expected, limit=1000)


@every_config
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_and_16_bits(config: Any, reentrant: bool) -> None:
    model = with_adapter(config, llama(torch.bfloat16).to(DEVICE), lora_dropout=0.1)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    losses = train(model.train(), 6)
    assert losses[-1] < losses[0]


@every_config
def test_trainer(config: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from lowrank_swift.transformers import GradualFreezeCallback

    model = with_adapter(config)
    row = torch.randint(64, (11,), generator=torch.Generator().manual_seed(2))
    dataset = [{"input_ids": row, "labels": row}] * 32
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        report_to=[],
        disable_tqdm=True,
        use_cpu=DEVICE.type == "cpu",
        bf16=True,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
    )
    callbacks = [GradualFreezeCallback(fraction=0.5)] if config is LaMDAConfig else []
    trainer = transformers.Trainer(model, settings, train_dataset=dataset, callbacks=callbacks)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    if config is LaMDAConfig:
        frozen = [value for name, value in model.named_buffers() if name.endswith("frozen_columns")]
        assert frozen and all(int(value) == 4 for value in frozen)


@pytest.mark.parametrize("how", ["olora", "pissa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fast_initialization(how: str, dtype: torch.dtype) -> None:
    """What PEFT itself makes on the CPU."""
    config = peft.LoraConfig(r=4, target_modules=["down_proj"], init_lora_weights=how)
    host = peft.get_peft_model(llama(dtype), copy.deepcopy(config))
    with fast_init():
        model = peft.get_peft_model(llama(dtype).to(DEVICE), config)
    for layer in (0, 1):
        got, expected = (each.base_model.model.model.layers[layer].mlp.down_proj for each in (model, host))
        product, wanted = (
            each.lora_B["default"].weight.detach() @ each.lora_A["default"].weight.detach() for each in (got, expected)
        )
        assert_close(product, wanted, limit=1000)
        assert_close(got.base_layer.weight.detach(), expected.base_layer.weight.detach(), limit=1000)


@cuda_only
@every_config
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_quantized_bases(config: Any, kind: str, tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def quantized() -> nn.Module:
        torch.manual_seed(0)
        plain = nn.Linear(64, 96)
        if kind == "4bit":
            layer = bitsandbytes.nn.Linear4bit(64, 96, quant_type="nf4", compute_dtype=torch.bfloat16)
        else:
            layer = bitsandbytes.nn.Linear8bitLt(64, 96, has_fp16_weights=False)
        layer.load_state_dict(plain.state_dict())
        return nn.Sequential(layer.to(DEVICE)).eval()

    x = torch.randn(33, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.bfloat16)

    def output(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(x)

    expected = output(quantized())
    model = peft.get_peft_model(quantized(), config(r=4, target_modules=["0"]))
    assert_close(output(model), expected.cpu())
    freeze = GradualFreeze(model, total_steps=4, fraction=0.5) if config is LaMDAConfig else None
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(4):
        model(x).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if freeze is not None:
            freeze.step()
    now = output(model)
    assert not torch.equal(now, expected)
    with model.disable_adapter():
        assert torch.equal(output(model), expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(output(peft.PeftModel.from_pretrained(quantized(), tmp_path)), now)
    with pytest.warns(UserWarning, match="quantized again"):
        model.merge_adapter()
    assert output(model).isfinite().all()
    model.unmerge_adapter()
    assert torch.equal(output(model), now)
