"""The integer form of pooling that remembers where its maximum was, and of its inverse.

The float graph takes the four phases of a tensor apart with strided slices and puts them together
with a depth-to-space. Engines do both outside their integer layouts, which cost a third of an
INT8 ENet. As convolutions both stay inside them, and nothing is rounded:

- a >= b is asked of the difference a - b, a 2x2 convolution with weights 1 and -1, whose integer
  sum is exact and zero where the codes are equal;
- the four phases go to their places by a transposed convolution with a single 1 per output.
"""

import numpy as np
import onnx

from edgeseg.export.graph import Graph, attributes

__all__ = ["only_compared", "pool_by_convolution"]


def pool_by_convolution(graph: Graph) -> list[str]:
    """Rewrite comparisons of phases and depth-to-space in place.

    Returns:
        Outputs of the transposed convolutions that took the place of depth-to-space: their
        values are those of their inputs, and so should their codes be.
    """
    moved = []
    for node in list(graph.nodes):
        if node.op_type == "GreaterOrEqual":
            _compare(graph, node)
        elif node.op_type == "DepthToSpace" and attributes(node).get("mode") == b"DCR":
            _spread(graph, node)
            moved.append(str(node.output[0]))
    graph.infer_shapes()
    return moved


def only_compared(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a convolution gives nothing but differences that are compared with zero."""
    behind = graph.consumers(node.output[0])
    return bool(behind) and all(
        n.op_type == "GreaterOrEqual"
        and n.input[0] == node.output[0]
        and n.input[1] in graph.constants
        and not graph.constants[n.input[1]].any()
        for n in behind
    )


def _compare(graph: Graph, node: onnx.NodeProto) -> None:
    sides = [graph.producer(i) for i in node.input]
    if all(s is not None and s.op_type == "Max" for s in sides):
        # Rows of the window, each its own maximum: pool along the row, subtract along the column.
        phases = [_phase(graph, i) for s in sides if s is not None for i in s.input]
        if not _is_window(phases, [(0, 0), (0, 1), (1, 0), (1, 1)]):
            return
        assert phases[0] is not None
        tensor = phases[0][0]
        pool = graph.make(
            "MaxPool",
            [tensor],
            graph.unique(f"{tensor}_row_max"),
            kernel_shape=[1, 2],
            strides=[1, 2],
        )
        graph.insert_before(node, pool)
        _subtract(graph, node, pool.output[0], graph.shapes[tensor][1], [[1], [-1]])
        return
    left, right = (_phase(graph, i) for i in node.input)
    if left is None or right is None:
        return
    row = left[1]
    if not _is_window([left, right], [(row, 0), (row, 1)]):
        return
    taps = [[1, -1], [0, 0]] if row == 0 else [[0, 0], [1, -1]]
    _subtract(graph, node, left[0], graph.shapes[left[0]][1], taps)


def _subtract(
    graph: Graph, node: onnx.NodeProto, tensor: str, channels: int, taps: list[list[int]]
) -> None:
    """Let ``node`` compare a difference of ``tensor``'s values with zero."""
    kernel = np.zeros((channels, channels, len(taps), len(taps[0])), np.float32)
    kernel[np.arange(channels), np.arange(channels)] = np.array(taps, np.float32)
    conv = graph.make(
        "Conv",
        [tensor, graph.constant("difference", kernel)],
        graph.unique(f"{node.output[0]}_difference"),
        kernel_shape=list(kernel.shape[2:]),
        strides=[2, 2] if kernel.shape[3] == 2 else [2, 1],
    )
    graph.insert_before(node, conv)
    node.input[0] = conv.output[0]
    node.input[1] = graph.constant("nothing", np.float32(0))


def _spread(graph: Graph, node: onnx.NodeProto) -> None:
    block = attributes(node)["blocksize"]
    channels = graph.shapes[node.output[0]][1]
    kernel = np.zeros((block * block, channels, channels, block, block), np.float32)
    for phase in range(block * block):
        row, column = divmod(phase, block)
        kernel[phase, np.arange(channels), np.arange(channels), row, column] = 1
    weight = graph.constant("places", kernel.reshape(-1, channels, block, block))
    conv = graph.make(
        "ConvTranspose",
        [node.input[0], weight],
        node.output[0],
        kernel_shape=[block, block],
        strides=[block, block],
    )
    graph.insert_before(node, conv)
    graph.remove(node)


def _phase(graph: Graph, tensor: str) -> tuple[str, int, int] | None:
    """Tensor, row and column that a phase was sliced from; ``None`` where it is no phase."""
    starts = {}
    for _ in range(2):
        node = graph.producer(tensor)
        if node is None or node.op_type != "Slice" or len(node.input) != 5:
            return None
        if any(i not in graph.constants for i in node.input[1:]):
            return None
        start, _, axis, step = (graph.constants[i].tolist() for i in node.input[1:])
        if len(axis) != 1 or step != [2] or start not in ([0], [1]):
            return None
        starts[axis[0]] = start[0]
        tensor = node.input[0]
    return (tensor, starts[2], starts[3]) if set(starts) == {2, 3} else None


def _is_window(phases: list[tuple[str, int, int] | None], expected: list[tuple[int, int]]) -> bool:
    known = [p for p in phases if p is not None]
    return (
        len(known) == len(expected)
        and len({p[0] for p in known}) == 1
        and [p[1:] for p in known] == expected
    )
