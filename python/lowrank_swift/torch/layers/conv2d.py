# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""torch.nn.Conv2d."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from ._layer_type import LayerType, ProjectingLayerType

__all__ = ["Conv2d"]

Pair = tuple[int, int]


@dataclass(frozen=True)
class Conv2d(ProjectingLayerType):
    """A ``torch.nn.Conv2d`` of one group: its matrix is ``[out, in * height * width]`` of the kernel.

    Attributes:
        kernel (tuple[int, int, int]): input channels, height and width.
        stride (tuple[int, int]): as the layer has it.
        padding (tuple[int, int]): zeros on both sides, by the convolution itself.
        dilation (tuple[int, int]): as the layer has it.
        padding_mode (str): as the layer has it.
        padded (tuple[int, int, int, int]): what is padded before the convolution: left, right, top, bottom.
    """

    name: ClassVar[str] = "Conv2d"

    kernel: tuple[int, int, int]
    stride: Pair
    padding: Pair
    dilation: Pair
    padding_mode: str
    padded: tuple[int, int, int, int]

    @classmethod
    def of(cls, layer: nn.Module) -> LayerType:
        """Describe a layer, whose outputs must all see all inputs."""
        assert isinstance(layer, nn.Conv2d)
        if layer.groups != 1:
            raise ValueError(f"groups: expected 1, got {layer.groups}, whose weight is no matrix of outputs and inputs")
        height, width = _both_sides(layer, 0), _both_sides(layer, 1)
        if layer.padding_mode == "zeros":
            # As torch does it: the convolution pads evenly, and what "same" needs beyond that comes before it.
            padding = (height[0], width[0])
            padded = (0, width[1] - width[0], 0, height[1] - height[0])
        else:
            padding, padded = (0, 0), (*width, *height)
        _, *kernel = layer.weight.shape
        stride, dilation = _pair(layer.stride), _pair(layer.dilation)
        return cls((kernel[0], kernel[1], kernel[2]), stride, padding, dilation, layer.padding_mode, padded)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight with its kernels as rows: a view unless it is stored channels last."""
        return weight.flatten(1)

    def weight(self, matrix: Tensor) -> Tensor:
        """Return rows as kernels."""
        return matrix.reshape(-1, *self.kernel)

    def prepare(self, x: Tensor) -> Tensor:
        """Return images ``(N, in, height, width)`` or one without N, padded where the convolution does not pad."""
        x = x.unsqueeze(0) if x.dim() == 3 else x
        if not any(self.padded):
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return nn.functional.pad(x, self.padded, mode)

    def finish(self, out: Tensor, x: Tensor) -> Tensor:
        """Return the output without N for an input without it."""
        return out.squeeze(0) if x.dim() == 3 else out

    def unfinish(self, out: Tensor, x: Tensor) -> Tensor:
        """Return the output with N."""
        return out.unsqueeze(0) if x.dim() == 3 else out

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution."""
        return nn.functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def input_gradient(self, grad: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
        """Return the transposed convolution; it keeps the memory format, and needs no input to tell the size."""
        # Rows and columns of the padded input that no kernel has reached.
        left_out = tuple(
            size[i] + 2 * padding - dilation * (kernel - 1) - stride * (grad.shape[i] - 1) - 1
            for i, kernel, stride, padding, dilation in zip(
                (2, 3), self.kernel[1:], self.stride, self.padding, self.dilation, strict=True
            )
        )
        return nn.functional.conv_transpose2d(
            grad, weight, None, self.stride, self.padding, left_out, dilation=self.dilation
        )

    def weight_gradient(self, grad: Tensor, x: Tensor, size: torch.Size) -> Tensor:
        """Return the correlation of input and gradient."""
        gradient: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            x, size, grad, self.stride, self.padding, self.dilation
        )
        return gradient

    def rows(self, out: Tensor) -> Tensor:
        """Return one matrix ``[height * width, channels]`` for each image, in memory of either format."""
        return out.flatten(2).mT

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return images with the positions of others."""
        images, _, height, width = like.shape
        return rows.view(images, height, width, rows.shape[1]).movedim(-1, 1)

    def lora_factors(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of a convolution and of a 1 x 1 convolution after it.

        Raises:
            ValueError: for options that PEFT's LoRA leaves out of its own convolution.
        """
        if self.dilation != (1, 1) or self.padding_mode != "zeros":
            raise ValueError(
                "targets: expected convolutions with dilation (1, 1) and padding_mode 'zeros', which are all that "
                f"PEFT's LoRA computes, got dilation {self.dilation} and padding_mode {self.padding_mode!r}"
            )
        return self.weight(a), b[:, :, None, None]


def _pair(values: tuple[int, ...]) -> Pair:
    first, second = values
    return first, second


def _both_sides(layer: nn.Conv2d, dimension: int) -> Pair:
    """Return the padding before and after one of the two dimensions."""
    if layer.padding == "same":
        total = layer.dilation[dimension] * (layer.kernel_size[dimension] - 1)
        return total // 2, total - total // 2
    padding = 0 if layer.padding == "valid" else layer.padding[dimension]
    assert isinstance(padding, int)
    return padding, padding
