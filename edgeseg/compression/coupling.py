"""Which channels of a network stand and fall together.

A channel cannot be taken out of one convolution alone: what a residual addition, a product or an
unpooling joins must keep the same channels, and what a convolution wrote its readers read. Here a
network is a list of :class:`Step` over wires (the tensors between layers, seen as lists of
channels). Every convolution makes new channels, what joins two wires makes them one, and what is
left are **classes**: channels that only go together. Classes that the same layers write and read
form a :class:`Group`, from which any number can be taken (the dependency graph of Fang et al. 2023,
"DepGraph: Towards Any Structural Pruning", CVPR, with rules of our own).

:mod:`edgeseg.compression.topology` says what the steps of each network are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NewType

import numpy as np
import numpy.typing as npt
from torch import nn

from edgeseg.networks.base import Network

__all__ = ["Convolution", "Coupling", "Flow", "Group", "Kind", "Step", "Wire"]

Convolution = nn.Conv2d | nn.ConvTranspose2d
Wire = NewType("Wire", int)
"""Number of a tensor between two layers."""
Kind = Literal[
    "input", "conv", "norm", "relu", "prelu", "sigmoid", "spatial", "add", "multiply", "concat",
    "pad", "unpool", "output",
]  # fmt: skip
Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Step:
    """What gives a wire."""

    kind: Kind
    module: str
    """Name of the layer in the network; empty where it has no weights."""
    inputs: tuple[Wire, ...]
    output: Wire
    """For ``output``, which gives nothing, its input."""


@dataclass(frozen=True, slots=True)
class Group:
    """Classes of channels that the same layers write and read: any of them can go."""

    name: str
    """The first convolution that writes them."""
    classes: Indices
    """Numbers of its classes, in the order of the channels."""
    writers: tuple[str, ...]
    """All convolutions that write them; a class is one filter of each."""
    home: Wire
    """The narrowest wire with all of them that a convolution reads."""
    training_only: bool
    """Whether only an auxiliary head has them."""

    @property
    def filters(self) -> int:
        """Convolution filters that make up one class."""
        return len(self.writers)


class Flow:
    """Collects the steps of a network; :meth:`coupling` closes it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._modules = dict(network.named_modules())
        self._steps: list[Step] = []
        self._wires: list[Indices] = []
        self._parent: list[int] = []
        self._fixed: list[int] = []

    def input(self) -> Wire:
        """The frame, whose three channels stay."""
        x = self._step("input", (), self._new(3))
        self._fixed.extend(self._wires[x].tolist())
        return x

    def conv(self, name: str, x: Wire) -> Wire:
        """A convolution or transposed convolution."""
        layer = self._module(name)
        assert isinstance(layer, Convolution), name
        assert layer.groups == 1, name
        assert layer.in_channels == len(self._wires[x]), name
        return self._step("conv", (x,), self._new(layer.out_channels), name)

    def norm(self, name: str, x: Wire) -> Wire:
        """A BatchNorm."""
        layer = self._module(name)
        assert isinstance(layer, nn.BatchNorm2d), name
        assert layer.num_features == len(self._wires[x]), name
        return self._step("norm", (x,), self._wires[x], name)

    def relu(self, x: Wire) -> Wire:
        """ReLU."""
        return self._step("relu", (x,), self._wires[x])

    def prelu(self, name: str, x: Wire) -> Wire:
        """PReLU with one slope or a slope for every channel; ReLU where the network has that."""
        layer = self._module(name)
        if isinstance(layer, nn.ReLU):
            return self.relu(x)
        if isinstance(layer, nn.Identity):
            return x
        assert isinstance(layer, nn.PReLU), name
        return self._step("prelu", (x,), self._wires[x], name)

    def sigmoid(self, x: Wire) -> Wire:
        """Sigmoid."""
        return self._step("sigmoid", (x,), self._wires[x])

    def spatial(self, x: Wire) -> Wire:
        """Max-pooling, global average or resizing: a constant channel stays that constant."""
        return self._step("spatial", (x,), self._wires[x])

    def add(self, a: Wire, b: Wire) -> Wire:
        """Sum."""
        return self._join("add", a, b)

    def multiply(self, a: Wire, b: Wire) -> Wire:
        """Product."""
        return self._join("multiply", a, b)

    def unpool(self, x: Wire, chosen_by: Wire) -> Wire:
        """Unpooling of ``x`` to where the maxima of ``chosen_by`` were."""
        return self._join("unpool", x, chosen_by)

    def concat(self, *parts: Wire) -> Wire:
        """Concatenation along the channels."""
        return self._step("concat", parts, np.concatenate([self._wires[p] for p in parts]))

    def pad(self, x: Wire, width: int) -> Wire:
        """Zeros appended up to ``width`` channels."""
        zeros = self._new(width - len(self._wires[x]))
        return self._step("pad", (x,), np.concatenate([self._wires[x], zeros]))

    def output(self, x: Wire) -> None:
        """Logits, of the network or of an auxiliary head; they stay."""
        self._fixed.extend(self._wires[x].tolist())
        self._steps.append(Step("output", "", (x,), x))

    def coupling(self, training_only: Sequence[str] = ()) -> "Coupling":
        """The classes; ``training_only`` are names of the auxiliary heads."""
        roots = np.array([self._root(i) for i in range(len(self._parent))], np.intp)
        order, dense = np.unique(roots, return_inverse=True)
        fixed = np.zeros(len(order), bool)
        fixed[dense[self._fixed]] = True
        wires = tuple(dense[w] for w in self._wires)
        return Coupling(tuple(self._steps), wires, fixed, tuple(training_only))

    def _module(self, name: str) -> nn.Module:
        layer: nn.Module = self._modules[name]
        return layer

    def _new(self, count: int) -> Indices:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def _step(self, kind: Kind, inputs: tuple[Wire, ...], ids: Indices, module: str = "") -> Wire:
        wire = Wire(len(self._wires))
        self._wires.append(ids)
        self._steps.append(Step(kind, module, inputs, wire))
        return wire

    def _join(self, kind: Kind, a: Wire, b: Wire) -> Wire:
        assert len(self._wires[a]) == len(self._wires[b]), self._steps[-1]
        for i, j in zip(self._wires[a].tolist(), self._wires[b].tolist(), strict=True):
            # The older one leads, so that classes come in the order of the network.
            first, second = sorted((self._root(i), self._root(j)))
            self._parent[second] = first
        return self._step(kind, (a, b), self._wires[a])

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i


@dataclass(frozen=True, eq=False)
class Coupling:
    """The closed description of a network."""

    steps: tuple[Step, ...]
    wires: tuple[Indices, ...]
    """Of every wire, the classes of its channels, in order."""
    fixed: Mask
    """Per class: the input's channels and the outputs, which stay."""
    training_only: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.fixed)

    @cached_property
    def convolutions(self) -> tuple[Step, ...]:
        """The steps that have filters."""
        return tuple(s for s in self.steps if s.kind == "conv")

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All groups whose channels are not fixed, in the order of the network."""
        layers: list[list[tuple[str, int]]] = [[] for _ in range(self.num_classes)]
        for step in self.convolutions:
            for role, wire in enumerate((step.output, step.inputs[0])):
                for c in np.unique(self.wires[wire]).tolist():
                    layers[c].append((step.module, role))
        members: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for c in np.flatnonzero(~self.fixed).tolist():
            members.setdefault(tuple(layers[c]), []).append(c)
        return tuple(self._group(key, classes) for key, classes in members.items())

    @cached_property
    def filters(self) -> npt.NDArray[np.intp]:
        """Per class, how many convolution filters write it."""
        count = np.zeros(self.num_classes, np.intp)
        for step in self.convolutions:
            count[self.wires[step.output]] += 1
        return count

    def _group(self, layers: Sequence[tuple[str, int]], classes: Sequence[int]) -> Group:
        writers = tuple(module for module, role in layers if role == 0)
        read = [s.inputs[0] for s in self.convolutions if (s.module, 1) in layers]
        return Group(
            name=writers[0],
            classes=np.array(classes, np.intp),
            writers=writers,
            home=min(read, key=lambda wire: len(self.wires[wire])),
            training_only=any(writers[0].startswith(f"{part}.") for part in self.training_only),
        )
