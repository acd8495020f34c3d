"""What the four networks share: input normalisation, the head, the IsoMax+ transform."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.errors import UsageError
from edgeseg.networks.structure import Structure
from edgeseg.scoring.head import Head, HeadKind
from edgeseg.scoring.head import IsoMaxPlus as IsoMaxPlusHead

if TYPE_CHECKING:
    from typing import Self

__all__ = ["IsoMaxPlus", "Network", "Normalise", "upsample_bilinear"]


class Normalise(nn.Module):
    """(x - mean) / std per channel of an RGB input in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # Not persistent: the structure holds the numbers, published checkpoints do not.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to the same shape."""
        return (x - self.mean) / self.std


class IsoMaxPlus(nn.Module):
    """logit_c = -|d_s| * |f_c - p_c| (Macedo & Ludermir 2022, equation 6, one scalar a class)."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(num_outputs))
        self.distance_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        return -self.distance_scale.abs() * (x - self.prototypes.view(1, -1, 1, 1)).abs()


class Network(nn.Module):
    """A segmentation network in two parts: ``forward(x) == head(body(x))``.

    The head is the last linear upsampling (and the IsoMax+ transform, where there is one); it is
    what :class:`edgeseg.scoring.head.Head` computes from the body's features.
    """

    structure_class: ClassVar[type[Structure]]
    head_kind: ClassVar[HeadKind]
    size_divisor: ClassVar[int] = 8
    """Both sides of the input must be divisible by it."""
    auxiliary_strides: ClassVar[tuple[int, ...]] = ()
    """Input pixels per logit of each auxiliary head of :meth:`forward_train`."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        structure.check()
        self.normalise: nn.Module = nn.Identity()
        if structure.mean is not None and structure.std is not None:
            self.normalise = Normalise(structure.mean, structure.std)
        self.isomax = IsoMaxPlus(structure.num_outputs) if structure.isomax else None
        self._structure = structure
        self.provenance: dict[str, str] = {}
        """``weights_name`` and ``license`` of the weights, where they were loaded."""

    @classmethod
    def from_dict(cls, structure: Mapping[str, Any]) -> "Self":
        """A network of the structure that a JSON document describes."""
        return cls(cls.structure_class.from_dict(structure))

    @property
    def structure(self) -> Structure:
        """The numbers that this network was built from."""
        return self._structure

    def body(self, x: Tensor) -> Tensor:
        """Features that the head takes.

        Args:
            x: float RGB ``[N, 3, H, W]`` in [0, 1]; H and W divisible by ``size_divisor``.
        """
        raise NotImplementedError

    def upsample(self, features: Tensor) -> Tensor:
        """The linear part of the head: features to ``[N, C, H, W]``."""
        raise NotImplementedError

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Parameters of heads that only training uses."""
        return []

    def head(self, features: Tensor) -> Tensor:
        """Features to logits ``[N, C, H, W]``."""
        return self.logits_at(features, 1, (0, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, C, H, W]`` of a float RGB input ``[N, 3, H, W]`` in [0, 1]."""
        return self.head(self.body(x))

    def upsample_sparse(self, features: Tensor, stride: int, phase: tuple[int, int]) -> Tensor:
        """:meth:`upsample` on every ``stride``-th row and column from ``phase`` on.

        Bilinear heads give the coarser grid's own pixel centres instead, half a pixel away.
        """
        logits = self.upsample(features)
        return logits if stride == 1 else logits[..., phase[0] :: stride, phase[1] :: stride]

    def forward_train(
        self, x: Tensor, stride: int = 1, phase: tuple[int, int] = (0, 0)
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits, and those of the auxiliary heads at the resolution of their features.

        Args:
            x: float RGB ``[N, 3, H, W]`` in [0, 1].
            stride: the logits are ``[N, C, H / stride, W / stride]``: a loss over all pixels
                takes a fifth of a step's time on a CPU, and neighbours say the same.
            phase: first row and column of that grid.
        """
        return self.logits_at(self.body(x), stride, phase), []

    def forward_encoder(self, x: Tensor) -> Tensor:
        """Logits of the encoder's own classifier, for networks that train it first."""
        raise UsageError(
            f"{self.structure.network} has no classifier on its encoder; train all of it"
        )

    def last_layer(self) -> nn.Module:
        """The layer that gives the outputs; what a void class is taught to alone."""
        raise NotImplementedError

    def logits_at(self, features: Tensor, stride: int, phase: tuple[int, int]) -> Tensor:
        """The head on a sparser grid, see :meth:`upsample_sparse`."""
        return self.distances(self.upsample_sparse(features, stride, phase))

    def distances(self, outputs: Tensor) -> Tensor:
        """The IsoMax+ transform, where the network has one; the outputs themselves otherwise."""
        return outputs if self.isomax is None else self.isomax(outputs)

    def head_spec(self) -> Head:
        """The head as numpy weights, for the kernels and the bundle."""
        isomax = None
        if self.isomax is not None:
            isomax = IsoMaxPlusHead(
                float(self.isomax.distance_scale.detach().abs()),
                self.isomax.prototypes.detach().float().cpu().numpy().copy(),
            )
        factor, weight, bias = self._head_weights()
        return Head(
            kind=self.head_kind if factor > 1 else "identity",
            num_outputs=self.structure.num_outputs,
            num_known=self.structure.num_known,
            void_index=self.structure.void_index,
            factor=factor,
            weight=None if weight is None else _array(weight),
            bias=None if bias is None else _array(bias),
            isomax=isomax,
        )

    def _head_weights(self) -> tuple[int, Tensor | None, Tensor | None]:
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """Raise UsageError where the network cannot take frames of this size, in pixels."""
        d = self.size_divisor
        if height <= 0 or width <= 0 or height % d or width % d:
            raise UsageError(
                f"size {height}x{width} does not fit {self.structure.network}: it halves the "
                f"frame, so both sides must be divisible by {d}"
            )


def upsample_bilinear(x: Tensor, factor: int) -> Tensor:
    """Bilinear, align_corners=False."""
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


def _array(tensor: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy().copy()
