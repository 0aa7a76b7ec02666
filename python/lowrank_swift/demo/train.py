# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The training loop that every method runs: the same head, the same batches, the same schedule."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from lowrank_swift.demo.methods import Method

__all__ = [
    "HEAD_LEARNING_RATE",
    "Batch",
    "Classifier",
    "Curve",
    "batch_indices",
    "collate",
    "count_correct",
    "mean_loss",
    "train",
]

HEAD_LEARNING_RATE = 2e-2
_WARM_UP = 0.1  # share of the steps in which the learning rate rises; it falls linearly to zero afterwards
_POOLED_BATCHES = 8  # batches are cut from so many batches' worth of texts sorted by length, which saves padding
_PROBES = 16  # times at which a run's loss on the same training texts is measured


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids and mask, both `(batch, tokens)`, and the labels `(batch,)`, all int64."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


@dataclass(slots=True)
class Curve:
    """How a training went.

    Args:
        losses: Of every step's batch, before the step's update.
        seconds: Wall time of every step.
        updates: Numbers of the encoder with a gradient other than zero, summed over the steps.
        probe_steps: After how many steps the loss on the probe was measured: 0, then at even distances, then the last.
        probe_losses: The loss on the probe then.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    updates: int = 0
    probe_steps: list[int] = field(default_factory=list)
    probe_losses: list[float] = field(default_factory=list)


class Classifier(nn.Module):
    """Mean pooling over an encoder's last hidden states, then a linear head.

    Args:
        encoder: Returns `last_hidden_state` of shape `(batch, tokens, width)`.
        width: Of the hidden states.
        classes: Number of labels.
        seed: Of the head's initial weights.
    """

    def __init__(self, encoder: nn.Module, *, width: int, classes: int, seed: int) -> None:  # noqa: D107
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)
        with torch.no_grad():
            self.head.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
            self.head.bias.zero_()

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of shape `(batch, classes)`."""
        hidden = self.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        mask = batch.attention_mask.unsqueeze(-1)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        logits: torch.Tensor = self.head(pooled)
        return logits

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy of a batch."""
        return functional.cross_entropy(self(batch), batch.labels)


def batch_indices(lengths: Sequence[int], *, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Choose the texts of each step: shuffled every epoch, texts of similar length together, whole batches only.

    Args:
        lengths: Tokens of each training text; at least `batch_size` of them.
        batch_size: Texts in a batch.
        steps: Number of batches.
        seed: Of the order.
    """
    rng = random.Random(seed)
    batches: list[list[int]] = []
    while len(batches) < steps:
        order = rng.sample(range(len(lengths)), len(lengths))
        epoch = []
        for start in range(0, len(order), batch_size * _POOLED_BATCHES):
            pool = sorted(order[start : start + batch_size * _POOLED_BATCHES], key=lengths.__getitem__)
            epoch += [pool[i : i + batch_size] for i in range(0, len(pool) - batch_size + 1, batch_size)]
        rng.shuffle(epoch)
        batches += epoch
    return batches[:steps]


def collate(texts: Sequence[Sequence[int]], labels: Sequence[int], *, pad: int) -> Batch:
    """Pad token ids on the right to the longest text of the batch."""
    width = max(map(len, texts))
    input_ids = torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids in texts])
    attention_mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in texts])
    return Batch(input_ids, attention_mask, torch.tensor(labels))


def train(
    classifier: Classifier,
    method: Method,
    batches: Sequence[Batch],
    probe: Sequence[Batch],
    on_step: Callable[[float], None],
) -> Curve:
    """Train head and encoder with AdamW, one step a batch.

    Args:
        classifier: Its encoder as `method.prepare` left it.
        method: Gives the encoder's learning rate and what to do after each step.
        batches: One for each step.
        probe: Training texts, the same at all times, on which the loss is followed without the noise of the batches.
        on_step: Called with each step's loss.
    """
    groups = [{"params": list(classifier.head.parameters()), "lr": HEAD_LEARNING_RATE}]
    trainable = [p for p in classifier.encoder.parameters() if p.requires_grad]
    if trainable:
        groups.append({"params": trainable, "lr": method.learning_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    steps = len(batches)
    warm_up = max(1, round(_WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))
    )
    after_step = method.schedule(classifier.encoder, steps, optimizer) if method.schedule else lambda: None
    curve = Curve(probe_steps=[0], probe_losses=[mean_loss(classifier, probe)])
    for step, batch in enumerate(batches, start=1):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = classifier.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in trainable if p.grad is not None]
        optimizer.step()
        after_step()
        schedule.step()
        curve.losses.append(loss.item())
        curve.seconds.append(time.perf_counter() - start)
        curve.updates += sum(int(gradient.count_nonzero()) for gradient in gradients)
        if step % max(1, steps // _PROBES) == 0 or step == steps:
            curve.probe_steps.append(step)
            curve.probe_losses.append(mean_loss(classifier, probe))
        on_step(curve.losses[-1])
    return curve


@torch.no_grad()
def mean_loss(classifier: Classifier, batches: Sequence[Batch]) -> float:
    """Mean cross-entropy over the texts of all batches."""
    texts = sum(len(batch.labels) for batch in batches)
    return sum(classifier.loss(batch).item() * len(batch.labels) for batch in batches) / texts


@torch.no_grad()
def count_correct(classifier: Classifier, batches: Sequence[Batch]) -> int:
    """Number of texts whose largest logit is that of their label."""
    return sum(int((classifier(batch).argmax(1) == batch.labels).sum()) for batch in batches)
