"""ERFNet (Romera et al. 2018, "ERFNet: Efficient Residual Factorized ConvNet for Real-Time
Semantic Segmentation", IEEE T-ITS 19(1), table I).

Layers 1-16 are the encoder, 17-23 the decoder. Names follow the reference implementation, so its
checkpoints load without renaming.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.errors import UsageError
from edgeseg.networks.base import Network
from edgeseg.networks.structure import Structure

__all__ = ["ERFNet", "ERFNetStructure"]

BN_EPS: Final = 1e-3

Inner = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ERFNetStructure(Structure):
    """Channel counts of an ERFNet.

    A stream is what residual blocks add to, so all blocks of a stage share its width. Inside a
    block the first three convolutions are free; the fourth writes the stream.
    """

    network: ClassVar[str] = "erfnet"

    initial: int = 16
    """Stream at 1/2; a downsampler's pooled input is part of its output."""
    stage1: int = 64
    """Stream at 1/4."""
    stage2: int = 128
    """Stream at 1/8."""
    decoder1: int = 64
    """Decoder's stream at 1/4."""
    decoder2: int = 16
    """Decoder's stream at 1/2; what the head takes."""
    stage1_inner: tuple[Inner, ...] = ((64, 64, 64),) * 5
    """Per block: channels after its first 3x1, its first 1x3 and its second 3x1 convolution."""
    stage2_inner: tuple[Inner, ...] = ((128, 128, 128),) * 8
    decoder1_inner: tuple[Inner, ...] = ((64, 64, 64),) * 2
    decoder2_inner: tuple[Inner, ...] = ((16, 16, 16),) * 2
    auxiliary: bool = True
    """Whether the encoder's own classifier is there; only training uses it."""

    def check(self) -> None:
        """Raise ArtefactError where the widths do not fit together."""
        Structure.check(self)
        self._require(
            3 < self.initial < self.stage1 < self.stage2,
            f"a downsampler adds channels to those it pools, but the widths are 3, "
            f"{self.initial}, {self.stage1}, {self.stage2}",
        )


class DownsamplerBlock(nn.Module):
    """A strided 3x3 convolution beside a 2x2 max-pooling."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out - c_in, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2, stride=2)
        self.bn = nn.BatchNorm2d(c_out, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(torch.cat([self.conv(x), self.pool(x)], dim=1)))


class NonBottleneck1D(nn.Module):
    """Two 3x3 convolutions, each factorized into 3x1 and 1x3; the second pair is dilated."""

    def __init__(self, width: int, inner: Inner, dropout: float, dilation: int) -> None:
        super().__init__()
        a, b, c = inner
        d = dilation
        self.conv3x1_1 = nn.Conv2d(width, a, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(a, b, (1, 3), padding=(0, 1))
        self.bn1 = nn.BatchNorm2d(b, eps=BN_EPS)
        self.conv3x1_2 = nn.Conv2d(b, c, (3, 1), padding=(d, 0), dilation=(d, 1))
        self.conv1x3_2 = nn.Conv2d(c, width, (1, 3), padding=(0, d), dilation=(1, d))
        self.bn2 = nn.BatchNorm2d(width, eps=BN_EPS)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv3x1_1(x))
        y = F.relu(self.bn1(self.conv1x3_1(y)))
        y = F.relu(self.conv3x1_2(y))
        y = self.dropout(self.bn2(self.conv1x3_2(y)))
        return F.relu(y + x)


class UpsamplerBlock(nn.Module):
    """A strided transposed convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(c_in, c_out, 3, stride=2, padding=1, output_padding=1)
        self.bn = nn.BatchNorm2d(c_out, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Encoder(nn.Module):
    """Layers 1-16 of table I; features at 1/8."""

    def __init__(self, s: ERFNetStructure) -> None:
        super().__init__()
        self.initial_block = DownsamplerBlock(3, s.initial)
        layers: list[nn.Module] = [DownsamplerBlock(s.initial, s.stage1)]
        layers += [NonBottleneck1D(s.stage1, inner, 0.03, 1) for inner in s.stage1_inner]
        layers += [DownsamplerBlock(s.stage1, s.stage2)]
        layers += [
            NonBottleneck1D(s.stage2, inner, 0.3, dilation)
            for inner, dilation in zip(s.stage2_inner, (2, 4, 8, 16) * 2, strict=True)
        ]
        self.layers = nn.Sequential(*layers)
        if s.auxiliary:
            self.output_conv = nn.Conv2d(s.stage2, s.num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.initial_block(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Layers 17-22 of table I, and 23 (``output_conv``), which is the head."""

    def __init__(self, s: ERFNetStructure) -> None:
        super().__init__()
        layers: list[nn.Module] = [UpsamplerBlock(s.stage2, s.decoder1)]
        layers += [NonBottleneck1D(s.decoder1, inner, 0.0, 1) for inner in s.decoder1_inner]
        layers += [UpsamplerBlock(s.decoder1, s.decoder2)]
        layers += [NonBottleneck1D(s.decoder2, inner, 0.0, 1) for inner in s.decoder2_inner]
        self.layers = nn.Sequential(*layers)
        self.output_conv = nn.ConvTranspose2d(s.decoder2, s.num_outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class ERFNet(Network):
    """2,066,836 parameters at 20 outputs, the encoder's classifier (2,580) included."""

    structure_class = ERFNetStructure
    head_kind = "deconv2x2"
    auxiliary_strides = (8,)

    def __init__(self, structure: ERFNetStructure | None = None) -> None:
        s = structure or ERFNetStructure()
        super().__init__(s)
        self.encoder = Encoder(s)
        self.decoder = Decoder(s)
        self.auxiliary = s.auxiliary

    def body(self, x: Tensor) -> Tensor:
        """Features ``[N, 16, H / 2, W / 2]``."""
        return self.decoder(self.encoder(self.normalise(x)))  # type: ignore[no-any-return]

    def upsample(self, features: Tensor) -> Tensor:
        """The last transposed convolution: ``[N, C, H, W]``."""
        return self.decoder.output_conv(features)  # type: ignore[no-any-return]

    def upsample_sparse(self, features: Tensor, stride: int, phase: tuple[int, int]) -> Tensor:
        """One tap of the transposed convolution is a 1x1 convolution."""
        if stride != 2:
            return super().upsample_sparse(features, stride, phase)
        conv = self.decoder.output_conv
        tap = conv.weight[:, :, phase[0], phase[1]].t()[:, :, None, None]
        return F.conv2d(features, tap, conv.bias)

    def forward_train(
        self, x: Tensor, stride: int = 1, phase: tuple[int, int] = (0, 0)
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the encoder's at 1/8."""
        features = self.encoder(self.normalise(x))
        logits = self.logits_at(self.decoder(features), stride, phase)
        if not self.auxiliary:
            return logits, []
        return logits, [self.distances(self.encoder.output_conv(features))]

    def forward_encoder(self, x: Tensor) -> Tensor:
        """The encoder's logits at 1/8; the reference trains the encoder on them first."""
        if not self.auxiliary:
            raise UsageError("this erfnet has no classifier on its encoder; train all of it")
        return self.distances(self.encoder.output_conv(self.encoder(self.normalise(x))))

    def last_layer(self) -> nn.Module:
        """Layer 23."""
        return self.decoder.output_conv

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Parameters of heads that only training uses."""
        return list(self.encoder.output_conv.parameters()) if self.auxiliary else []

    def _head_weights(self) -> tuple[int, Tensor | None, Tensor | None]:
        conv = self.decoder.output_conv
        return 2, conv.weight, conv.bias
