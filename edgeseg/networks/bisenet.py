"""BiSeNetV1 with a ResNet-18 context path (Yu et al. 2018, "BiSeNet: Bilateral Segmentation
Network for Real-time Semantic Segmentation", ECCV, sections 3.1-3.3, figure 2).

Names follow the implementation that most published weights come from, so they load without
renaming. It differs from the paper's figure 2c in one place: the fusion's attention is one
convolution with BatchNorm, where the paper has two with a ReLU between; the spec carries both.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.networks.base import Network, upsample_bilinear
from edgeseg.networks.structure import Structure

__all__ = ["BiSeNet", "BiSeNetStructure"]

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class BiSeNetStructure(Structure):
    """Channel counts of a BiSeNetV1."""

    network: ClassVar[str] = "bisenet"

    layers: tuple[int, int, int, int] = (64, 128, 256, 512)
    """Residual streams of the ResNet at 1/4, 1/8, 1/16, 1/32; the stem has the first's width."""
    inner: tuple[Pair, Pair, Pair, Pair] = ((64, 64), (128, 128), (256, 256), (512, 512))
    """Per ResNet block: channels between its two convolutions."""
    context: tuple[int, int, int] = (128, 128, 128)
    """Context path's streams at 1/32 and 1/16, and what it hands to the fusion at 1/8."""
    spatial: tuple[int, int, int, int] = (64, 64, 64, 128)
    """Spatial path: channels after each of its four convolutions."""
    fusion: int = 256
    """Channels of the fused features."""
    fusion_two_convs: bool = False
    """The paper's attention in the fusion: two 1x1 convolutions with a ReLU between."""
    fusion_inner: int = 64
    """Channels between those two."""
    classifier: int = 256
    """Channels between the classifier's 3x3 and 1x1 convolutions."""
    auxiliary: bool = True
    """Whether the two auxiliary heads are there; only training uses them."""
    auxiliary_inner: Pair = (64, 64)
    """Channels inside the auxiliary heads at 1/8 and 1/16."""


class ConvBNReLU(nn.Module):
    """Convolution that keeps or halves the size, BatchNorm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class BasicBlock(nn.Module):
    """ResNet's basic block."""

    def __init__(self, c_in: int, inner: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, inner, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        # By stride, not by width: a pruned layer may happen to keep as many channels as it got.
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) without its classifier."""

    def __init__(self, s: BiSeNetStructure) -> None:
        super().__init__()
        w = s.layers
        self.conv1 = nn.Conv2d(3, w[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(w[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(w[0], s.inner[0], w[0], 1)
        self.layer2 = _layer(w[0], s.inner[1], w[1], 2)
        self.layer3 = _layer(w[1], s.inner[2], w[2], 2)
        self.layer4 = _layer(w[2], s.inner[3], w[3], 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features at 1/16 and 1/32."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        at16 = self.layer3(self.layer2(self.layer1(x)))
        return at16, self.layer4(at16)


def _layer(c_in: int, inner: Pair, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(c_in, inner[0], c_out, stride), BasicBlock(c_out, inner[1], c_out, 1)
    )


def _global_average(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


class AttentionRefinement(nn.Module):
    """Figure 2b: a 3x3 convolution, its channels weighted by their global average."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(c_in, c_out)
        self.conv_atten = nn.Conv2d(c_out, c_out, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(_global_average(x))))


class ContextPath(nn.Module):
    """ResNet-18, attention refinement at 1/16 and 1/32, the global average on top."""

    def __init__(self, s: BiSeNetStructure) -> None:
        super().__init__()
        c32, c16, c8 = s.context
        self.resnet = ResNet18(s)
        self.arm16 = AttentionRefinement(s.layers[2], c16)
        self.arm32 = AttentionRefinement(s.layers[3], c32)
        self.conv_head32 = ConvBNReLU(c32, c16)
        self.conv_head16 = ConvBNReLU(c16, c8)
        self.conv_avg = ConvBNReLU(s.layers[3], c32, kernel=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features at 1/8 and 1/16."""
        at16, at32 = self.resnet(x)
        top = self.arm32(at32) + self.conv_avg(_global_average(at32))
        up16 = self.conv_head32(F.interpolate(top, scale_factor=2.0, mode="nearest"))
        middle = self.arm16(at16) + up16
        up8 = self.conv_head16(F.interpolate(middle, scale_factor=2.0, mode="nearest"))
        return up8, up16


class SpatialPath(nn.Module):
    """Section 3.1: three strided convolutions keep the detail at 1/8."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(3, widths[0], kernel=7, stride=2)
        self.conv2 = ConvBNReLU(widths[0], widths[1], stride=2)
        self.conv3 = ConvBNReLU(widths[1], widths[2], stride=2)
        self.conv_out = ConvBNReLU(widths[2], widths[3], kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv3(self.conv2(self.conv1(x))))  # type: ignore[no-any-return]


class FeatureFusion(nn.Module):
    """Figure 2c: both paths concatenated, mixed, weighted by their global average."""

    def __init__(self, s: BiSeNetStructure) -> None:
        super().__init__()
        self.convblk = ConvBNReLU(s.spatial[3] + s.context[2], s.fusion, kernel=1)
        self.two_convs = s.fusion_two_convs
        if s.fusion_two_convs:
            self.conv1 = nn.Conv2d(s.fusion, s.fusion_inner, 1, bias=False)
            self.conv2 = nn.Conv2d(s.fusion_inner, s.fusion, 1, bias=False)
        else:
            self.conv = nn.Conv2d(s.fusion, s.fusion, 1, bias=False)
            self.bn = nn.BatchNorm2d(s.fusion)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(torch.cat([spatial, context], dim=1))
        weight = _global_average(x)
        if self.two_convs:
            weight = self.conv2(F.relu(self.conv1(weight)))
        else:
            weight = self.bn(self.conv(weight))
        return x * torch.sigmoid(weight) + x  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """3x3 convolution, then 1x1 to the outputs."""

    def __init__(self, c_in: int, inner: int, num_outputs: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(c_in, inner)
        self.conv_out = nn.Conv2d(inner, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))  # type: ignore[no-any-return]


class BiSeNet(Network):
    """13,275,796 parameters at 20 outputs without the auxiliary heads.

    Batches of one image cannot be trained: BatchNorm sits behind global averages.
    """

    structure_class = BiSeNetStructure
    head_kind = "bilinear"
    size_divisor = 32
    auxiliary_strides = (8, 16)

    def __init__(self, structure: BiSeNetStructure | None = None) -> None:
        s = structure or BiSeNetStructure()
        super().__init__(s)
        self.cp = ContextPath(s)
        self.sp = SpatialPath(s.spatial)
        self.ffm = FeatureFusion(s)
        self.conv_out = Classifier(s.fusion, s.classifier, s.num_outputs)
        self.auxiliary = s.auxiliary
        if s.auxiliary:
            inner8, inner16 = s.auxiliary_inner
            self.conv_out16 = Classifier(s.context[2], inner8, s.num_outputs)
            self.conv_out32 = Classifier(s.context[1], inner16, s.num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def body(self, x: Tensor) -> Tensor:
        """Logits at 1/8."""
        x = self.normalise(x)
        return self.conv_out(self.ffm(self.sp(x), self.cp(x)[0]))  # type: ignore[no-any-return]

    def upsample(self, features: Tensor) -> Tensor:
        """Bilinear x8: ``[N, C, H, W]``."""
        return upsample_bilinear(features, 8)

    def upsample_sparse(self, features: Tensor, stride: int, phase: tuple[int, int]) -> Tensor:
        """Bilinear to the coarser grid."""
        return upsample_bilinear(features, 8 // stride)

    def forward_train(
        self, x: Tensor, stride: int = 1, phase: tuple[int, int] = (0, 0)
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits, and those of the auxiliary heads at 1/8 and 1/16 (section 3.3, equation 2)."""
        x = self.normalise(x)
        at8, at16 = self.cp(x)
        logits = self.logits_at(self.conv_out(self.ffm(self.sp(x), at8)), stride, phase)
        if not self.auxiliary:
            return logits, []
        others = (self.conv_out16(at8), self.conv_out32(at16))
        return logits, [self.distances(x) for x in others]

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Parameters of heads that only training uses."""
        if not self.auxiliary:
            return []
        return [*self.conv_out16.parameters(), *self.conv_out32.parameters()]

    def last_layer(self) -> nn.Module:
        """The classifier's 1x1 convolution."""
        return self.conv_out.conv_out

    def _head_weights(self) -> tuple[int, Tensor | None, Tensor | None]:
        return 8, None, None
