"""Which tensors of a body are rounded, when some of its convolutions are integer and others float.

Where a float convolution follows an integer one, the tensor between them is rounded all the same:
an engine computes an integer convolution as such only where its result is rounded too (ONNX
Runtime), or refuses it with a bfloat16 result where an addition was fused into it (OpenVINO
2026.4: "object is not initialized"). Inside what is float, nothing is rounded.
"""

from collections.abc import Iterable

import onnx

from edgeseg.export.graph import Graph
from edgeseg.export.passes import ACTIVATIONS, CONVOLUTIONS

__all__ = ["Parts", "frame_tensor", "is_worthwhile", "tensors_to_round"]


def is_worthwhile(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether to quantize a convolution: those of pooled vectors (attention) cost nothing and
    carry a lot.
    """
    shape = graph.shapes[node.input[0]]
    return shape[2] * shape[3] > 1


def frame_tensor(graph: Graph) -> str | None:
    """The frame as float planes, where convolutions take it as it is."""
    cast = next(n for n in graph.nodes if n.op_type == "Cast")
    behind = {n.op_type for n in graph.consumers(cast.output[0])}
    return None if "Sub" in behind else str(cast.output[0])


class Parts:
    """What is integer and what is float.

    Args:
        graph: with every convolution in place.
        integer: convolutions to quantize.
        keep_float: names of those that are left in float on purpose.
    """

    def __init__(
        self, graph: Graph, integer: Iterable[onnx.NodeProto], keep_float: Iterable[str] = ()
    ) -> None:
        self.integer = list(integer)
        names = set(keep_float)
        self.floats = [n for n in graph.nodes if n.op_type in CONVOLUTIONS and n.name in names]
        self._graph = graph
        self._integer = {id(n) for n in self.integer}
        additions = [n for n in graph.nodes if n.op_type == "Add" and self._sums_floats(n)]
        self._float = {id(n) for n in (*self.floats, *additions)}

    def is_float(self, node: onnx.NodeProto) -> bool:
        """Whether ``node`` is a convolution left in float, or an addition of such ones' results."""
        return id(node) in self._float

    def made_in_float(self, tensor: str) -> bool:
        """Whether no integer convolution, nor addition for one, gives ``tensor``'s values."""
        seen: dict[str, bool] = {}

        def made(name: str) -> bool:
            if name not in seen:
                node = self._graph.producer(name)
                if node is None:
                    seen[name] = True
                elif id(node) in self._integer or id(node) in self._float:
                    seen[name] = id(node) in self._float
                elif node.op_type == "Add" and not _has_constant(self._graph, node):
                    seen[name] = False
                else:
                    seen[name] = all(made(i) for i in node.input if i)
            return seen[name]

        return made(tensor)

    def _sums_floats(self, add: onnx.NodeProto) -> bool:
        """Whether every convolution whose result ``add`` takes stays in float, if it takes any.

        Then there is no integer convolution for the addition to go into.
        """
        sources = [_convolution_behind(self._graph, i) for i in add.input]
        convolutions = [s for s in sources if s is not None]
        return bool(convolutions) and not any(id(c) in self._integer for c in convolutions)


def tensors_to_round(graph: Graph, parts: Parts) -> dict[str, set[str]]:
    """Tensors that get a Q/DQ pair, each with the tensors whose range it must hold."""
    wanted: dict[str, set[str]] = {}

    def want(name: str, holds: set[str]) -> None:
        producer = graph.producer(name)
        if name in graph.constants or graph.is_output(name):
            return
        if producer is not None and producer.op_type == "Concat":
            for part in producer.input:
                want(part, holds | {name})
        elif producer is not None and producer.op_type == "MaxPool":
            want(producer.input[0], {producer.input[0]})
        else:
            wanted.setdefault(name, set()).update(holds)

    for node in parts.integer:
        want(node.input[0], {node.input[0]})
    for node in parts.floats:
        if not parts.made_in_float(node.input[0]):
            want(node.input[0], {node.input[0]})
    # Engines fuse an addition into the convolution before it only where both operands and the
    # result are integer.
    for node in graph.nodes:
        if node.op_type != "Add" or parts.is_float(node) or _has_constant(graph, node):
            continue
        if all(graph.shapes[i] == graph.shapes[node.output[0]] for i in node.input):
            for name in node.input:
                want(name, {name})
    return wanted


def _has_constant(graph: Graph, node: onnx.NodeProto) -> bool:
    return any(i in graph.constants for i in node.input)


def _convolution_behind(graph: Graph, tensor: str) -> onnx.NodeProto | None:
    node = graph.producer(tensor)
    while node is not None and node.op_type in ACTIVATIONS:
        node = graph.producer(node.input[0])
    return node if node is not None and node.op_type in CONVOLUTIONS else None
