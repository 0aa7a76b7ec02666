# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The benchmark on a GPU, as far as it runs without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lowrank_swift.benchmarks import gpu
from lowrank_swift.benchmarks.table import Line, WrongResult


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_rows_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name}: needs a CUDA device, and torch finds none" for name in gpu.ROWS]
    assert not list(tmp_path.iterdir())


def test_rows_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    assert gpu.main(["--quick", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    for row in ("olora_", "loldu", "loldu_", "lamda", "overhead, OLoRA residual", "peak memory, LaMDA"):
        assert f"{row}: " in text, row
    assert "0 of 7 rows failed" in text


def test_a_row_that_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The others run, and the result tells."""

    def broken(_: gpu.Gpu) -> Iterator[Line]:
        raise RuntimeError("out of memory")

    def wrong(_: gpu.Gpu) -> Iterator[Line]:
        raise WrongResult("the error is 2, 1 is allowed")

    def right(_: gpu.Gpu) -> Iterator[Line]:
        yield Line("right", "2x2", 1.0, "ms", None, "torch", 2.0, 2.0)

    monkeypatch.setattr(gpu, "ROWS", {"broken": broken, "wrong": wrong, "right": right})
    assert gpu.main(["--device", "cpu", "--rows", "broken,wrong,right"]) == 1
    text = capsys.readouterr().out
    for expected in ("broken: RuntimeError: out of memory", "wrong: WRONG: the error is 2", "right: 2x2: 1 ms"):
        assert expected in text
    assert "2 of 3 rows failed" in text


def test_unknown_rows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--rows", "loldu,qr"])
    assert "got qr" in capsys.readouterr().err
