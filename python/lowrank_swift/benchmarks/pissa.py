# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Rows: PiSSA beside PEFT's from an exact and from a rough SVD: time, singular values, and a training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

import lowrank_swift as lrs
from lowrank_swift import Factors
from lowrank_swift.demo import data
from lowrank_swift.demo.experiment import make_task
from lowrank_swift.demo.methods import Method
from lowrank_swift.demo.model import load_model
from lowrank_swift.demo.settings import Settings
from lowrank_swift.demo.train import Classifier, train
from lowrank_swift.torch import PiSSA, adapt

from . import peers
from .initializers import in_place_work
from .measure import Run
from .networks import minilm, minilm_source
from .table import OURS, Case, Line, Row, Session, check, in_limit, matrix, time_case
from .verify import residual_error

__all__ = ["rows", "sigma_error"]

EXACT, ROUGH = "pissa", "pissa_niter_16"
LEARNING_RATE = 1e-3


def sigma_error(factors: Factors, exact: Tensor) -> float:
    """Return the largest relative error of the singular values of ``s B A``; `exact` are W's in float64."""
    up, down = torch.linalg.qr(factors.up.double()).R, torch.linalg.qr(factors.down.double().T).R
    found = torch.linalg.svdvals(factors.scale * up @ down.T)
    return float(((found - exact[: len(found)]) / exact[: len(found)]).abs().max())


def _pissa(what: str, make: Callable[[Session], Tensor], rank: int) -> Row:
    def run(session: Session) -> Iterator[Line]:
        original, r = make(session), session.rank(rank)
        shape = f"{what}, {original.shape[0]}x{original.shape[1]} r={r}"
        exact = torch.linalg.svdvals(original.double())
        weight = original.clone()
        theirs = {f"PEFT {how}": peers.peft_initializer(original, r, how) for how in (EXACT, ROUGH)}
        factors = lrs.pissa_(weight, r)
        residuals = {OURS: in_limit(residual_error(original, weight, factors))}
        sigmas = {OURS: sigma_error(factors, exact)}
        for name, initialize in theirs.items():
            base, its = initialize()
            residuals[name] = in_limit(residual_error(original, base, its))
            sigmas[name] = sigma_error(its, exact)

        def errors() -> Mapping[str, float]:
            return residuals

        contenders: dict[str, Run] = {OURS: lambda: lrs.pissa_(weight, r), **theirs}
        work = in_place_work(original.shape[0], original.shape[1], r, original.dtype, reads=1)
        case = Case(contenders, errors, work, before=lambda: weight.copy_(original))
        yield from time_case(session, "pissa", shape, case, {})
        error = check(shape, residuals)
        for name in theirs:
            own, its_error = sigmas[OURS], sigmas[name]
            yield Line("pissa, error in sigma", shape, own, "", None, name, its_error, own / its_error, None, error)

    return Row("pissa", what, run)


def _encoder_weight(session: Session) -> Tensor:
    weight = minilm(torch.float32).get_parameter("encoder.layer.0.intermediate.dense.weight")
    return weight.detach().clone()


def _prepared(name: str, encoder: nn.Module, targets: list[str], rank: int) -> nn.Module:
    if name == OURS:
        return adapt(encoder, PiSSA(rank, alpha=rank), targets=targets, base="residual", progress=False)
    return peers.peft_model(encoder, rank, targets, init_lora_weights=name.removeprefix("PEFT "))


def _losses(session: Session) -> Iterator[Line]:
    """The training loss on the demo's task after a fixed number of steps, from each start."""
    rank, steps = session.rank(16), 2 if session.is_quick else 32
    pretrained = load_model(minilm_source())
    corpus = data.build_corpus(data.read_docstrings(data.standard_library()))
    size, length = (2, 8) if session.is_quick else (32, 64)
    task = make_task(0, pretrained, corpus, Settings(steps=steps, batch_size=size, max_length=length))
    losses = {}
    for name in (OURS, f"PEFT {EXACT}", f"PEFT {ROUGH}"):
        encoder = _prepared(name, copy.deepcopy(pretrained.encoder), list(pretrained.layers), rank)
        classifier = Classifier(encoder, width=pretrained.encoder.config.hidden_size, classes=task.classes, seed=0)
        method = Method(name, name == OURS, "", rank, LEARNING_RATE, lambda model, *_: model)
        losses[name] = train(classifier, method, task.train, task.probe, lambda _: None).probe_losses[-1]
    own = losses.pop(OURS)
    for name, loss in losses.items():
        yield Line("pissa, training loss", f"MiniLM r={rank}, {steps} steps", own, "", None, name, loss, own / loss)


def rows() -> Iterator[Row]:
    """Yield the rows."""
    row = _pissa("MiniLM's first wide layer", _encoder_weight, 32)
    yield Row(row.name, row.what, row.run, needs=minilm_source)
    yield _pissa("decaying spectrum", lambda s: matrix(s.side(2048), s.side(2048), decay=True), 32)
    yield _pissa("flat spectrum", lambda s: matrix(s.side(2048), s.side(2048)), 32)
    yield Row("pissa", "training loss on the demo's task", _losses, needs=minilm_source)
