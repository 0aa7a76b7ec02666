# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The definitions behind the demo's table."""

from __future__ import annotations

import sys

import pytest
import torch
from lowrank_swift.demo.metrics import bytes_kept, steps_to, wilson_interval
from scipy import stats


@pytest.mark.parametrize(("correct", "total"), [(0, 1), (1, 1), (0, 10), (7, 10), (551, 689), (689, 689)])
def test_wilson_interval_is_scipys(correct: int, total: int) -> None:
    expected = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    for got, wanted in zip(wilson_interval(correct, total), expected, strict=True):
        assert abs(got - wanted) / sys.float_info.epsilon < 30


def test_wilson_interval_of_a_published_example() -> None:
    # 81 of 263: Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert [round(x, 4) for x in wilson_interval(81, 263)] == [0.2553, 0.3662]


@pytest.mark.parametrize(("correct", "total"), [(-1, 3), (4, 3), (0, 0)])
def test_wilson_interval_refuses_impossible_counts(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="correct, total: expected"):
        wilson_interval(correct, total)


def test_steps_to_is_the_first_that_gets_there_and_may_fail() -> None:
    steps, losses = [0, 4, 8, 12], [4.0, 3.0, 2.0, 2.5]
    assert steps_to(4.0, steps, losses) == 0
    assert steps_to(2.5, steps, losses) == 8
    assert steps_to(1.9, steps, losses) is None
    assert steps_to(1.0, steps, [float("nan")] * 4) is None


def test_bytes_kept_counts_each_storage_once_and_leaves_the_model_out() -> None:
    layer = torch.nn.Linear(7, 5, bias=False)
    x = torch.randn(3, 7)
    # The product keeps x (3 x 7 float32) for the weight's gradient and nothing else that isn't the model's own.
    assert bytes_kept(layer, lambda: layer(x).sum()) == 3 * 7 * 4
    assert bytes_kept(layer, lambda: (layer(x) + layer(x.view(3, 7))).sum()) == 3 * 7 * 4
    # exp keeps its result (3 x 5) as well.
    assert bytes_kept(layer, lambda: layer(x).exp().sum()) == 3 * 7 * 4 + 3 * 5 * 4
    layer.requires_grad_(False)
    assert bytes_kept(layer, lambda: layer(x).sum()) == 0
