"""What of a body can be trained, and the form in which it is.

A parameter is a displacement from the value that the graph came with, in steps: the quantization
step of its output channel for weights stored as integers, and what would be that step, the 127th
part of the largest magnitude, for what is stored as float. One learning rate then means the same
for every layer, channel and network, under an optimizer such as Adam that makes steps of the
parameter's own unit; an untrained graph is exact; and decay pulls towards where it came from.

Not trained are weights that stand for something else than a weight: those of convolutions that
compare or move values (:mod:`edgeseg.compression.pooling`), and those that take the pooled pixel
(:mod:`edgeseg.compression.stem`). The four convolutions of that block share their other filters.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from edgeseg.compression.graph_operators import rounded
from edgeseg.compression.pooling import only_compared
from edgeseg.export.graph import Graph
from edgeseg.export.passes import CONVOLUTIONS, channel_axis

__all__ = ["Trained", "trainable"]

Array = npt.NDArray[Any]

# What passes on one of several values of equal meaning, and what stands between it and them.
_BETWEEN: Final = ("Cast", "DequantizeLinear", "Max", "PRelu", "QuantizeLinear", "Relu")


class Trained(nn.Module):
    """One initializer of the graph and its displacement.

    Args:
        name: of the initializer.
        value: as the graph has it.
        step: size of a step, of a shape that broadcasts to that of ``value``.
        moves: which entries may change, of a shape that broadcasts; ``None``: all.
        displacement: parameter shared with another initializer; ``None``: a new one.
    """

    value: Tensor
    step: Tensor
    moves: Tensor | None

    def __init__(
        self,
        name: str,
        value: Array,
        step: Array,
        moves: Array | None = None,
        displacement: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.bounds: tuple[int, int] | None = None
        """Smallest and largest code; ``None`` for what is stored as float."""
        if value.dtype.kind in "iu":
            # int8 is kept symmetric, as the quantizer makes it.
            top = int(np.iinfo(value.dtype).max)
            self.bounds = (0 if value.dtype.kind == "u" else -top, top)
        self._original = value
        self.register_buffer("value", torch.from_numpy(value.astype(np.float32)))
        self.register_buffer("step", torch.from_numpy(np.asarray(step, np.float32).copy()))
        self.register_buffer("moves", None if moves is None else torch.from_numpy(moves.copy()))
        new = nn.Parameter(torch.zeros(value.shape)) if displacement is None else displacement
        self.displacement = new

    def forward(self) -> Tensor:
        """Float32 values, those of the nearest codes where the graph stores codes."""
        moved = self.displacement if self.moves is None else self.displacement * self.moves
        if self.bounds is None:
            return self.value + moved * self.step
        return (self.value + rounded(moved)).clamp(*self.bounds) * self.step

    @torch.no_grad()
    def limit(self) -> None:
        """Bring the displacement back to where codes are: beyond it would get no gradient."""
        if self.bounds is not None:
            low, high = self.bounds
            self.displacement.clamp_(low - self.value, high - self.value)

    def array(self) -> Array:
        """The initializer as the graph is to store it."""
        with torch.no_grad():
            moved = self.displacement if self.moves is None else self.displacement * self.moves
            if self.bounds is None:
                result = (self.value + moved * self.step).cpu().numpy()
                return np.asarray(result, self._original.dtype)
            steps = torch.round(moved).cpu().numpy().astype(np.int64)
        return np.clip(self._original + steps, *self.bounds).astype(self._original.dtype)


@dataclass(frozen=True, slots=True)
class _Use:
    """An initializer that may be trained."""

    node: onnx.NodeProto
    """That takes it, or takes it through a DequantizeLinear."""
    position: int
    dequantize: onnx.NodeProto | None


def trainable(graph: Graph) -> tuple[list[Trained], dict[str, Trained]]:
    """Weights, biases and slopes of a graph.

    Returns:
        Each once, and the same by the tensor that nodes take.
    """
    siblings = _siblings(graph)
    found: dict[str, Trained] = {}
    by_tensor: dict[str, Trained] = {}
    shared: dict[tuple[int, int, tuple[int, ...]], Trained] = {}
    for use in _uses(graph):
        tensor = use.node.input[use.position]
        name = use.dequantize.input[0] if use.dequantize is not None else tensor
        if name not in found:
            value = graph.constants[name]
            step, moves = _steps(graph, use, value)
            owner = None
            group = siblings.get(id(use.node))
            if group is not None:
                key = (group, use.position, value.shape)
                owner = shared.get(key)
                equal = _equal_rows(graph, siblings, group, use)
                moves = equal if moves is None else moves & equal
            if moves is not None and not moves.any():
                continue
            found[name] = Trained(
                name, value, step, moves, owner.displacement if owner is not None else None
            )
            if group is not None and owner is None:
                shared[key] = found[name]
        by_tensor[tensor] = found[name]
    return list(found.values()), by_tensor


def _uses(graph: Graph) -> list[_Use]:
    uses = []
    for node in graph.nodes:
        if node.op_type in CONVOLUTIONS and not only_compared(graph, node):
            positions = range(1, len(node.input))
        elif node.op_type == "PRelu":
            positions = range(1, 2)
        else:
            continue
        for position in positions:
            tensor = node.input[position]
            producer = graph.producer(tensor)
            if tensor in graph.constants:
                uses.append(_Use(node, position, None))
            elif (
                producer is not None
                and producer.op_type == "DequantizeLinear"
                and all(i in graph.constants for i in producer.input)
                # Zero points of weights are zero in every form that engines fuse.
                and not any(graph.constants[i].any() for i in producer.input[2:])
            ):
                uses.append(_Use(node, position, producer))
    return uses


def _steps(graph: Graph, use: _Use, value: Array) -> tuple[Array, Array | None]:
    """The size of a step, and which entries may change."""
    is_weight = use.node.op_type in CONVOLUTIONS and use.position == 1
    axis = channel_axis(use.node) if is_weight else 0
    shape = [1] * value.ndim
    shape[axis] = -1
    if use.dequantize is not None:
        scale = graph.constants[use.dequantize.input[1]]
        step = scale.reshape(shape) if scale.size > 1 else scale.reshape([1] * value.ndim)
    else:
        others = tuple(i for i in range(value.ndim) if i != axis) if is_weight else None
        top = np.abs(value).max(axis=others, keepdims=True)
        step = np.where(top > 0, top, np.abs(value).max()) / 127
    if not is_weight:
        return step, None
    weights = np.count_nonzero(np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1), axis=1)
    spread = np.count_nonzero(value.reshape(len(value), -1), axis=1)
    if use.node.op_type == "ConvTranspose" and (spread == 1).all():
        return step, np.zeros([1] * value.ndim, bool)  # it puts every value in one place
    # A filter without weights has no scale of its own, and one with a single weight takes a pixel.
    takes_one = use.node.op_type == "Conv" and value[0].size > 1
    moves = weights > (1 if takes_one else 0)
    return step, None if moves.all() else moves.reshape(shape)


def _siblings(graph: Graph) -> dict[int, int]:
    """Convolutions, and their slopes, of which the maximum is taken; by id, the group's number."""
    result: dict[int, int] = {}
    for number, node in enumerate(n for n in graph.nodes if n.op_type == "Max"):
        chain = _chain(graph, node)
        sources = {n.input[0] for n in chain if n.op_type == "Conv"}
        if sum(n.op_type == "Conv" for n in chain) > 1 and len(sources) == 1:
            # Larger maxima come later in the graph and take the smaller ones' place.
            result |= {id(n): number for n in chain if n.op_type in ("Conv", "PRelu")}
    return result


def _chain(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """What is between a maximum and the convolutions behind it, these included."""
    found: list[onnx.NodeProto] = []
    todo = [i for i in node.input if i not in graph.constants]
    while todo:
        producer = graph.producer(todo.pop())
        if producer is None or any(n is producer for n in found):
            continue
        if producer.op_type == "Conv":
            found.append(producer)
        elif producer.op_type in _BETWEEN:
            found.append(producer)
            todo.append(producer.input[0])
            if producer.op_type == "Max":
                todo.append(producer.input[1])
        else:
            return []
    return found


def _equal_rows(graph: Graph, siblings: dict[int, int], group: int, use: _Use) -> Array:
    """Filters, biases or slopes that all of a group have alike."""
    values = []
    for node in graph.nodes:
        if siblings.get(id(node)) == group and node.op_type == use.node.op_type:
            tensor = node.input[use.position]
            producer = graph.producer(tensor)
            values.append(graph.constants[tensor if producer is None else producer.input[0]])
    first = values[0]
    if any(v.shape != first.shape for v in values):
        return np.zeros([1] * first.ndim, bool)
    rows = np.ones(len(first), bool)
    for other in values[1:]:
        rows &= (first == other).reshape(len(first), -1).all(axis=1)
    return rows.reshape(-1, *[1] * (first.ndim - 1))
