"""What training minimises: one value per pixel, summed with class weights.

A loss is a base (cross-entropy, focal, OHEM) on a transform of the logits (plain, IsoMax+,
LogitNorm). Sums and their weights are kept apart: a batch that is split over micro-batches or
processes divides the total of the sums by the total of the weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.errors import UsageError
from edgeseg.taxonomy import IGNORE

if TYPE_CHECKING:
    from typing import Self

__all__ = ["LossSpec", "PixelLoss", "enet_class_weights", "erfnet_class_weights"]

Base = Literal["ce", "focal", "ohem"]
Transform = Literal["plain", "isomax", "logitnorm"]

BASES: dict[str, Base] = {base: base for base in get_args(Base)}
TRANSFORMS: dict[str, Transform] = {t: t for t in get_args(Transform) if t != "plain"}

# Added to the norm as sqrt(|f|^2 + eps^2). It bounds the gradient of f / |f| by 1 / eps where the
# published 1e-7 would let a head that starts at zero see 1e7; from |f| = 3 on, float32 does not
# tell the two apart.
NORM_EPSILON = 1e-3


@dataclass(frozen=True, slots=True)
class LossSpec:
    """Which loss, and its numbers.

    Example:
        >>> LossSpec.parse("isomax+focal", gamma=1.5).name
        'focal+isomax'
    """

    base: Base = "ce"
    transform: Transform = "plain"
    gamma: float = 2.0
    """Focal: how strongly pixels that are already right are played down; 0 is cross-entropy."""
    alpha: float = 1.0
    """Focal: factor of the loss."""
    entropic_scale: float = 10.0
    """IsoMax+: E_s, multiplies the logits in training and only there."""
    temperature: float = 0.04
    """LogitNorm: T; the scaled logits have the norm 1 / T."""
    ohem_threshold: float = 0.7
    """OHEM: a pixel is hard where the probability of its class is lower."""
    ohem_min_kept: float = 1 / 16
    """OHEM: least share of the valid pixels that is kept."""

    def __post_init__(self) -> None:
        for name in ("alpha", "entropic_scale", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} of the loss is {getattr(self, name)}, must be above 0")
        if not 0 <= self.gamma < math.inf:
            raise UsageError(f"gamma of the focal loss is {self.gamma}, must not be negative")
        for name in ("ohem_threshold", "ohem_min_kept"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}, must be above 0 and at most 1")

    @classmethod
    def parse(cls, text: str, **fields: float) -> "Self":
        """A loss from its name: a base, a transform, or both in any order with ``+`` between.

        Args:
            text: such as ``"ce"``, ``"isomax"`` (on cross-entropy) or ``"focal+logitnorm"``.
            fields: the numbers of the loss, by the names of the fields.

        Raises:
            UsageError: the text names no loss, or two bases or two transforms.
        """
        parts = [part.strip() for part in text.lower().split("+")]
        bases = [BASES[part] for part in parts if part in BASES]
        transforms = [TRANSFORMS[part] for part in parts if part in TRANSFORMS]
        known = len(bases) + len(transforms) == len(parts)
        if not known or len(bases) > 1 or len(transforms) > 1:
            raise UsageError(
                f"--loss {text}: give one of {', '.join(BASES)}, one of {', '.join(TRANSFORMS)}, "
                "or one of each joined by +, such as focal+isomax"
            )
        base: Base = bases[0] if bases else "ce"
        transform: Transform = transforms[0] if transforms else "plain"
        return cls(base, transform, **fields)

    @property
    def name(self) -> str:
        """The shortest text that :meth:`parse` turns into this base and transform."""
        if self.transform == "plain":
            return self.base
        return self.transform if self.base == "ce" else f"{self.base}+{self.transform}"


class PixelLoss(nn.Module):
    """The loss of a spec, summed over the pixels that have a label.

    With z the transformed logits of a pixel, t its label, w_t the weight of the label and
    p = softmax(z), the bases are

    - ``ce``: -w_t log p_t
    - ``focal``: -alpha w_t (1 - p_t)^gamma log p_t (Lin et al. 2017, equation 5)
    - ``ohem``: cross-entropy on the hard pixels alone, those with p_t < ``ohem_threshold``, or the
      hardest ``ohem_min_kept`` share if those are fewer (Shrivastava et al. 2016; per pixel as in
      BiSeNet, Yu et al. 2018). The weighted mean over them, times :meth:`weight`, is the sum.

    and the transforms of the network's logits f are

    - ``plain``: z = f
    - ``isomax``: z = E_s f, for networks whose f are the scaled distances -|d_s| |x_c - p_c|
      of :class:`edgeseg.networks.base.IsoMaxPlus` (Macedo & Ludermir 2022)
    - ``logitnorm``: z = f / (T |f|_2) (Wei et al. 2022, equation 5)

    Except for ``ohem``, which ranks the pixels that it is given, sums and weights of the parts of a
    batch add up to those of the batch.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        spec: LossSpec,
        num_outputs: int,
        class_weights: Tensor | None = None,
        ignore_index: int = IGNORE,
    ) -> None:
        """Args:
        spec: which loss.
        num_outputs: channels of the logits.
        class_weights: float ``[num_outputs]``, at least 0; None weighs every class 1.
        ignore_index: label of the pixels that count for nothing.
        """
        super().__init__()
        if class_weights is not None:
            class_weights = class_weights.detach().float().clone()
            if class_weights.shape != (num_outputs,) or not bool((class_weights >= 0).all()):
                raise ValueError(f"class weights must be {num_outputs} numbers, none negative")
        self.spec = spec
        self.num_outputs = num_outputs
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", class_weights, persistent=False)

    def weight(self, labels: Tensor) -> Tensor:
        """Sum of the class weights over the valid pixels, what :meth:`forward` is to be divided by.

        Args:
            labels: uint8 or int64 ``[N, H, W]``.

        Returns:
            A float32 scalar; 0 where every pixel is ignored (the loss is then 0 as well).
        """
        counts = torch.bincount(labels[labels != self.ignore_index], minlength=self.num_outputs)
        if counts.numel() > self.num_outputs:
            raise ValueError(f"label {counts.numel() - 1} with {self.num_outputs} outputs")
        if self.class_weights is None:
            return counts.sum().float()
        return (counts * self.class_weights).sum()

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted sum of the loss over the valid pixels.

        Args:
            logits: float ``[N, C, H, W]``, C as ``num_outputs``. Half precision is computed in
                float32, float64 stays.
            labels: uint8 or int64 ``[N, H, W]`` in [0, C), or ``ignore_index``.

        Returns:
            A scalar of the type that was computed in; 0, with a gradient of zeros, where every
            pixel is ignored.
        """
        if logits.shape[1] != self.num_outputs:
            raise ValueError(f"{logits.shape[1]} logits, the loss was made for {self.num_outputs}")
        z = self.transformed(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        labels = labels.long()
        if self.spec.base == "ce":
            weights = None if self.class_weights is None else self.class_weights.to(z.dtype)
            return F.cross_entropy(
                z, labels, weight=weights, ignore_index=self.ignore_index, reduction="sum"
            )
        # -log p_t; 0, with no gradient, at ignored pixels.
        loss = F.cross_entropy(z, labels, ignore_index=self.ignore_index, reduction="none")
        return self._focal(loss, labels) if self.spec.base == "focal" else self._ohem(loss, labels)

    def extra_repr(self) -> str:
        """The spec's name and the number of outputs."""
        return f"{self.spec.name}, num_outputs={self.num_outputs}"

    def transformed(self, logits: Tensor) -> Tensor:
        """What the softmax of the loss is taken of; the test-time softmax takes the logits."""
        if self.spec.transform == "isomax":
            return logits * self.spec.entropic_scale
        if self.spec.transform == "logitnorm":
            squared = logits.square().sum(1, keepdim=True)
            return logits * ((squared + NORM_EPSILON**2).rsqrt() / self.spec.temperature)
        return logits

    def _focal(self, loss: Tensor, labels: Tensor) -> Tensor:
        # The derivative of the power at 0 is infinite for a gamma below 1.
        wrong = (-torch.expm1(-loss)).clamp_min(torch.finfo(loss.dtype).tiny)
        focal = wrong.pow(self.spec.gamma) * loss
        if self.class_weights is not None:
            valid = labels.masked_fill(labels == self.ignore_index, 0)
            focal = focal * self.class_weights.to(loss.dtype)[valid]
        return self.spec.alpha * focal.sum()

    def _ohem(self, loss: Tensor, labels: Tensor) -> Tensor:
        valid = labels != self.ignore_index
        loss, targets = loss[valid], labels[valid]
        if not loss.numel():
            return loss.sum()
        kept = (loss.detach() > -math.log(self.spec.ohem_threshold)).nonzero().squeeze(1)
        least = max(1, int(self.spec.ohem_min_kept * loss.numel()))
        if kept.numel() < least:
            kept = loss.detach().topk(least, sorted=False).indices
        if self.class_weights is None:
            return loss[kept].mean() * loss.numel()
        weights = self.class_weights.to(loss.dtype)[targets]
        share = weights[kept] / weights[kept].sum().clamp_min(torch.finfo(loss.dtype).tiny)
        return (loss[kept] * share).sum() * weights.sum()


def enet_class_weights(
    pixel_counts: Sequence[int] | Tensor,
    c: float = 1.02,
    *,
    num_outputs: int | None = None,
    void_weight: float = 1.0,
    void_pixels: int = 0,
) -> Tensor:
    """Weights 1 / ln(c + p), p the share of a class among all pixels (Paszke et al. 2016).

    Args:
        pixel_counts: pixels of every known class, in the order of the outputs.
        c: bounds the weight of a rare class by 1 / ln(c), which is 50.5 for the published 1.02.
        num_outputs: length of the result; by default one more than there are known classes.
        void_weight: weight of the void output, the one behind the known classes.
        void_pixels: pixels of no known class, where they are to be part of all pixels.

    Returns:
        float32 ``[num_outputs]``.
    """
    counts = torch.as_tensor(pixel_counts).to("cpu", torch.float64)
    if counts.ndim != 1 or not bool((counts >= 0).all()) or not bool(counts.sum() > 0):
        raise ValueError("pixel counts must be one number a class, none negative and not all 0")
    if c <= 1:
        raise ValueError(f"c is {c}: at 1 or below, a class without pixels has no finite weight")
    known = len(counts)
    outputs = known + 1 if num_outputs is None else num_outputs
    if outputs not in (known, known + 1):
        raise ValueError(f"{known} known classes do not fit {outputs} outputs")
    weights = 1 / (c + counts / (counts.sum() + void_pixels)).log()
    void = weights.new_full((outputs - known,), void_weight)
    return torch.cat([weights, void]).float()


def erfnet_class_weights(
    pixel_counts: Sequence[int] | Tensor,
    *,
    encoder: bool = False,
    num_outputs: int | None = None,
    void_weight: float = 1.0,
    void_pixels: int = 0,
) -> Tensor:
    """:func:`enet_class_weights` with the c of ERFNet's training code (Romera et al. 2018).

    Its two tables for Cityscapes solve to c = 1.10 for the whole network and 1.20 for the encoder
    that is trained first, with shares that sum to 0.885: unlabelled pixels are among all pixels.
    Both give the void output 0.

    Args:
        pixel_counts: as there.
        encoder: whether the weights are for the encoder.
        num_outputs: as there.
        void_weight: as there.
        void_pixels: as there.

    Returns:
        float32 ``[num_outputs]``.
    """
    return enet_class_weights(
        pixel_counts,
        1.20 if encoder else 1.10,
        num_outputs=num_outputs,
        void_weight=void_weight,
        void_pixels=void_pixels,
    )
