"""From an ONNX graph to the layers that an engine runs."""

from dataclasses import replace
from math import prod
from typing import Final

from edgeseg.profiling.layers import CONVOLUTIONS, Layer, LayerGraph
from edgeseg.profiling.onnx_reader import Node, OnnxGraph
from edgeseg.profiling.shapes import ELEMENTWISE, ITEM_BYTES, Tensor, infer_tensors

__all__ = ["layers_of"]

_INTEGER_TYPES: Final = ("uint8", "int8")
_FREE: Final = (
    "Identity",
    "Dropout",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Cast",
    "Constant",
)


def layers_of(graph: OnnxGraph, precision: str = "float32") -> LayerGraph:
    """The layers of a body.

    Args:
        graph: one input ``frame`` ``[1, H, W, 3]``, one output.
        precision: what the bundle says.

    Raises:
        ValueError: it cannot be counted.
    """
    (frame,) = graph.inputs
    (features,) = graph.outputs
    if len(frame.shape) != 4:
        raise ValueError(f"input {frame.shape} is no frame")
    walk = _Walk(graph)
    for node in graph.nodes:
        walk.add(node)
    size = (frame.shape[1], frame.shape[2])
    used = {frame.name, *(n for x in walk.layers for n in (*x.inputs, x.output))}
    return LayerGraph(
        layers=tuple(walk.layers),
        tensors={name: walk.tensors[name] for name in walk.tensors if name in used},
        frame=frame.name,
        features=walk.stored(features.name),
        base_size=size,
        size=size,
        precision=precision,
    )


class _Walk:
    """Turns nodes into layers, one after the other."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.tensors = infer_tensors(graph)
        self.layers: list[Layer] = []
        self._made: dict[str, int] = {}
        self._alias: dict[str, str] = {}
        self._rounded: set[str] = set()
        self._weights: dict[str, tuple[int, int, bool]] = {}
        self._readers: dict[str, int] = {}
        for node in graph.nodes:
            for name in set(node.inputs):
                self._readers[name] = self._readers.get(name, 0) + 1
        for value in graph.outputs:
            self._readers[value.name] = self._readers.get(value.name, 0) + 1

    def stored(self, name: str) -> str:
        """The tensor in memory that ``name`` is read from."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def add(self, node: Node) -> None:
        """Append a layer, fuse the node into one, or note that it costs nothing."""
        active = [n for n in node.inputs if n and not self._is_constant(n)]
        if not active:
            self._note_weights(node)
        elif node.op == "Cast" and self._narrow(node):
            pass
        elif node.op == "DequantizeLinear" or node.op in _FREE:
            self._alias[node.outputs[0]] = active[0]
            if node.op == "DequantizeLinear":
                self._rounded.add(node.outputs[0])
        elif node.op == "QuantizeLinear":
            self._quantize(node)
        elif node.op in ELEMENTWISE and self._fuse(node, active):
            pass
        else:
            self._append(node, active)

    def _is_constant(self, name: str) -> bool:
        return name in self.graph.constants or name in self._weights

    def _note_weights(self, node: Node) -> None:
        constant = self.graph.constants[node.inputs[0]]
        count = prod(constant.shape)
        integer = node.op == "DequantizeLinear" and constant.dtype in _INTEGER_TYPES
        self._weights[node.outputs[0]] = (count, count * ITEM_BYTES[constant.dtype], integer)

    def _weight(self, name: str) -> tuple[int, int, bool]:
        if name in self._weights:
            return self._weights[name]
        constant = self.graph.constants[name]
        count = prod(constant.shape)
        return count, count * ITEM_BYTES[constant.dtype], False

    def _quantize(self, node: Node) -> None:
        source = node.inputs[0]
        memory = self.stored(source)
        alone = self._readers[source] == 1 and source not in self._rounded
        if alone and memory in self._made and memory == source:
            # The layer rounds its result itself and never writes it as float.
            index = self._made.pop(memory)
            self.layers[index] = replace(self.layers[index], output=node.outputs[0])
            self._made[node.outputs[0]] = index
            self._alias[source] = node.outputs[0]
        else:
            self._append(node, [source])

    def _narrow(self, node: Node) -> bool:
        """Whether a layer's result is only ever read through this cast to a smaller type."""
        source, result = node.inputs[0], node.outputs[0]
        smaller = _item(self.tensors[result]) < _item(self.tensors[source])
        if not smaller or source not in self._made or self._readers[source] > 1:
            return False
        index = self._made.pop(source)
        self.layers[index] = replace(self.layers[index], output=result)
        self._made[result] = index
        self._alias[source] = result
        return True

    def _fuse(self, node: Node, active: list[str]) -> bool:
        """Whether the node runs in the registers of the layer that made one of its inputs."""
        candidates = [
            self._made[n]
            for n in active
            if n in self._made and self._readers[n] == 1 and n not in self._alias
        ]
        others = [self._made.get(self.stored(n), -1) for n in active]
        if not candidates or max(candidates) < max(others):
            return False
        index = max(candidates)
        layer = self.layers[index]
        before = layer.output
        if self.tensors[node.outputs[0]].elements != self.tensors[before].elements:
            return False
        del self._made[before]
        extra = [self.stored(n) for n in active if n != before]
        if layer.output in extra:
            return False
        weights = [self._weight(n) for n in node.inputs if n and self._is_constant(n)]
        self.layers[index] = replace(
            layer,
            inputs=(*layer.inputs, *(n for n in extra if n not in layer.inputs)),
            output=node.outputs[0],
            fused=(*layer.fused, node.op),
            weights=layer.weights + sum(w[0] for w in weights),
            weight_bytes=layer.weight_bytes + sum(w[1] for w in weights),
        )
        self._made[node.outputs[0]] = index
        return True

    def _append(self, node: Node, active: list[str]) -> None:
        a = node.attributes
        weights = [
            self._weight(n)
            for n in node.inputs
            if n and self._is_constant(n) and node.op in (*CONVOLUTIONS, *ELEMENTWISE)
        ]
        layer = Layer(
            name=node.name,
            op=node.op,
            inputs=tuple(dict.fromkeys(self.stored(n) for n in active)),
            output=node.outputs[0],
            kernel=tuple(a.get("kernel_shape", ())),
            strides=tuple(a.get("strides", ())),
            dilations=tuple(a.get("dilations", ())),
            groups=a.get("group", 1),
            weights=sum(w[0] for w in weights),
            weight_bytes=sum(w[1] for w in weights),
        )
        if node.op in CONVOLUTIONS:
            layer = self._convolution(node, layer, active)
        self._made[node.outputs[0]] = len(self.layers)
        self.layers.append(layer)

    def _convolution(self, node: Node, layer: Layer, active: list[str]) -> Layer:
        data, result = self.tensors[node.inputs[0]].shape, self.tensors[node.outputs[0]].shape
        axis = 1 if node.op in ("Conv", "ConvTranspose") else -1
        kernel = layer.kernel
        if not kernel and axis == 1:
            kernel = self._weight_shape(node.inputs[1])[2:]
        integer = active[0] in self._rounded and self._weight(node.inputs[1])[2]
        fused = ("Bias",) if len(node.inputs) > 2 else ()
        return replace(
            layer,
            kernel=kernel,
            channels=(data[axis], result[axis]),
            integer=integer,
            fused=fused,
        )

    def _weight_shape(self, name: str) -> tuple[int, ...]:
        constant = self.graph.constants.get(name)
        return self.tensors[name].shape if constant is None else constant.shape


def _item(tensor: Tensor) -> int:
    return ITEM_BYTES[tensor.dtype]
