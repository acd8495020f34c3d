"""Shapes and types of a graph's tensors, as far as bodies need them.

Covers the operators that the exporter writes in float and in Q/DQ form, and those that such
networks usually have; an operator that is not known is an error and never a guess.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from edgeseg.profiling.onnx_reader import DTYPES, Node, OnnxGraph

__all__ = ["ELEMENTWISE", "ITEM_BYTES", "Tensor", "infer_tensors"]

ITEM_BYTES: Final[dict[str, int]] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
}
_COMPARISONS: Final = frozenset(
    (
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Equal",
        "And",
        "Or",
        "Not",
    )
)
ELEMENTWISE: Final = _COMPARISONS | frozenset(
    (
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Exp",
        "Log",
        "Sqrt",
        "Abs",
        "Neg",
        "Floor",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Max",
        "Min",
        "Where",
    )
)
_SAME_SHAPE: Final = frozenset(
    (
        "Cast",
        "Identity",
        "Dropout",
        "QuantizeLinear",
        "DequantizeLinear",
        "Softmax",
        "BatchNormalization",
    )
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An activation."""

    shape: tuple[int, ...]
    dtype: str
    scales: bool = True
    """Whether its size grows with the frame's; what follows a global pooling does not."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def infer_tensors(graph: OnnxGraph) -> dict[str, Tensor]:
    """Every activation of the graph, inputs included.

    Raises:
        ValueError: an operator or an attribute that is not known here.
    """
    tensors = {v.name: Tensor(v.shape, v.dtype) for v in graph.inputs}
    for node in graph.nodes:
        if all(not name or name in graph.constants for name in node.inputs):
            # Weights that pass through DequantizeLinear.
            shape = graph.constants[node.inputs[0]].shape if node.inputs else ()
            tensors[node.outputs[0]] = Tensor(shape, "float32", scales=False)
            continue
        known = [_operand(name, tensors, graph) for name in node.inputs]
        shape = _shape(node, known, graph)
        first = next(t for n, t in zip(node.inputs, known, strict=True) if n in tensors)
        dynamic = [tensors[n] for n in node.inputs if n in tensors]
        scales = any(t.scales for t in dynamic) and not _is_global(node, shape, first.shape)
        if node.op == "Resize" and prod(shape[2:]) > prod(first.shape[2:]):
            scales = True
        tensors[node.outputs[0]] = Tensor(shape, _dtype(node, known, graph), scales)
        for extra in node.outputs[1:]:
            tensors[extra] = Tensor(shape, "int64", scales)
    missing = [v.name for v in graph.outputs if v.name not in tensors]
    if missing or not graph.outputs:
        raise ValueError(f"output {', '.join(missing) or 'list'} is made by no node")
    return tensors


def _operand(name: str, tensors: dict[str, Tensor], graph: OnnxGraph) -> Tensor:
    if not name:
        return Tensor((), "float32", scales=False)
    if name in tensors:
        return tensors[name]
    constant = graph.constants[name]
    return Tensor(constant.shape, constant.dtype, scales=False)


def _is_global(node: Node, shape: tuple[int, ...], before: tuple[int, ...]) -> bool:
    pooled = node.op in ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
    return pooled and prod(shape[2:]) == 1 and prod(before[2:]) > 1


def _dtype(node: Node, inputs: Sequence[Tensor], graph: OnnxGraph) -> str:
    if node.op == "Cast":
        return DTYPES[int(node.attributes["to"])]
    if node.op == "QuantizeLinear":
        return inputs[2].dtype if len(inputs) > 2 else "uint8"
    if node.op == "DequantizeLinear":
        return inputs[1].dtype
    if node.op in _COMPARISONS:
        return "bool"
    if node.op == "Where":
        return inputs[1].dtype
    return inputs[0].dtype


def _shape(node: Node, inputs: list[Tensor], graph: OnnxGraph) -> tuple[int, ...]:
    shapes = [t.shape for t in inputs]
    if node.op in ELEMENTWISE:
        return _broadcast(shapes)
    if node.op in _SAME_SHAPE:
        return shapes[0]
    rule = _RULES.get(node.op)
    if rule is None:
        raise ValueError(f"operator {node.op} is not known to the counter")
    return rule(node, shapes, graph)


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    rank = max(len(s) for s in shapes)
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    return tuple(max(axis) for axis in zip(*padded, strict=True))


def _values(node: Node, index: int, graph: OnnxGraph) -> list[float] | None:
    if index >= len(node.inputs) or not node.inputs[index]:
        return None
    constant = graph.constants.get(node.inputs[index])
    if constant is None or constant.values is None:
        raise ValueError(f"{node.op} '{node.name}' has no constant argument {index}")
    return list(constant.values)


def _integers(node: Node, index: int, key: str, graph: OnnxGraph) -> list[int] | None:
    """An argument that is an input since some opset and an attribute before."""
    values = _values(node, index, graph)
    if values is None:
        return node.attributes.get(key)
    return [int(v) for v in values]


def _window(node: Node, spatial: tuple[int, ...], kernel: Sequence[int]) -> list[int]:
    a = node.attributes
    rank = len(spatial)
    strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
    if a.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return [-(-n // s) for n, s in zip(spatial, strides, strict=True)]
    pads = a.get("pads", [0] * 2 * rank)
    sizes = []
    for i in range(rank):
        free = spatial[i] + pads[i] + pads[i + rank] - dilations[i] * (kernel[i] - 1) - 1
        rounded_up = -(-free // strides[i]) if a.get("ceil_mode") else free // strides[i]
        sizes.append(rounded_up + 1)
    return sizes


def _conv(node: Node, shapes: list[tuple[int, ...]], _: OnnxGraph) -> tuple[int, ...]:
    data, weight = shapes[0], shapes[1]
    return (data[0], weight[0], *_window(node, data[2:], weight[2:]))


def _pool(node: Node, shapes: list[tuple[int, ...]], _: OnnxGraph) -> tuple[int, ...]:
    return (*shapes[0][:2], *_window(node, shapes[0][2:], node.attributes["kernel_shape"]))


def _conv_transpose(node: Node, shapes: list[tuple[int, ...]], _: OnnxGraph) -> tuple[int, ...]:
    data, weight, a = shapes[0], shapes[1], node.attributes
    rank = len(data) - 2
    strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
    pads, extra = a.get("pads", [0] * 2 * rank), a.get("output_padding", [0] * rank)
    spatial = [
        strides[i] * (data[2 + i] - 1)
        + extra[i]
        + dilations[i] * (weight[2 + i] - 1)
        + 1
        - pads[i]
        - pads[i + rank]
        for i in range(rank)
    ]
    return (data[0], weight[1] * a.get("group", 1), *spatial)


def _global_pool(_: Node, shapes: list[tuple[int, ...]], __: OnnxGraph) -> tuple[int, ...]:
    return (*shapes[0][:2], *(1 for _ in shapes[0][2:]))


def _reduce(node: Node, shapes: list[tuple[int, ...]], graph: OnnxGraph) -> tuple[int, ...]:
    data = shapes[0]
    axes = _integers(node, 1, "axes", graph)
    reduced = {a % len(data) for a in (range(len(data)) if axes is None else axes)}
    if node.attributes.get("keepdims", 1):
        return tuple(1 if i in reduced else n for i, n in enumerate(data))
    return tuple(n for i, n in enumerate(data) if i not in reduced)


def _concat(node: Node, shapes: list[tuple[int, ...]], _: OnnxGraph) -> tuple[int, ...]:
    axis = node.attributes["axis"] % len(shapes[0])
    total = sum(s[axis] for s in shapes)
    return tuple(total if i == axis else n for i, n in enumerate(shapes[0]))


def _transpose(node: Node, shapes: list[tuple[int, ...]], _: OnnxGraph) -> tuple[int, ...]:
    order = node.attributes.get("perm", list(range(len(shapes[0])))[::-1])
    return tuple(shapes[0][i] for i in order)


def _reshape(node: Node, shapes: list[tuple[int, ...]], graph: OnnxGraph) -> tuple[int, ...]:
    wanted = _integers(node, 1, "shape", graph) or []
    result = [shapes[0][i] if n == 0 else n for i, n in enumerate(wanted)]
    if -1 in result:
        rest = prod(n for n in result if n != -1)
        result[result.index(-1)] = prod(shapes[0]) // max(rest, 1)
    if prod(result) != prod(shapes[0]):
        raise ValueError(f"Reshape '{node.name}' of {shapes[0]} to {result}")
    return tuple(result)


def _flatten(node: Node, shapes: list[tuple[int, ...]], _: OnnxGraph) -> tuple[int, ...]:
    axis = node.attributes.get("axis", 1)
    return (prod(shapes[0][:axis]), prod(shapes[0][axis:]))


def _squeeze(node: Node, shapes: list[tuple[int, ...]], graph: OnnxGraph) -> tuple[int, ...]:
    axes = _integers(node, 1, "axes", graph)
    rank = len(shapes[0])
    chosen = None if axes is None else {a % rank for a in axes}
    return tuple(
        n for i, n in enumerate(shapes[0]) if (n != 1 if chosen is None else i not in chosen)
    )


def _unsqueeze(node: Node, shapes: list[tuple[int, ...]], graph: OnnxGraph) -> tuple[int, ...]:
    axes = _integers(node, 1, "axes", graph) or []
    rank = len(shapes[0]) + len(axes)
    new = {a % rank for a in axes}
    rest = iter(shapes[0])
    return tuple(1 if i in new else next(rest) for i in range(rank))


def _gather(node: Node, shapes: list[tuple[int, ...]], _: OnnxGraph) -> tuple[int, ...]:
    data, indices = shapes[0], shapes[1]
    axis = node.attributes.get("axis", 0) % len(data)
    return (*data[:axis], *indices, *data[axis + 1 :])


def _slice(node: Node, shapes: list[tuple[int, ...]], graph: OnnxGraph) -> tuple[int, ...]:
    data = list(shapes[0])
    starts = _integers(node, 1, "starts", graph) or []
    ends = _integers(node, 2, "ends", graph) or []
    axes = _integers(node, 3, "axes", graph) or list(range(len(starts)))
    steps = _integers(node, 4, "steps", graph) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        data[axis] = len(range(*slice(start, end, step).indices(data[axis])))
    return tuple(data)


def _pad(node: Node, shapes: list[tuple[int, ...]], graph: OnnxGraph) -> tuple[int, ...]:
    pads = _integers(node, 1, "pads", graph) or []
    rank = len(shapes[0])
    return tuple(n + pads[i] + pads[i + rank] for i, n in enumerate(shapes[0]))


def _resize(node: Node, shapes: list[tuple[int, ...]], graph: OnnxGraph) -> tuple[int, ...]:
    sizes = _values(node, 3, graph)
    if sizes:
        return tuple(int(n) for n in sizes)
    scales = _values(node, 2 if node.op == "Resize" else 1, graph) or []
    return tuple(int(n * s) for n, s in zip(shapes[0], scales, strict=True))


def _depth_to_space(node: Node, shapes: list[tuple[int, ...]], _: OnnxGraph) -> tuple[int, ...]:
    n, c, h, w = shapes[0]
    b = node.attributes["blocksize"]
    return (n, c // (b * b), h * b, w * b)


def _space_to_depth(node: Node, shapes: list[tuple[int, ...]], _: OnnxGraph) -> tuple[int, ...]:
    n, c, h, w = shapes[0]
    b = node.attributes["blocksize"]
    return (n, c * b * b, h // b, w // b)


def _expand(node: Node, shapes: list[tuple[int, ...]], graph: OnnxGraph) -> tuple[int, ...]:
    wanted = _integers(node, 1, "shape", graph) or []
    return _broadcast([shapes[0], tuple(wanted)])


def _gemm(node: Node, shapes: list[tuple[int, ...]], _: OnnxGraph) -> tuple[int, ...]:
    a, b = shapes[0], shapes[1]
    if node.op == "MatMul":
        return (*a[:-1], b[-1])
    rows = a[1] if node.attributes.get("transA") else a[0]
    return (rows, b[0] if node.attributes.get("transB") else b[1])


_RULES: Final[dict[str, Callable[[Node, list[tuple[int, ...]], OnnxGraph], tuple[int, ...]]]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "ReduceMean": _reduce,
    "ReduceMax": _reduce,
    "ReduceSum": _reduce,
    "ArgMax": _reduce,
    "Concat": _concat,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Expand": _expand,
    "Gemm": _gemm,
    "MatMul": _gemm,
}
