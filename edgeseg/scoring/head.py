"""The head: a network's last linear upsampling, and what follows it.

A bundle parts every network into a body (run by an inference engine) and a head (run by our
kernels), because the logits of a 512x1024 frame are 42 MB and the class map with a float16 score
is 1.5 MB. :class:`Head` is the definition in numpy; ``native`` is the C kernel for it and
``onnx_head`` the same in standard ONNX operators.

Features and logits are channel-first here, ``[C, h, w]``; ``layout`` says how the body hands
them over.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError

__all__ = ["HEAD_KINDS", "Head", "HeadKind", "IsoMaxPlus", "Layout"]

Float32 = npt.NDArray[np.float32]
HeadKind = Literal["deconv2x2", "deconv3x3", "bilinear", "identity"]
Layout = Literal["nchw", "nhwc"]
HEAD_KINDS: Final[tuple[HeadKind, ...]] = ("deconv2x2", "deconv3x3", "bilinear", "identity")


@dataclass(frozen=True, slots=True)
class IsoMaxPlus:
    """IsoMax+ adapted to dense prediction: logit_c = -|d_s| * |f_c - p_c|.

    Macedo & Ludermir 2022, "Enhanced Isotropy Maximization Loss", equation 6, with one scalar
    prototype per class. It follows the upsampling and does not commute with it.
    """

    distance_scale: float
    prototypes: Float32
    """``[C_out]``."""


@dataclass(frozen=True, slots=True)
class Head:
    """What turns the body's features into logits at the frame's resolution.

    ==========  ======================================================================  ======
    kind        operation                                                               factor
    ==========  ======================================================================  ======
    deconv2x2   ConvTranspose2d, kernel 2, stride 2                                     2
    deconv3x3   ConvTranspose2d, kernel 3, stride 2, padding 1, output padding 1        2
    bilinear    bilinear resize, align_corners=False, of features that are logits       any
    identity    nothing: the features are the logits                                    1
    ==========  ======================================================================  ======
    """

    kind: HeadKind
    num_outputs: int
    num_known: int
    void_index: int | None
    factor: int = 2
    weight: Float32 | None = field(default=None, repr=False)
    """``[C_in, C_out, k, k]`` as torch's ConvTranspose2d has it; ``None`` for the other kinds."""
    bias: Float32 | None = field(default=None, repr=False)
    """``[C_out]``."""
    isomax: IsoMaxPlus | None = None
    layout: Layout = "nchw"

    def __post_init__(self) -> None:
        if self.kind not in HEAD_KINDS:
            raise ArtefactError(
                f"head kind '{self.kind}' is unknown; this version knows {', '.join(HEAD_KINDS)}"
            )
        if self.layout not in ("nchw", "nhwc"):
            raise ArtefactError(f"head layout '{self.layout}' is neither nchw nor nhwc")
        if not 0 < self.num_known <= self.num_outputs <= 64:
            raise ArtefactError(
                f"head has {self.num_outputs} outputs and {self.num_known} known classes; "
                "at most 64 outputs, of which at least one known, can be scored"
            )
        if self.void_index is not None and not self.num_known <= self.void_index < self.num_outputs:
            raise ArtefactError(
                f"head puts void at output {self.void_index}, which is a known class or "
                f"outside its {self.num_outputs} outputs"
            )
        kernel = {"deconv2x2": 2, "deconv3x3": 3}.get(self.kind)
        if kernel is None:
            if self.weight is not None or self.bias is not None:
                raise ArtefactError(f"a {self.kind} head has no weights, but some were given")
            if not (1 <= self.factor <= 32) or (self.kind == "identity" and self.factor != 1):
                raise ArtefactError(f"a {self.kind} head cannot upsample by {self.factor}")
        else:
            if self.factor != 2:
                raise ArtefactError(f"a {self.kind} head upsamples by 2, not by {self.factor}")
            if self.weight is None or self.bias is None:
                raise ArtefactError(f"a {self.kind} head needs a weight and a bias")
            channels = self.weight.shape[0] if self.weight.ndim == 4 else "C_in"
            expected = (channels, self.num_outputs, kernel, kernel)
            fits = self.weight.shape == expected and self.bias.shape == (self.num_outputs,)
            if not fits or not self.weight.size:
                raise ArtefactError(
                    f"a {self.kind} head with {self.num_outputs} outputs needs weights "
                    f"{expected} and a bias ({self.num_outputs},), not {self.weight.shape} and "
                    f"{self.bias.shape}"
                )
        if self.isomax is not None and self.isomax.prototypes.shape != (self.num_outputs,):
            raise ArtefactError(
                f"IsoMax+ needs one prototype per output ({self.num_outputs}), "
                f"not {self.isomax.prototypes.shape}"
            )

    @property
    def channels_in(self) -> int:
        """Channels of the features."""
        return self.num_outputs if self.weight is None else int(self.weight.shape[0])

    def channel_first(self, features: npt.ArrayLike) -> Float32:
        """Features in this head's ``layout`` (batch axis of 1 optional) as ``[C, h, w]``."""
        f = np.asarray(features, dtype=np.float32)
        if f.ndim == 4:
            f = f[0]
        return np.ascontiguousarray(f.transpose(2, 0, 1)) if self.layout == "nhwc" else f

    def logits(self, features: npt.ArrayLike) -> Float32:
        """Logits at full resolution.

        Args:
            features: float32 ``[C_in, h, w]``.

        Returns:
            float32 ``[num_outputs, h * factor, w * factor]``.
        """
        f = np.asarray(features, dtype=np.float32)
        if f.ndim != 3 or f.shape[0] != self.channels_in:
            raise ArtefactError(
                f"the {self.kind} head needs features [{self.channels_in}, h, w], not {f.shape}"
            )
        if self.kind == "deconv2x2":
            out = self._deconv2x2(f)
        elif self.kind == "deconv3x3":
            out = self._deconv3x3(f)
        elif self.kind == "bilinear":
            out = upsample_bilinear(f, self.factor)
        else:
            out = f
        if self.isomax is not None:
            distance = np.abs(out - self.isomax.prototypes[:, None, None])
            out = -abs(np.float32(self.isomax.distance_scale)) * distance
        return out

    def _deconv2x2(self, f: Float32) -> Float32:
        assert self.weight is not None
        assert self.bias is not None
        _, h, w = f.shape
        phases = np.einsum("ihw,iokl->ohkwl", f, self.weight, optimize=True)
        out = phases.reshape(self.num_outputs, 2 * h, 2 * w) + self.bias[:, None, None]
        return np.asarray(out, dtype=np.float32)

    def _deconv3x3(self, f: Float32) -> Float32:
        # Output row r = 2 i - 1 + k receives input row i through kernel row k, so even rows see
        # one input row (k = 1) and odd rows two (k = 2 of the row above, k = 0 of the one below).
        assert self.weight is not None
        assert self.bias is not None
        _, h, w = f.shape
        canvas = np.zeros((self.num_outputs, 2 * h + 2, 2 * w + 2), dtype=np.float32)
        for k in range(3):
            for m in range(3):
                tap = np.einsum("ihw,io->ohw", f, self.weight[:, :, k, m], optimize=True)
                canvas[:, k : k + 2 * h : 2, m : m + 2 * w : 2] += tap
        out = canvas[:, 1 : 2 * h + 1, 1 : 2 * w + 1] + self.bias[:, None, None]
        return np.asarray(out, dtype=np.float32)


def upsample_bilinear(f: Float32, factor: int) -> Float32:
    """Bilinear upsampling by an integer factor, align_corners=False, edges clamped.

    Source coordinate of output pixel x: max((x + 0.5) / factor - 0.5, 0), as torch's
    ``interpolate`` and ONNX ``Resize`` with ``half_pixel`` compute it.
    """
    _, h, w = f.shape
    y0, y1, ty = _taps(h, factor)
    x0, x1, tx = _taps(w, factor)
    # Infinite features become NaN next to them, which the scorers take for what it is.
    with np.errstate(invalid="ignore"):
        rows = f[:, y0] * (1 - ty)[None, :, None] + f[:, y1] * ty[None, :, None]
        out = rows[:, :, x0] * (1 - tx) + rows[:, :, x1] * tx
    return np.asarray(out, dtype=np.float32)


def _taps(size: int, factor: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Float32]:
    position = np.maximum((np.arange(size * factor) + 0.5) / factor - 0.5, 0.0)
    low = np.floor(position).astype(np.intp)
    high = np.minimum(low + 1, size - 1)
    return low, high, (position - low).astype(np.float32)
