# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Fine-tune a small GPT-2 on the docstrings of packages that it was not trained on, byte by byte."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from lowrank_swift.demo.data import build_corpus, read_docstrings, standard_library
from lowrank_swift.peft import LaMDAConfig, LoLDUConfig, OLoRAConfig, export_lora
from lowrank_swift.transformers import GradualFreezeCallback
from peft import PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

CONFIGS = {"loldu": LoLDUConfig, "lamda": LaMDAConfig, "olora": OLoRAConfig}
BLOCK = 64
Rows = list[dict[str, torch.Tensor]]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=CONFIGS, default="loldu")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps")
    parser.add_argument("--save-steps", type=int, default=25, help="optimizer steps between checkpoints")
    parser.add_argument("--texts", type=int, default=300, help="at most, of each package")
    parser.add_argument("--pretrain-steps", type=int, default=200, help="of the base, where --out has none")
    parser.add_argument("--out", type=Path, default=Path("runs/causal-lm"))
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    return parser.parse_args()


def blocks_of(texts: list[str]) -> Rows:
    """Cut texts into blocks of bytes, each its own label."""
    data = torch.tensor(list("\n\n".join(texts).encode()))
    blocks = data[: len(data) // BLOCK * BLOCK].view(-1, BLOCK)
    return [{"input_ids": block, "labels": block} for block in blocks]


def settings(folder: Path, steps: int, learning_rate: float, save_steps: int) -> TrainingArguments:
    """Return what both trainings have in common."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=save_steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=learning_rate,
        logging_steps=20,
        report_to=[],
    )


def pretrained(folder: Path, data: Rows, steps: int) -> GPT2LMHeadModel:
    """Return the base model of a folder, which is made and trained there if there is none."""
    if not (folder / "config.json").exists():
        config = GPT2Config(
            vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=BLOCK, bos_token_id=0, eos_token_id=0
        )
        model = GPT2LMHeadModel(config)
        Trainer(model, settings(folder / "training", steps, 3e-3, steps), train_dataset=data).train()
        model.save_pretrained(folder)
    return GPT2LMHeadModel.from_pretrained(folder)


def main() -> None:
    """Train, evaluate, save."""
    arguments = parse_arguments()
    set_seed(0)
    corpus = build_corpus(read_docstrings(standard_library()), packages=10, per_package=arguments.texts)
    known, new = (
        [d.text for d in corpus.docstrings if (d.package in corpus.packages[:5]) == is_known]
        for is_known in (True, False)
    )
    base = pretrained(arguments.out / "base", blocks_of(known), arguments.pretrain_steps)
    rows = blocks_of(new)
    train, test = [row for i, row in enumerate(rows) if i % 10], rows[::10]

    # GPT-2's layers are Conv1D; the adapters know.
    config = CONFIGS[arguments.method](
        r=arguments.rank, target_modules=["c_attn", "c_proj", "c_fc"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    model.print_trainable_parameters()
    trainer = Trainer(
        model,
        settings(arguments.out, arguments.steps, arguments.learning_rate, arguments.save_steps),
        train_dataset=train,
        eval_dataset=test,
        callbacks=[GradualFreezeCallback(0.3)] if arguments.method == "lamda" else [],
    )
    with model.disable_adapter():
        before = trainer.evaluate()["eval_loss"]
    trainer.train(resume_from_checkpoint=arguments.resume or None)
    after = trainer.evaluate()["eval_loss"]
    assert isinstance(model, PeftModel)
    model.save_pretrained(arguments.out / "adapter")
    export_lora(model, arguments.out / "lora")
    print(json.dumps({"method": arguments.method, "rank": arguments.rank, "loss_before": before, "loss_after": after}))


if __name__ == "__main__":
    main()
