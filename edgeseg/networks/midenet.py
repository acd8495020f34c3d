"""MiDE-Net: ENet's encoder cut to six bottlenecks and a bilinear upsampling.

A student for distillation from ENet: initial block, a stage at 1/4, a stage at 1/8, a 1x1
classifier, bilinear x8. The classifier comes before the upsampling here; the published order is
the other way round, agrees up to rounding (8e-6) and costs 64 times the classifier's work.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.networks.base import Network, upsample_bilinear
from edgeseg.networks.structure import Structure

__all__ = ["MiDENet", "MiDENetStructure"]


@dataclass(frozen=True, slots=True)
class MiDENetStructure(Structure):
    """Channel counts of a MiDE-Net."""

    network: ClassVar[str] = "midenet"

    initial: int = 16
    """Channels after the initial block, the 3 pooled ones included."""
    stage1: int = 64
    """Residual stream at 1/4."""
    stage2: int = 128
    """Residual stream at 1/8."""
    inner: tuple[tuple[int, int], ...] = ((4, 4), (16, 16), (16, 16), (16, 16), (32, 32), (32, 32))
    """Per bottleneck: channels after the 1x1 projection and after the 3x3 convolution."""
    published_order: bool = False
    """Upsample before the classifier: bit-near to the published code, 64 times the work."""

    def check(self) -> None:
        """Raise ArtefactError where the widths do not fit together."""
        Structure.check(self)
        self._require(self.initial > 3, f"initial is {self.initial}, but 3 of it are the input's")


class InitialBlock(nn.Module):
    """ENet's initial block: a strided convolution beside a max-pooling of the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width - 3, 3, stride=2, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2, 2)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(torch.cat([self.conv(x), self.pool(x)], dim=1)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided or dilated), 1x1, and a projection on the skip where shapes differ."""

    def __init__(
        self, c_in: int, inner: tuple[int, int], c_out: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        a, b = inner
        self.conv1 = nn.Conv2d(c_in, a, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(a)
        self.conv2 = nn.Conv2d(
            a, b, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(b)
        self.conv3 = nn.Conv2d(b, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        # By stride, not by width: a pruned stage may happen to keep as many channels as it got.
        self.match_channels: nn.Module = (
            nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False) if stride != 1 else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.match_channels(x))


class MiDENet(Network):
    """63,155 parameters at 20 outputs."""

    structure_class = MiDENetStructure
    head_kind = "bilinear"

    def __init__(self, structure: MiDENetStructure | None = None) -> None:
        s = structure or MiDENetStructure()
        super().__init__(s)
        self.published_order = s.published_order
        self.initial = InitialBlock(s.initial)
        self.bottleneck1 = nn.Sequential(
            Bottleneck(s.initial, s.inner[0], s.stage1, stride=2),
            Bottleneck(s.stage1, s.inner[1], s.stage1),
            Bottleneck(s.stage1, s.inner[2], s.stage1),
        )
        self.bottleneck2 = nn.Sequential(
            Bottleneck(s.stage1, s.inner[3], s.stage2, stride=2),
            Bottleneck(s.stage2, s.inner[4], s.stage2, dilation=2),
            Bottleneck(s.stage2, s.inner[5], s.stage2, dilation=4),
        )
        self.classifier = nn.Conv2d(s.stage2, s.num_outputs, 1)

    def body(self, x: Tensor) -> Tensor:
        """Logits at 1/8; in the published order at full resolution."""
        y = self.bottleneck2(self.bottleneck1(self.initial(self.normalise(x))))
        if self.published_order:
            y = upsample_bilinear(y, 8)
        return self.classifier(y)  # type: ignore[no-any-return]

    def upsample(self, features: Tensor) -> Tensor:
        """Bilinear x8: ``[N, C, H, W]``."""
        return features if self.published_order else upsample_bilinear(features, 8)

    def upsample_sparse(self, features: Tensor, stride: int, phase: tuple[int, int]) -> Tensor:
        """Bilinear to the coarser grid."""
        if self.published_order:
            return super().upsample_sparse(features, stride, phase)
        return upsample_bilinear(features, 8 // stride)

    def last_layer(self) -> nn.Module:
        """The classifier."""
        return self.classifier

    def _head_weights(self) -> tuple[int, Tensor | None, Tensor | None]:
        return (1 if self.published_order else 8), None, None
