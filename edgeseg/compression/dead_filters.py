"""Filters that do not matter, found exactly.

Weight decay drives filters to zero. Such a filter gives the same number at every pixel, and what
follows it keeps that up: BatchNorm, activation, pooling, and a residual block that adds another
constant. :func:`find_dead` carries these numbers through the network. A class of channels is
**dead**, and can go without a change of any output, if every convolution that reads it either

- multiplies it by zero; or
- reads a zero; or
- reads the constant where no padding can reach it, so that ``weight x constant`` is a number too,
  which moves into the bias (or the running mean of the BatchNorm behind).

What cannot go exactly is a constant other than zero under a padded kernel: the border sees zeros
and the inside the constant, and no bias is both. The same holds behind transposed convolutions
and unpooling, whose pixels differ by their phase. Two published ERFNets have 1199 and 1017 filters
of zeros; 1128 and 961 of them go exactly, the others write to channels that other filters use, and
none is held by a border.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from edgeseg.compression.coupling import Convolution, Coupling, Mask, Step
from edgeseg.networks.base import Network

__all__ = ["Dead", "Floats", "find_dead", "folded", "norm_behind"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dead:
    """What was found."""

    classes: Mask
    """Per class of the coupling: whether it goes without a change of any output."""
    constants: tuple[Floats, ...]
    """Of every wire, the number that each channel has at all pixels; NaN where it varies."""
    filters: int
    """All convolution filters of the network."""
    removable: int
    """Those that belong to dead classes."""
    zero: int
    """Filters of which every weight is zero."""
    zero_removable: int
    """Those of them that belong to dead classes."""
    zero_border: int
    """Those that stay because padding meets their constant, though it is one everywhere."""

    @property
    def zero_shared(self) -> int:
        """Those that stay because other filters write to their channels, and vary."""
        return self.zero - self.zero_removable - self.zero_border


def find_dead(network: Network, coupling: Coupling) -> Dead:
    """Dead classes of a network in eval mode; ``coupling`` is its own.

    Heads that only training has are left as they are.
    """
    modules = dict(network.named_modules())
    constants = _constants(coupling, modules)
    candidates = np.zeros(coupling.num_classes, bool)
    for group in coupling.groups:
        candidates[group.classes] = not group.training_only
    dead = _exactly_removable(coupling, modules, constants, candidates)
    zero = np.zeros(coupling.num_classes, np.intp)
    for step in coupling.convolutions:
        filters = ~_weight(modules[step.module]).any(axis=(1, 2, 3))
        np.add.at(zero, coupling.wires[step.output], filters)
    varies = np.zeros(coupling.num_classes, bool)
    for wire, values in zip(coupling.wires, constants, strict=True):
        varies[wire[np.isnan(values)]] = True
    return Dead(
        classes=dead,
        constants=constants,
        filters=int(coupling.filters.sum()),
        removable=int(coupling.filters[dead].sum()),
        zero=int(zero.sum()),
        zero_removable=int(zero[dead].sum()),
        zero_border=int(zero[~dead & ~varies].sum()),
    )


def folded(layer: nn.Module, constants: Floats, removed: Mask) -> Floats:
    """What the constants of removed input channels add to each filter's output.

    Exact for dead classes. Of other constants the value inside the frame counts, and the border
    gets it too.

    Args:
        layer: a convolution.
        constants: of its input channels, ``[C_in]``.
        removed: which of them go, bool ``[C_in]``.

    Returns:
        float64 ``[C_out]``.
    """
    assert isinstance(layer, Convolution)
    added = _contributions(layer, constants)
    if isinstance(layer, nn.Conv2d):
        inside = _weight(layer).sum(axis=(2, 3)) * constants
        added = np.where(np.isnan(added), inside, added)
    return np.asarray(np.nan_to_num(added[:, removed]).sum(axis=1))


def norm_behind(coupling: Coupling, conv: Step) -> Step | None:
    """The BatchNorm that alone takes what a convolution gives."""
    takers = [s for s in coupling.steps if conv.output in s.inputs]
    return takers[0] if len(takers) == 1 and takers[0].kind == "norm" else None


def _weight(layer: nn.Module) -> Floats:
    """``[C_out, C_in, kH, kW]``."""
    assert isinstance(layer, Convolution)
    weight = layer.weight.detach().cpu().double().numpy()
    return weight.swapaxes(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight


def _array(tensor: Tensor | None, size: int) -> Floats:
    return np.zeros(size) if tensor is None else tensor.detach().cpu().double().numpy()


def _constants(coupling: Coupling, modules: Mapping[str, nn.Module]) -> tuple[Floats, ...]:
    values: list[Floats] = []
    for step in coupling.steps:
        if step.kind == "output":
            continue
        given = [values[i] for i in step.inputs]
        width = len(coupling.wires[step.output])
        layer = modules[step.module] if step.module else None
        if step.kind == "input":
            out = np.full(width, np.nan)
        elif step.kind == "conv":
            assert isinstance(layer, Convolution)
            out = _array(layer.bias, width) + _contributions(layer, given[0]).sum(axis=1)
        elif step.kind == "norm":
            assert isinstance(layer, nn.BatchNorm2d)
            out = _normalised(layer, given[0])
        elif step.kind == "relu":
            out = np.maximum(given[0], 0)
        elif step.kind == "prelu":
            assert isinstance(layer, nn.PReLU)
            out = np.where(given[0] < 0, _array(layer.weight, 1) * given[0], given[0])
        elif step.kind == "sigmoid":
            out = 1 / (1 + np.exp(-given[0]))
        elif step.kind == "add":
            out = given[0] + given[1]
        elif step.kind == "multiply":
            out = np.where((given[0] == 0) | (given[1] == 0), 0.0, given[0] * given[1])
        elif step.kind == "concat":
            out = np.concatenate(given)
        elif step.kind == "pad":
            out = np.concatenate([given[0], np.zeros(width - len(given[0]))])
        elif step.kind == "unpool":
            # Three of four pixels are zero whatever the value is.
            out = np.where(given[0] == 0, 0.0, np.nan)
        else:
            out = given[0]
        values.append(out)
    return tuple(values)


def _contributions(layer: Convolution, x: Floats) -> Floats:
    """What each input channel adds to each filter's output, ``[C_out, C_in]``.

    NaN where that is not the same number at every pixel.
    """
    weight = _weight(layer)
    gain = np.full(weight.shape[:2], np.nan)
    if isinstance(layer, nn.Conv2d):
        steady = ~weight[:, :, ~_inside_taps(layer)].any(axis=2)
        gain[steady] = weight.sum(axis=(2, 3))[steady]
    gain[~weight.any(axis=(2, 3))] = 0.0
    # Zero times a channel that varies is zero too.
    return np.asarray(np.where((gain == 0) | (x == 0), 0.0, gain * x))


def _inside_taps(layer: nn.Conv2d) -> Mask:
    """Taps of the kernel that never fall outside the frame, bool ``[kH, kW]``.

    Tap t of row i reads row ``stride i + dilation t - padding``, and a frame's sides are multiples
    of the stride.
    """
    assert not isinstance(layer.padding, str)
    sides = []
    for k, d, p, s in zip(
        layer.kernel_size, layer.dilation, layer.padding, layer.stride, strict=True
    ):
        first = np.arange(k) * d - p
        sides.append((first >= 0) & (first < s))
    return np.outer(*sides)


def _normalised(layer: nn.BatchNorm2d, x: Floats) -> Floats:
    n = layer.num_features
    gain, shift = _array(layer.weight, n), _array(layer.bias, n)
    mean, variance = _array(layer.running_mean, n), _array(layer.running_var, n)
    scaled = gain / np.sqrt(variance + layer.eps) * (x - mean) + shift
    return np.asarray(np.where(gain == 0, shift, scaled))


def _exactly_removable(
    coupling: Coupling,
    modules: Mapping[str, nn.Module],
    constants: tuple[Floats, ...],
    candidates: Mask,
) -> Mask:
    """The largest set of classes that no filter outside the set needs."""
    needs = []
    for step in coupling.convolutions:
        layer = modules[step.module]
        assert isinstance(layer, Convolution)
        added = _contributions(layer, constants[step.inputs[0]])
        needed = np.isnan(added)
        if layer.bias is None and norm_behind(coupling, step) is None:
            needed |= added != 0  # there is no bias to move it to
        needs.append((coupling.wires[step.output], coupling.wires[step.inputs[0]], needed))
    dead = candidates.copy()
    # A class that stays may need others, which then stay too.
    while True:
        before = int(dead.sum())
        for written, read, needed in needs:
            dead[read[needed[~dead[written]].any(axis=0)]] = False
        if int(dead.sum()) == before:
            break
    # But a layer needs a channel.
    for group in coupling.groups:
        if dead[group.classes].all():
            dead[group.classes[0]] = False
    return dead
