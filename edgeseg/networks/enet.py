"""ENet (Paszke et al. 2016, "ENet: A Deep Neural Network Architecture for Real-Time Semantic
Segmentation", arXiv:1606.02147, table 1 and figure 2).

Two implementations with published weights differ in details that the paper leaves open; the
spec carries them (:data:`PADDED_POOL_VARIANT` is the second).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.networks.base import Network
from edgeseg.networks.pooling import Choice, max_pool, max_unpool
from edgeseg.networks.structure import Structure

__all__ = ["PADDED_POOL_VARIANT", "ENet", "ENetStructure"]

Inner = tuple[int, ...]

# Stages 2 and 3 repeat this, stage 2 behind a downsampling; a dilation, or 0 for 5x1 and 1x5.
_ASYMMETRIC: Final = 0
_DILATIONS: Final = (1, 2, _ASYMMETRIC, 4, 1, 8, _ASYMMETRIC, 16)
_STAGE_INNER: Final[tuple[Inner, ...]] = tuple(
    (32, 32, 32) if dilation == _ASYMMETRIC else (32, 32) for dilation in _DILATIONS
)

PADDED_POOL_VARIANT: Final[dict[str, Any]] = {
    "initial_pool": 3,
    "initial_pool_first": False,
    "initial_slopes": 1,
    "inner_biases": False,
    "rows_first": False,
    "unpool_kernel": 2,
    "unpool_expand_relu": False,
}
"""Fields of the second published variant: 3x3 pooling at the start, no biases."""


@dataclass(frozen=True, slots=True)
class ENetStructure(Structure):
    """Channel counts and variant of an ENet.

    The decoder adds to what it unpools with the encoder's choices, so its streams have the
    widths of the encoder's: stage 4 that of stage 1, stage 5 that of the initial block.
    """

    network: ClassVar[str] = "enet"

    initial: int = 16
    """Stream at 1/2, the 3 pooled channels of the input included."""
    stage1: int = 64
    """Stream at 1/4; zeros are appended to the initial stream."""
    stage2: int = 128
    """Stream at 1/8, of stages 2 and 3."""
    stage1_inner: tuple[Inner, ...] = ((4, 4),) + ((16, 16),) * 4
    """Per bottleneck: channels after the projection and after the convolution; three where that
    is 5x1 and 1x5. The first of stages 1, 2 downsamples, that of 4, 5 upsamples."""
    stage2_inner: tuple[Inner, ...] = ((16, 16), *_STAGE_INNER)
    stage3_inner: tuple[Inner, ...] = _STAGE_INNER
    stage4_inner: tuple[Inner, ...] = ((32, 32), (16, 16), (16, 16))
    stage5_inner: tuple[Inner, ...] = ((16, 16), (4, 4))
    initial_pool: int = 2
    """Pooling window of the initial block: 2, or 3 with padding."""
    initial_pool_first: bool = True
    """Whether the pooled channels come before the convolved ones."""
    initial_slopes: int = 16
    """PReLU slopes of the initial block: one per channel, or 1."""
    inner_biases: bool = True
    """Whether the initial and the asymmetric convolutions have biases."""
    rows_first: bool = True
    """Asymmetric pairs as 1x5 then 5x1, or the other way round."""
    unpool_kernel: int = 3
    """Kernel of the transposed convolutions inside upsampling bottlenecks: 3 or 2."""
    unpool_expand_relu: bool = True
    """Whether upsampling bottlenecks have an activation between expansion and addition."""

    def check(self) -> None:
        """Raise ArtefactError where the widths do not fit together."""
        Structure.check(self)
        self._require(
            3 < self.initial <= self.stage1 <= self.stage2,
            "zeros are appended to a stream, so it cannot get narrower, but the widths are 3, "
            f"{self.initial}, {self.stage1}, {self.stage2}",
        )
        self._require(self.initial_pool in (2, 3), "initial_pool is neither 2 nor 3")
        self._require(self.unpool_kernel in (2, 3), "unpool_kernel is neither 2 nor 3")
        self._require(
            self.initial_slopes in (1, self.initial),
            f"initial_slopes is neither 1 nor initial ({self.initial})",
        )


class InitialBlock(nn.Module):
    """Figure 2a: a strided convolution beside a max-pooling of the input."""

    def __init__(self, s: ENetStructure) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, s.initial - 3, 3, stride=2, padding=1, bias=s.inner_biases)
        # 3x3 pads by one pixel, 2x2 by none: both halve the frame.
        self.pool = nn.MaxPool2d(s.initial_pool, stride=2, padding=s.initial_pool - 2)
        self.bn = nn.BatchNorm2d(s.initial)
        self.act = nn.PReLU(s.initial_slopes)
        self.pool_first = s.initial_pool_first

    def forward(self, x: Tensor) -> Tensor:
        pair = [self.pool(x), self.conv(x)] if self.pool_first else [self.conv(x), self.pool(x)]
        return self.act(self.bn(torch.cat(pair, dim=1)))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """Figure 2b: projection, convolution, expansion, added to the stream.

    The projection is 2x2 with stride 2 where the stream is downsampled, and the convolution
    transposed where it is upsampled.
    """

    def __init__(
        self,
        width: int,
        inner: Inner,
        conv: Callable[[int, int], nn.Module],
        act: Callable[[], nn.Module],
        dropout: float,
        *,
        c_in: int | None = None,
        stride: int = 1,
        expand_act: bool = True,
    ) -> None:
        super().__init__()
        first, last = inner[0], inner[-1]
        self.conv1 = nn.Conv2d(c_in or width, first, stride, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.act1 = act()
        self.conv2 = conv(first, last)
        self.bn2 = nn.BatchNorm2d(last)
        self.act2 = act()
        self.conv3 = nn.Conv2d(last, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.act3 = act() if expand_act else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.act_out = act()

    def residual(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        return self.dropout(self.act3(self.bn3(self.conv3(y))))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.act_out(self.residual(x) + x)  # type: ignore[no-any-return]


class Downsampling(Bottleneck):
    """The stream is max-pooled, and zeros are appended for the channels that it lacks."""

    def __init__(self, c_in: int, c_out: int, inner: Inner, dropout: float) -> None:
        super().__init__(c_out, inner, _conv3x3(1), nn.PReLU, dropout, c_in=c_in, stride=2)
        self.appended = c_out - c_in

    def split(self, x: Tensor) -> tuple[Tensor, Choice]:
        """The stage's stream, and where the maxima were."""
        skip, choice = max_pool(x)
        if self.appended:
            skip = F.pad(skip, (0, 0, 0, 0, 0, self.appended))
        return self.act_out(self.residual(x) + skip), choice


class Upsampling(Bottleneck):
    """The stream is narrowed by a 1x1 convolution and unpooled."""

    def __init__(self, c_in: int, c_out: int, inner: Inner, s: ENetStructure) -> None:
        def conv(a: int, b: int) -> nn.Module:
            if s.unpool_kernel == 2:
                return nn.ConvTranspose2d(a, b, 2, stride=2, bias=False)
            return nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1, bias=False)

        super().__init__(
            c_out, inner, conv, nn.ReLU, 0.1, c_in=c_in, expand_act=s.unpool_expand_relu
        )
        self.skip_conv = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.skip_bn = nn.BatchNorm2d(c_out)

    def join(self, x: Tensor, choice: Choice) -> Tensor:
        skip = max_unpool(self.skip_bn(self.skip_conv(x)), choice)
        return self.act_out(self.residual(x) + skip)  # type: ignore[no-any-return]


def _conv3x3(dilation: int) -> Callable[[int, int], nn.Module]:
    return lambda a, b: nn.Conv2d(a, b, 3, padding=dilation, dilation=dilation, bias=False)


def _asymmetric(s: ENetStructure, middle: int) -> Callable[[int, int], nn.Module]:
    row, column = ((1, 5), (0, 2)), ((5, 1), (2, 0))
    (k1, p1), (k2, p2) = (row, column) if s.rows_first else (column, row)
    return lambda a, b: nn.Sequential(
        nn.Conv2d(a, middle, k1, padding=p1, bias=s.inner_biases),
        nn.BatchNorm2d(middle),
        nn.PReLU(),
        nn.Conv2d(middle, b, k2, padding=p2, bias=s.inner_biases),
    )


def _context(s: ENetStructure, inner: tuple[Inner, ...]) -> list[nn.Module]:
    """The eight bottlenecks that stages 2 and 3 share."""
    blocks: list[nn.Module] = []
    for widths, dilation in zip(inner, _DILATIONS, strict=True):
        conv = _asymmetric(s, widths[1]) if dilation == _ASYMMETRIC else _conv3x3(dilation)
        blocks.append(Bottleneck(s.stage2, widths, conv, nn.PReLU, 0.1))
    return blocks


class ENet(Network):
    """358,488 parameters at 20 outputs."""

    structure_class = ENetStructure
    head_kind = "deconv3x3"

    def __init__(self, structure: ENetStructure | None = None) -> None:
        s = structure or ENetStructure()
        super().__init__(s)
        same = _conv3x3(1)
        self.initial = InitialBlock(s)
        self.down1 = Downsampling(s.initial, s.stage1, s.stage1_inner[0], 0.01)
        self.stage1 = nn.Sequential(
            *(Bottleneck(s.stage1, inner, same, nn.PReLU, 0.01) for inner in s.stage1_inner[1:])
        )
        self.down2 = Downsampling(s.stage1, s.stage2, s.stage2_inner[0], 0.1)
        self.stage2 = nn.Sequential(*_context(s, s.stage2_inner[1:]))
        self.stage3 = nn.Sequential(*_context(s, s.stage3_inner))
        self.up4 = Upsampling(s.stage2, s.stage1, s.stage4_inner[0], s)
        self.stage4 = nn.Sequential(
            *(Bottleneck(s.stage1, inner, same, nn.ReLU, 0.1) for inner in s.stage4_inner[1:])
        )
        self.up5 = Upsampling(s.stage1, s.initial, s.stage5_inner[0], s)
        self.stage5 = nn.Sequential(
            *(Bottleneck(s.initial, inner, same, nn.ReLU, 0.1) for inner in s.stage5_inner[1:])
        )
        self.fullconv = nn.ConvTranspose2d(
            s.initial, s.num_outputs, 3, stride=2, padding=1, output_padding=1, bias=False
        )

    def body(self, x: Tensor) -> Tensor:
        """Features ``[N, 16, H / 2, W / 2]``."""
        x, choice1 = self.down1.split(self.initial(self.normalise(x)))
        x, choice2 = self.down2.split(self.stage1(x))
        x = self.stage3(self.stage2(x))
        x = self.stage4(self.up4.join(x, choice2))
        return self.stage5(self.up5.join(x, choice1))  # type: ignore[no-any-return]

    def upsample(self, features: Tensor) -> Tensor:
        """The last transposed convolution: ``[N, C, H, W]``."""
        return self.fullconv(features)  # type: ignore[no-any-return]

    def last_layer(self) -> nn.Module:
        """The full convolution."""
        return self.fullconv

    def _head_weights(self) -> tuple[int, Tensor | None, Tensor | None]:
        weight = self.fullconv.weight
        return 2, weight, weight.new_zeros(self.structure.num_outputs)
