"""Groups of convolutions that are integer or float together.

Leaving one convolution of a residual block in float saves little: its input and output would still
be rounded for its neighbours. So the unit is what lies between two places where the network parts
or joins: a residual block, a downsampler's convolution, the initial block, a decoder's transposed
convolution. In a graph: convolutions whose results meet in the same addition, the same operand of a
concatenation, the same tensor that several nodes read, or the output.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import onnx

from edgeseg.compression.pooling import pool_by_convolution
from edgeseg.compression.rounding import is_worthwhile
from edgeseg.errors import UsageError
from edgeseg.export.graph import Graph
from edgeseg.export.passes import ACTIVATIONS, CONVOLUTIONS

__all__ = ["GRANULARITIES", "Granularity", "Group", "find_groups"]

Granularity = Literal["block", "convolution"]
GRANULARITIES: Final[tuple[Granularity, ...]] = ("block", "convolution")

# What hands one tensor on without joining it with another.
_PASSES: Final = (*ACTIVATIONS, "MaxPool", "AveragePool", "Resize", "Pad", "Reshape", "Transpose")


@dataclass(frozen=True, slots=True)
class Group:
    """Convolutions that are left in float together."""

    name: str
    convolutions: tuple[str, ...]
    """Names of nodes, as ``keep_float`` of :func:`~edgeseg.compression.quantize_onnx.quantize_body`
    takes them.
    """


def find_groups(body: onnx.ModelProto, granularity: Granularity = "block") -> list[Group]:
    """The groups of a float body, in the order in which it computes them.

    Args:
        body: what :func:`edgeseg.export.body.export_body` gave.
        granularity: ``block`` as the module says, ``convolution`` every convolution by itself.

    Convolutions that the quantizer puts in the place of other operators belong to the group that
    reads the same tensor; those that it never quantizes belong to none.
    """
    if granularity not in GRANULARITIES:
        raise UsageError(
            f"granularity '{granularity}' is unknown; choose {' or '.join(GRANULARITIES)}"
        )
    own = {n.name for n in body.graph.node if n.op_type in CONVOLUTIONS}
    graph = Graph(body)
    graph.infer_shapes()
    pool_by_convolution(graph)
    nodes = [n for n in graph.nodes if n.op_type in CONVOLUTIONS and is_worthwhile(graph, n)]
    members: dict[str, list[str]] = defaultdict(list)
    key_of: dict[str, str] = {}
    for node in nodes:
        if node.name in own:
            key = _end(graph, node) if granularity == "block" else str(node.name)
            members[key].append(str(node.name))
            key_of.setdefault(_source(graph, node.input[0]), key)
    for node in nodes:
        if node.name not in own:
            end, source = _end(graph, node), _source(graph, node.input[0])
            key = end if end in members else key_of.get(source, str(node.name))
            members[key].append(str(node.name))
    groups: list[Group] = []
    for names in members.values():
        name = stem = _label([n for n in names if n in own] or names)
        count = 1
        while any(g.name == name for g in groups):
            count += 1
            name = f"{stem} ({count})"
        groups.append(Group(name, tuple(names)))
    return groups


def _end(graph: Graph, conv: onnx.NodeProto) -> str:
    """Where the result of ``conv`` parts or joins; equal for those that belong together."""
    tensor = str(conv.output[0])
    while True:
        behind = graph.consumers(tensor)
        if graph.is_output(tensor) or len(behind) != 1:
            return tensor
        (node,) = behind
        passes = node.op_type in _PASSES or node.op_type in CONVOLUTIONS
        if node.op_type == "Add" and not any(i in graph.constants for i in node.input):
            return str(node.name)
        if not passes or node.input[0] != tensor:
            return tensor
        tensor = str(node.output[0])


def _source(graph: Graph, tensor: str) -> str:
    """``tensor``, or what was pooled to make it."""
    node = graph.producer(tensor)
    return str(node.input[0]) if node is not None and node.op_type == "MaxPool" else tensor


def _label(names: Sequence[str]) -> str:
    """The path that node names share; for one node, or none shared, the first and last of them."""
    # /encoder/layers/layers.1/conv3x1_1/Conv -> encoder, layers, layers.1, conv3x1_1
    paths = [n.strip("/").split("/")[:-1] or [n] for n in names]
    if len(paths) == 1:
        return "/".join(paths[0])
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared) or f"{'/'.join(paths[0])} to {'/'.join(paths[-1])}"
