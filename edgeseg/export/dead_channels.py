"""Lossless removal of channels that cannot matter.

Weight decay leaves filters that are exactly zero, and inputs that every reader multiplies by
zero: of the 6369 filters of one published ERFNet 1017. A channel between convolutions goes if

- nobody reads it: the weights of all convolutions behind it are zero for it; or
- it is zero itself: its filter is zero and its activation of the bias is too. (A constant other
  than zero stays: folded into a bias it would be wrong where the next convolution pads.)

Widths stay multiples of 16 where they were, because vector units compute the rest anyway.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx

from edgeseg.export.graph import Graph, attributes
from edgeseg.export.passes import ACTIVATIONS, CONVOLUTIONS, channel_axis

__all__ = ["drop_dead_channels"]

_STEP = 16


def drop_dead_channels(graph: Graph) -> int:
    """Remove dead channels in place; return how many went."""
    removed = 0
    while True:
        # A channel that goes may leave the one before it without a reader.
        count = sum(_shrink(graph, n) for n in list(graph.nodes) if n.op_type in CONVOLUTIONS)
        removed += count
        if not count:
            break
    if removed:
        graph.infer_shapes()
    return removed


def _shrink(graph: Graph, conv: onnx.NodeProto) -> int:
    activation, readers = _path(graph, conv)
    if not readers or _grouped(conv) or any(_grouped(r) for r in readers):
        return 0
    weight = graph.constants[conv.input[1]]
    filters = np.moveaxis(weight, channel_axis(conv), 0)
    bias = graph.constants[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(filters))
    unread = np.ones(len(filters), bool)
    for reader in readers:
        unread &= ~_inputs(graph, reader).any(axis=1)
    silent = ~filters.reshape(len(filters), -1).any(axis=1) & (
        bias <= 0 if activation == "Relu" else bias == 0
    )
    dead = np.flatnonzero(unread | silent)
    alive = len(filters) - len(dead)
    step = _STEP if len(filters) % _STEP == 0 else 1
    goal = max(-(-alive // step) * step, step)
    dead = dead[: len(filters) - goal]
    if not len(dead):
        return 0
    keep = np.setdiff1d(np.arange(len(filters)), dead)
    _take(graph, conv, 1, channel_axis(conv), keep)
    if len(conv.input) > 2:
        _take(graph, conv, 2, 0, keep)
    for node in graph.consumers(conv.output[0]):
        if node.op_type == "PRelu" and graph.constants[node.input[1]].size > 1:
            _take(graph, node, 1, 0, keep)
    for reader in readers:
        _take(graph, reader, 1, 1 - channel_axis(reader), keep)
    return len(dead)


def _path(graph: Graph, conv: onnx.NodeProto) -> tuple[str, Sequence[onnx.NodeProto]]:
    """The activation behind ``conv`` and the convolutions behind that, if nothing else is."""
    tensor, activation = conv.output[0], ""
    behind = graph.consumers(tensor)
    if len(behind) == 1 and behind[0].op_type in ACTIVATIONS and not graph.is_output(tensor):
        activation, tensor = behind[0].op_type, behind[0].output[0]
        behind = graph.consumers(tensor)
    only = all(
        n.op_type in CONVOLUTIONS and n.input[0] == tensor and tensor not in n.input[1:]
        for n in behind
    )
    return activation, behind if only and not graph.is_output(tensor) else []


def _grouped(node: onnx.NodeProto) -> bool:
    return bool(attributes(node).get("group", 1) != 1)


def _inputs(graph: Graph, reader: onnx.NodeProto) -> npt.NDArray[np.float32]:
    """Weights by input channel, ``[C_in, -1]``."""
    weight = np.moveaxis(graph.constants[reader.input[1]], 1 - channel_axis(reader), 0)
    return weight.reshape(len(weight), -1)


def _take(
    graph: Graph, node: onnx.NodeProto, position: int, axis: int, keep: npt.NDArray[np.intp]
) -> None:
    old = node.input[position]
    node.input[position] = graph.constant(old, np.take(graph.constants[old], keep, axis))
