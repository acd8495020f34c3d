"""A body as the list of layers that an engine runs, with what each computes and moves.

A layer is a convolution, pooling, concatenation … together with the additions and activations
that every engine fuses into it. Q/DQ pairs, casts and reshapes are no layers: they say in which
type a tensor lies in memory.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any, Final

from edgeseg.errors import UsageError
from edgeseg.profiling.shapes import ELEMENTWISE, ITEM_BYTES, Tensor

__all__ = ["CONVOLUTIONS", "Layer", "LayerGraph"]

CONVOLUTIONS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RESIZE_OPERATIONS: Final = 7
"""Per element of a bilinear resize: four multiplications and three additions."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One kernel. Element counts and shapes are those of the graph's tensors."""

    name: str
    op: str
    inputs: tuple[str, ...]
    """Activations that it reads."""
    output: str
    fused: tuple[str, ...] = ()
    """Operators that run in its registers."""
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    channels: tuple[int, int] = (0, 0)
    """In and out, of convolutions."""
    weights: int = 0
    """Elements of weights and biases."""
    weight_bytes: int = 0
    integer: bool = False
    """Whether its multiply-accumulates are of integers."""


@dataclass(frozen=True, slots=True)
class LayerGraph:
    """Layers in order of execution, and the activations between them."""

    layers: tuple[Layer, ...]
    tensors: dict[str, Tensor]
    """Of the frame size that the graph was written for."""
    frame: str
    features: str
    base_size: tuple[int, int]
    size: tuple[int, int]
    """The frame size that counts are of: height, width."""
    precision: str = "float32"
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Pixels of a frame over those of the size that the graph was written for."""
        return prod(self.size) / prod(self.base_size)

    def elements(self, tensor: str) -> int:
        """Elements of an activation at :attr:`size`."""
        t = self.tensors[tensor]
        return round(t.elements * self.ratio) if t.scales else t.elements

    def bytes_of(self, tensor: str) -> int:
        """Bytes of an activation in memory."""
        return self.elements(tensor) * ITEM_BYTES[self.tensors[tensor].dtype]

    def plane(self, tensor: str) -> tuple[int, ...]:
        """Shape of an activation at :attr:`size`, channels first; other ranks as they are."""
        t = self.tensors[tensor]
        if len(t.shape) != 4 or not t.scales or tensor == self.frame:
            return t.shape
        rows = round(t.shape[2] * self.size[0] / self.base_size[0])
        return (*t.shape[:2], rows, round(t.shape[3] * self.size[1] / self.base_size[1]))

    def macs(self, layer: Layer) -> int:
        """Multiply-accumulates. Taps that fall on padding are counted as if they were inside."""
        taps = prod(layer.kernel)
        if layer.op == "ConvTranspose":
            # Every input element meets every tap of the filters of its group once.
            return self.elements(layer.inputs[0]) * taps * layer.channels[1] // layer.groups
        if layer.op in CONVOLUTIONS:
            return self.elements(layer.output) * taps * layer.channels[0] // layer.groups
        return 0

    def operations(self, layer: Layer) -> int:
        """Operations that are not multiply-accumulates: one per element, operator and bias."""
        out = self.elements(layer.output)
        own = 1
        if layer.op in ("MaxPool", "AveragePool"):
            own = prod(layer.kernel) - 1
        elif layer.op.startswith(("Global", "Reduce")):
            return self.elements(layer.inputs[0]) + out * len(layer.fused)
        elif layer.op in ("Resize", "Upsample"):
            own = _RESIZE_OPERATIONS
        elif layer.op not in CONVOLUTIONS and layer.op not in ELEMENTWISE:
            own = 0  # it moves data
        return out * (own + len(layer.fused))

    def read_bytes(self, layer: Layer) -> int:
        """Bytes of activations and weights that it reads, each once."""
        return sum(self.bytes_of(name) for name in layer.inputs) + layer.weight_bytes

    def resized(self, height: int, width: int, divisor: int = 1) -> "LayerGraph":
        """The same network on frames of another size.

        Raises:
            UsageError: a side that ``divisor`` does not divide.
        """
        if height % divisor or width % divisor:
            raise UsageError(
                f"size {height}x{width} does not fit this network: it halves the frame, so both "
                f"sides must be divisible by {divisor}"
            )
        return replace(self, size=(height, width))

    def at_precision(self, precision: str) -> "LayerGraph":
        """A float32 graph as it would be in another precision.

        ``int8``: every convolution is of integers and every activation takes a byte.
        ``float16``: weights and activations take two. The features that the head reads stay
        float32, as in a bundle.
        """
        if precision == self.precision:
            return self
        if self.precision != "float32":
            raise UsageError(
                f"an estimate in {precision} needs the float32 network, not a {self.precision} one"
            )
        stored = {"int8": "uint8", "float16": "float16"}[precision]
        tensors = {
            name: t
            if name == self.features or t.dtype not in ("float32",)
            else replace(t, dtype=stored)
            for name, t in self.tensors.items()
        }
        layers = tuple(
            replace(
                layer,
                integer=precision == "int8" and layer.op in CONVOLUTIONS,
                weight_bytes=layer.weights * ITEM_BYTES[stored],
            )
            for layer in self.layers
        )
        return replace(self, layers=layers, tensors=tensors, precision=precision)

    def peak_bytes(self) -> int:
        """Largest sum of activations that are alive at once, each freed after its last use.

        No buffer is shared in place, so engines that do may need less.
        """
        last = {name: i for i, layer in enumerate(self.layers) for name in layer.inputs}
        last[self.features] = len(self.layers)
        alive = {self.frame: self.bytes_of(self.frame)}
        peak = alive[self.frame]
        for i, layer in enumerate(self.layers):
            alive[layer.output] = self.bytes_of(layer.output)
            peak = max(peak, sum(alive.values()))
            for name in [n for n in alive if last.get(n, i) <= i]:
                del alive[name]
        return peak

    def to_document(self) -> dict[str, Any]:
        """As JSON holds it; defaults are left out."""
        plain = asdict(Layer("", "", (), ""))
        layers = [
            {
                k: v
                for k, v in asdict(layer).items()
                if k in ("name", "op", "inputs", "output") or v != plain[k]
            }
            for layer in self.layers
        ]
        return {
            "schema": "edgeseg.layers/1",
            **self.provenance,
            "precision": self.precision,
            "size": list(self.base_size),
            "frame": self.frame,
            "features": self.features,
            "tensors": {n: [list(t.shape), t.dtype, t.scales] for n, t in self.tensors.items()},
            "layers": layers,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "LayerGraph":
        """What :meth:`to_document` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        if document["schema"] != "edgeseg.layers/1":
            raise ValueError(f"schema {document['schema']!r}")
        known = ("schema", "precision", "size", "frame", "features", "tensors", "layers")
        tuples = ("inputs", "fused", "kernel", "strides", "dilations", "channels")
        layers = tuple(
            _layer({k: tuple(v) if k in tuples else v for k, v in entry.items()})
            for entry in document["layers"]
        )
        height, width = document["size"]
        return cls(
            layers=layers,
            tensors={
                n: Tensor(tuple(shape), dtype, scales)
                for n, (shape, dtype, scales) in document["tensors"].items()
            },
            frame=document["frame"],
            features=document["features"],
            base_size=(height, width),
            size=(height, width),
            precision=document["precision"],
            provenance={k: v for k, v in document.items() if k not in known},
        )


def _layer(values: dict[str, Any]) -> Layer:
    return Layer(**values)
