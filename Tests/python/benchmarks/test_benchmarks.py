# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""`lowrank-swift bench` on small shapes: every row runs, and a wrong result is never timed."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lowrank_swift as lrs
import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

from lowrank_swift.benchmarks import freezing, measure, networks, run, table, wrapping
from lowrank_swift.benchmarks.adapters import adapted, layer_errors
from lowrank_swift.benchmarks.floor import Machine, Work
from lowrank_swift.benchmarks.verify import LIMIT, ldu_error, qr_error, residual_error, svd_error
from lowrank_swift.demo.settings import DemoError
from lowrank_swift.torch import OLoRA, adapt, named_adapters
from rich.console import Console
from support import run_python

SESSION = table.Session(Machine(1e10, 1e11), repetitions=1, seconds_each=0, is_quick=True)


def run_quick(*names: str) -> tuple[list[table.Line], list[str], str]:
    return run_rows(run.chosen_rows(names))


def run_rows(rows: list[table.Row]) -> tuple[list[table.Line], list[str], str]:
    output = io.StringIO()
    lines, wrong = run.run_rows(rows, SESSION, Console(file=output, width=200))
    return lines, wrong, output.getvalue()


def test_every_row_runs_and_is_recorded(tmp_path: Path) -> None:
    lines, wrong, output = run_quick()
    assert not wrong, output
    names = {line.row.partition(",")[0] for line in lines}
    assert names == {
        *("olora_", "olora_ memory", "olora", "loldu", "loldu_", "Q^T W", "svd", "pissa"),
        *("overhead", "step", "kept", "model", "olora_ by rank", "olora_ by size", "freezing", "wrapping"),
    }
    assert all(line.row in output for line in lines)
    assert all(math.isfinite(line.ours) and math.isfinite(line.theirs) for line in lines)
    path = run.write_record(tmp_path / "new", {"cpu": "test"}, SESSION, lines, wrong)
    record = json.loads(path.read_text())
    assert len(record["lines"]) == len(lines)
    assert record["environment"] == {"cpu": "test"}
    assert (tmp_path / "new/growth-quick.png").read_bytes().startswith(b"\x89PNG")


def test_a_goal_that_is_missed_is_explained_by_the_floor() -> None:
    def line(goal: table.Goal, floor: float | None = 2.0, reason: str = "") -> table.Line:
        theirs, ours = 6.0, 4.0
        ratio = ours / theirs if goal.at_most else theirs / ours
        return table.Line("row", "what", ours, "ms", floor, "peer", theirs, ratio, goal, reason=reason)

    assert line(table.Goal(1.5)).explanation == ""
    where = "ours is at 2 times the floor, peer at 3; at the floor the ratio would be"
    assert line(table.Goal(2.5)).explanation == f"{where} 3, a goal within it"
    assert line(table.Goal(4), reason="because").explanation == f"because; {where} 3, which is short of the goal, too"
    assert line(table.Goal(0.5, at_most=True)).record()["reason"] == f"{where} 0.333, a goal within it"
    assert line(table.Goal(4), floor=None).explanation == ""


@pytest.mark.parametrize(
    ("name", "row"), [("olora_", "olora_"), ("loldu_", "loldu_"), ("loldu", "loldu"), ("olora", "olora")]
)
def test_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch, name: str, row: str) -> None:
    function: Callable[..., Any] = getattr(lrs, name)

    def wrong_in_one_entry(weight: torch.Tensor, rank: int) -> Any:
        factors = function(weight, rank)
        factors.up[0, 0] += 0.1
        return factors

    monkeypatch.setattr(lrs, name, wrong_in_one_entry)
    timed = []
    monkeypatch.setattr(table, "time_side_by_side", lambda *_, **__: timed.append(1))
    lines, wrong, output = run_quick(row)
    assert not lines
    assert not timed
    assert len(wrong) == output.count("WRONG, not timed") > 0
    assert all("lowrank_swift" in text and "times its limit" in text for text in wrong)


def test_kept_and_trained_while_lamda_freezes() -> None:
    lines, wrong, _ = run_rows(list(freezing.rows())[:1])
    assert not wrong
    at = {line.row: line.ours for line in lines}
    assert at["freezing, before, kept"] == at["freezing, during, kept"] == at["freezing, after, kept"]
    assert at["freezing, after, training state"] < at["freezing, before, training state"]


def test_numbers_updated() -> None:
    # Two steps freeze: 2, 1, 0, 0 columns train.
    assert freezing.updates([(5, 3, 2)], rank=2, steps=4, fraction=0.5) == {
        "lora": 4 * 2 * 2 * (5 + 3),
        "lamda": 2 * (4 * 2 * 2 + 3 * 5),
        "core_only": 2 * 4 * 2 * 2,
    }


def test_adapters_that_change_the_model_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: torch.nn.Module, *arguments: Any, **options: Any) -> None:
        adapt(model, *arguments, **options)
        with torch.no_grad():
            for _, factors in named_adapters(model):
                assert factors.core is not None
                factors.core.add_(0.5)

    monkeypatch.setattr(freezing, "adapt", shifted)
    monkeypatch.setattr(freezing, "time_side_by_side", lambda *_, **__: pytest.fail("timed"))
    _, wrong, _ = run_rows(list(freezing.rows())[:1])
    assert len(wrong) == 1
    assert "times its limit" in wrong[0]


def test_residuals_other_than_pefts_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = iter(range(1, 100))
    monkeypatch.setattr(wrapping, "matrix", lambda *arguments: next(weights) * table.matrix(*arguments))
    monkeypatch.setattr(wrapping, "time_side_by_side", lambda *_, **__: pytest.fail("timed"))
    _, wrong, _ = run_rows(list(wrapping.rows())[:1])
    assert len(wrong) == 1
    assert "the residual differs from PEFT's" in wrong[0]


def test_missing_model_is_told_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: object) -> None:
        raise DemoError("missing")

    monkeypatch.setattr(networks, "locate_model", missing)
    monkeypatch.setattr(run, "check_build", lambda _: None)
    monkeypatch.setattr(run, "run_rows", lambda *_: pytest.fail("ran"))
    with pytest.raises(run.BenchmarkError, match="pip install --no-deps"):
        run.bench(["freezing"], None, Console(file=io.StringIO()), quick=True, repetitions=1, seconds=0)


def test_nan_is_wrong() -> None:
    with pytest.raises(table.WrongResult):
        table.check("what", {"lowrank_swift": float("nan")})


def test_errors_are_seen_by_each_measure_of_them() -> None:
    weight = table.matrix(40, 30)
    q, r = lrs.qr(weight, 8)
    assert qr_error(weight, lrs.QRResult(q, r)) < LIMIT < qr_error(weight, lrs.QRResult(q, r + 1e-3))
    assert qr_error(weight, lrs.QRResult(q * 1.001, r / 1.001)) > LIMIT
    lower, diagonal, upper, perm = lrs.ldu(weight, 8)
    assert ldu_error(weight, lrs.LDUResult(lower, diagonal, upper, perm)) < LIMIT
    assert ldu_error(weight, lrs.LDUResult(lower, diagonal * 1.001, upper, perm)) > LIMIT
    u, s, vh, _ = lrs.svd(weight, 8)
    assert svd_error(weight, u, s, vh) < 1e-4 < svd_error(weight, u, s * 1.001, vh)
    after = weight.clone()
    factors = lrs.olora_(after, 8)
    assert residual_error(weight, after, factors) < LIMIT < residual_error(weight, after + 1e-3, factors)


def test_errors_of_a_layer_are_seen() -> None:
    weight, x, grad = table.matrix(24, 20), table.matrix(9, 20).requires_grad_(), table.matrix(9, 24)
    model = adapted(weight, OLoRA, 4, "intact")
    assert max(layer_errors(model, weight, x, grad).values()) < 1
    assert set(layer_errors(model, weight, x, grad)) == {
        *("output", "gradient of x", "gradient of up", "gradient of down")
    }
    assert layer_errors(model, weight + 0.1, x, grad)["output"] > 1


def test_floor_is_the_larger_of_memory_and_arithmetic() -> None:
    machine = Machine(bytes_per_second=1e9, flops_per_second=1e12)
    assert machine.milliseconds(Work(bytes=1e6, flops=1e6)) == 1
    assert machine.milliseconds(Work(bytes=1e6, flops=1e10)) == 10
    measured = Machine.measured(quick=True)
    assert measured.bytes_per_second > 0 < measured.flops_per_second


def test_contenders_take_turns_after_the_weight_is_restored() -> None:
    calls: list[str] = []
    timings = measure.time_side_by_side(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        before=lambda: calls.append("restore"),
        repetitions=2,
        seconds_each=100,
    )
    assert calls == ["restore", "a", "restore", "b"] * 3
    assert [len(timing.milliseconds) for timing in timings.values()] == [2, 2]


def test_extra_memory_is_seen() -> None:
    size = 64 * 2**20
    assert measure.peak_extra_bytes(lambda: torch.ones(size // 4)) >= 0.9 * size
    assert measure.peak_extra_bytes(lambda: None) < 0.1 * size


def test_debug_build_is_refused() -> None:
    with pytest.raises(run.BenchmarkError, match="built for debugging"):
        run.check_build({"build": "debug"})


def test_unknown_row() -> None:
    with pytest.raises(run.BenchmarkError, match=r"expected names among olora_, .* got 'qr'"):
        run.chosen_rows(["qr"])


def test_command_runs_again_without_what_misleads_openblas(tmp_path: Path) -> None:
    code = f"""
import sys
from lowrank_swift.cli import main
sys.argv = ["lowrank-swift", "bench", "--quick", "--repetitions", "1", "--rows", "kept", "--out", {str(tmp_path)!r}]
import os
print("set" if "OPENBLAS_CORETYPE" in os.environ else "unset", flush=True)
main()
"""
    output = run_python(code, OPENBLAS_CORETYPE="Haswell")
    assert output.startswith("set\nunset\n")
    assert "goals reached, 0 rows wrong" in output
    record = json.loads((tmp_path / "bench-quick.json").read_text())
    assert {"cpu", "instruction_set", "threads", "blas", "blas_core", "torch"} <= set(record["environment"])
