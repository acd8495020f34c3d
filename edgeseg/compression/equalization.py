"""Cross-layer equalization: balance the channels of a tensor before it is rounded.

Activations are quantized with one scale a tensor, so a channel that only takes a tenth of the
tensor's range keeps three bits less. Multiplying channel c of a tensor by k_c > 0 where it is made
and dividing by it where it is used changes nothing in exact arithmetic, because ReLU, PReLU,
max-pooling, comparison and addition of equally scaled channels commute with it (Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1; they
balance weights, here it is the activations that gain).

Which channels must share a factor is found by uniting (tensor, channel) pairs over the operators
between convolutions.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx

from edgeseg.compression.calibration import Ranges, TensorRange
from edgeseg.compression.pooling import only_compared
from edgeseg.export.graph import Graph, attributes
from edgeseg.export.passes import CONVOLUTIONS

__all__ = ["equalize"]

_SAME_CHANNEL = (
    "Add",
    "AveragePool",
    "GlobalAveragePool",
    "MaxPool",
    "Pad",
    "PRelu",
    "Relu",
    "Resize",
    "Slice",
)


class _Channels:
    """Union-find over channels of tensors; number = first channel of the tensor + channel."""

    def __init__(self, graph: Graph) -> None:
        self.first: dict[str, int] = {}
        self.width: dict[str, int] = {}
        size = 0
        for name, shape in graph.shapes.items():
            if len(shape) == 4 and name not in graph.constants:
                self.first[name], self.width[name] = size, shape[1]
                size += shape[1]
        self.parent = np.arange(size)
        self.fixed = np.zeros(size, bool)

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = int(self.parent[i])
        return i

    def unite(self, a: str, b: str, a_start: int = 0, b_start: int = 0) -> None:
        for c in range(min(self.width[a] - a_start, self.width[b] - b_start)):
            i, j = self.root(self.first[a] + a_start + c), self.root(self.first[b] + b_start + c)
            self.parent[i] = j
            self.fixed[j] |= self.fixed[i]

    def fix(self, name: str) -> None:
        if name in self.first:
            for c in range(self.width[name]):
                self.fixed[self.root(self.first[name] + c)] = True

    def factors(self, name: str, of_root: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        start = self.first[name]
        roots = [self.root(start + c) for c in range(self.width[name])]
        return of_root[roots]


def equalize(
    graph: Graph, ranges: Ranges, quantized: Iterable[str], *, limit: float = 16.0
) -> Ranges:
    """Rescale weights in place so that channels of the ``quantized`` tensors fill their range.

    Args:
        graph: float body; its convolution weights change, its function does not.
        ranges: observed on this graph.
        quantized: names of the tensors that will be rounded.
        limit: largest factor. Beyond it a channel is all but silent, and its weights would be
            pushed out of the range in which float16 engines are exact.

    Returns:
        The ranges of the rescaled graph.
    """
    channels = _Channels(graph)
    for name in [i.name for i in graph.inputs] + [o.name for o in graph.outputs]:
        channels.fix(name)
    for node in graph.nodes:
        _link(graph, channels, node)
    wanted: dict[int, float] = defaultdict(lambda: limit)
    for name in quantized:
        if name not in ranges.tensors or name not in channels.first:
            continue
        r = ranges.tensors[name]
        # PReLU keeps negative values: both sides must fit, each within its own share.
        room = np.full(len(r.high), limit, np.float32)
        for side in (r.high, -r.low):
            top = float(side.max())
            if top > 0:
                room = np.minimum(room, top / np.maximum(side, top / limit))
        for c, factor in enumerate(room):
            root = channels.root(channels.first[name] + c)
            wanted[root] = min(wanted[root], float(factor))
    of_root = np.ones(len(channels.parent), np.float32)
    for root, least in wanted.items():
        if not channels.fixed[root]:
            of_root[root] = least
    for node in graph.nodes:
        _rescale(graph, channels, node, of_root)
    return Ranges(
        {
            name: _scaled(r, channels.factors(name, of_root)) if name in channels.first else r
            for name, r in ranges.tensors.items()
        },
        ranges.frames,
        ranges.provenance,
    )


def _link(graph: Graph, channels: _Channels, node: onnx.NodeProto) -> None:
    """Unite the channels that ``node`` makes share a factor, fix those that must keep theirs."""
    known = [i for i in node.input if i in channels.first]
    out = node.output[0]
    others = [graph.constants[i] for i in node.input if i in graph.constants]
    if node.op_type in CONVOLUTIONS and only_compared(graph, node):
        # Its weights stay 1 and -1: by another factor equal inputs could differ in the last bit.
        channels.unite(known[0], out)
        return
    if node.op_type in CONVOLUTIONS and attributes(node).get("group", 1) == 1:
        return  # the weights take up the factors on either side
    if node.op_type in ("Mul", "Add") and len(known) == 1 and known[0] == node.input[0]:
        if node.op_type == "Add":
            channels.unite(known[0], out)
        return  # so does the constant
    if node.op_type in ("Greater", "GreaterOrEqual", "Less") and not any(v.any() for v in others):
        # Equal factors leave a comparison of two tensors as it is, and any factor one with zero.
        for name in known[1:]:
            channels.unite(known[0], name)
        return
    if node.op_type == "Mul" and len(known) == 2:
        gate = min(known, key=lambda n: int(np.prod(graph.shapes[n])))
        channels.fix(gate)
        channels.unite(known[1 - known.index(gate)], out)
        return
    if out in channels.first and _keeps_channels(graph, node, others):
        if node.op_type == "Concat":
            start = 0
            for name in known:
                channels.unite(name, out, 0, start)
                start += channels.width[name]
            return
        values = known[1:] if node.op_type == "Where" else known
        if node.op_type == "Pad" or all(channels.width[i] == channels.width[out] for i in values):
            for name in values:
                channels.unite(name, out)
            return
    for name in [*known, out]:
        channels.fix(name)


def _keeps_channels(
    graph: Graph, node: onnx.NodeProto, others: list[npt.NDArray[np.generic]]
) -> bool:
    """Whether ``node`` gives, channel by channel, what grows in proportion with its inputs."""
    if node.op_type == "Concat":
        parts_known = all(i not in graph.constants for i in node.input)
        return bool(attributes(node)["axis"] == 1) and parts_known
    if node.op_type in ("Add", "Max", "Where"):
        return not any(v.any() for v in others)
    if node.op_type == "Pad":
        # Behind the last channel only: in front of the first it would renumber them.
        return node.input[1] in graph.constants and not graph.constants[node.input[1]][1]
    return node.op_type in _SAME_CHANNEL


def _rescale(
    graph: Graph, channels: _Channels, node: onnx.NodeProto, of_root: npt.NDArray[np.float32]
) -> None:
    if node.op_type in CONVOLUTIONS and attributes(node).get("group", 1) == 1:
        before = channels.factors(node.input[0], of_root)
        after = channels.factors(node.output[0], of_root)
        weight = graph.constants[node.input[1]]
        one, many = ((1, -1, 1, 1), (-1, 1, 1, 1))
        w_in, w_out = (one, many) if node.op_type == "Conv" else (many, one)
        weight = weight / before.reshape(w_in) * after.reshape(w_out)
        node.input[1] = graph.constant(f"{node.input[1]}_eq", weight, np.float32)
        if len(node.input) > 2:
            bias = graph.constants[node.input[2]] * after
            node.input[2] = graph.constant(f"{node.input[2]}_eq", bias, np.float32)
    elif node.op_type in ("Mul", "Add") and len(node.input) == 2:
        constant, out = node.input[1], node.output[0]
        if constant not in graph.constants or not {node.input[0], out} <= set(channels.first):
            return
        factor = channels.factors(out, of_root)
        if node.op_type == "Mul":
            factor = factor / channels.factors(node.input[0], of_root)
        value = graph.constants[constant] * factor.reshape(1, -1, 1, 1)
        node.input[1] = graph.constant(f"{constant}_eq", value, np.float32)


def _scaled(r: TensorRange, factor: npt.NDArray[np.float32]) -> TensorRange:
    return TensorRange(r.low * factor, r.high * factor, r.mean * factor, r.clip)
