"""2x2 max-pooling that remembers where the maximum was, and its inverse, in standard ops.

``nn.MaxPool2d(return_indices=True)`` and ``nn.MaxUnpool2d`` export as ScatterElements, on which
OpenVINO spends most of ENet's time and which TensorRT does not take. Here the frame is parted
into its four phases (even and odd rows and columns); three comparisons between phases say which
of the four was first among the largest, so exactly one is chosen even where the activations were
quantized. Equal bit by bit to torch's pair, ties included (the first in reading order wins).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Choice", "max_pool", "max_unpool"]


class Choice(NamedTuple):
    """Where the maximum of each 2x2 window was; bool ``[N, C, H / 2, W / 2]``."""

    upper: Tensor
    """In the upper row."""
    left_of_upper: Tensor
    """The upper row's larger element is its left one."""
    left_of_lower: Tensor
    """The lower row's larger element is its left one."""


def max_pool(x: Tensor) -> tuple[Tensor, Choice]:
    """Maximum of every 2x2 window of ``[N, C, H, W]`` (H, W even), and where it was."""
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    upper, lower = torch.maximum(a, b), torch.maximum(c, d)
    # The value by the engines' own pooling, which is twice as fast as a third maximum.
    return F.max_pool2d(x, 2), Choice(upper >= lower, a >= b, c >= d)


def max_unpool(x: Tensor, choice: Choice) -> Tensor:
    """``[N, C, h, w]`` to ``[N, C, 2 h, 2 w]``: values where the maxima were, zeros elsewhere."""
    zero = x.new_zeros(())
    upper = torch.where(choice.upper, x, zero)
    lower = torch.where(choice.upper, zero, x)
    phases = [
        torch.where(choice.left_of_upper, upper, zero),
        torch.where(choice.left_of_upper, zero, upper),
        torch.where(choice.left_of_lower, lower, zero),
        torch.where(choice.left_of_lower, zero, lower),
    ]
    return F.pixel_shuffle(torch.stack(phases, dim=2).flatten(1, 2), 2)
