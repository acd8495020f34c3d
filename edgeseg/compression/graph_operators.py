"""ONNX operators as torch functions, for as many as the four networks' bodies consist of.

Codes of a QuantizeLinear are whole numbers in float32 here: torch has no gradient of integers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from edgeseg.errors import ArtefactError
from edgeseg.export.graph import attributes

__all__ = [
    "OPERATORS",
    "Operator",
    "dequantize",
    "fake_quantize",
    "operator",
    "quantize",
    "rounded",
]

Operator = Callable[..., Tensor]
"""Takes the tensors that the node takes, without those that were read when it was made."""
Constants = Mapping[str, npt.NDArray[Any]]
Maker = Callable[..., tuple[Operator, list[str]]]


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def rounded(x: Tensor) -> Tensor:
    """Round half to even, with the gradient of the identity (Bengio et al. 2013)."""
    result: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return result


def quantize(x: Tensor, scale: float, zero: int, low: int, high: int) -> Tensor:
    """Codes clamp(round(x / scale) + zero, low, high) as float32.

    The gradient is 1 / scale inside the range and 0 outside it.
    """
    return (rounded(x / scale) + zero).clamp(low, high)


def dequantize(codes: Tensor, scale: float, zero: int) -> Tensor:
    """Values of codes: scale * (code - zero)."""
    return (codes - zero) * scale if zero else codes * scale


def fake_quantize(x: Tensor, scale: float, zero: int, low: int, high: int) -> Tensor:
    """:func:`dequantize` of :func:`quantize`, in one pass where a gradient is wanted.

    Torch's own function multiplies by 1 / scale where ONNX divides by scale, which puts a value in
    a million on the other side of the edge between two codes; so what is compared with an engine
    is computed as ONNX has it.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)
    return dequantize(quantize(x, scale, zero, low, high), scale, zero)


def operator(
    node: onnx.NodeProto, constants: Constants, shapes: Mapping[str, Sequence[int]]
) -> tuple[Operator, list[str]]:
    """The torch function of a node, and the names of the tensors that it takes.

    Args:
        node: of a graph with constants lifted out (:class:`edgeseg.export.graph.Graph`).
        constants: shapes, indices, paddings and the like are read from them.
        shapes: of all tensors, at the size that the graph was made for.

    Raises:
        ArtefactError: an operator, or a form of one, that no body has.
    """
    if node.op_type not in OPERATORS:
        raise ArtefactError(
            f"node '{node.name}' is a {node.op_type}, which cannot be trained here; only bodies "
            "that 'edgeseg export' made can be"
        )
    return OPERATORS[node.op_type](node, constants, shapes)


def _refuse(node: onnx.NodeProto, what: str) -> ArtefactError:
    return ArtefactError(
        f"node '{node.name}', a {node.op_type}, has {what}, which cannot be trained here; only "
        "bodies that 'edgeseg export' made can be"
    )


def _plain(function: Operator) -> Maker:
    def make(node: onnx.NodeProto, *_: Any) -> tuple[Operator, list[str]]:
        return function, list(node.input)

    return make


def _conv(node: onnx.NodeProto, constants: Constants, shapes: Any) -> tuple[Operator, list[str]]:
    a = attributes(node)
    stride, dilation, groups = _geometry(node, a)
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    even = (top, left) == (bottom, right)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not even:
            x = F.pad(x, (left, right, top, bottom))
        padding = (top, left) if even else (0, 0)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    return run, list(node.input)


def _conv_transpose(
    node: onnx.NodeProto, constants: Constants, shapes: Any
) -> tuple[Operator, list[str]]:
    a = attributes(node)
    stride, dilation, groups = _geometry(node, a)
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    extra = tuple(a.get("output_padding", (0, 0)))
    if (top, left) != (bottom, right) or "output_shape" in a:
        raise _refuse(node, "an uneven padding")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv_transpose2d(x, weight, bias, stride, (top, left), extra, groups, dilation)

    return run, list(node.input)


def _geometry(node: onnx.NodeProto, a: dict[str, Any]) -> tuple[Any, Any, int]:
    if a.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise _refuse(node, "a padding that depends on the size")
    return tuple(a.get("strides", (1, 1))), tuple(a.get("dilations", (1, 1))), a.get("group", 1)


def _max_pool(
    node: onnx.NodeProto, constants: Constants, shapes: Any
) -> tuple[Operator, list[str]]:
    a = attributes(node)
    stride, dilation, _ = _geometry(node, a)
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right) or a.get("ceil_mode", 0) or len(node.output) > 1:
        raise _refuse(node, "an uneven padding, a rounded-up size or indices")
    kernel = tuple(a["kernel_shape"])
    return (lambda x: F.max_pool2d(x, kernel, stride, (top, left), dilation)), list(node.input)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return F.prelu(x, slope.reshape(-1))


def _concat(node: onnx.NodeProto, constants: Constants, shapes: Any) -> tuple[Operator, list[str]]:
    axis = attributes(node)["axis"]
    return (lambda *parts: torch.cat(parts, axis)), list(node.input)


def _transpose(
    node: onnx.NodeProto, constants: Constants, shapes: Any
) -> tuple[Operator, list[str]]:
    order = tuple(attributes(node)["perm"])
    return (lambda x: x.permute(order)), list(node.input)


def _reshape(
    node: onnx.NodeProto, constants: Constants, shapes: Mapping[str, Sequence[int]]
) -> tuple[Operator, list[str]]:
    """Only rows and columns made one axis: that holds for every batch and size."""
    before, after = tuple(shapes[node.input[0]]), tuple(shapes[node.output[0]])
    if len(before) != 4 or after != (*before[:2], before[2] * before[3]):
        raise _refuse(node, f"the shapes {before} and {after}")
    return (lambda x: x.flatten(2)), [node.input[0]]


def _resize(node: onnx.NodeProto, constants: Constants, shapes: Any) -> tuple[Operator, list[str]]:
    a = attributes(node)
    scales = [constants[i] for i in node.input[2:3] if i in constants]
    factor = scales[0].tolist() if scales and scales[0].size == 4 else []
    nearest = (
        a.get("mode", b"nearest") == b"nearest"
        and a.get("coordinate_transformation_mode") == b"asymmetric"
        and a.get("nearest_mode") == b"floor"
    )
    if not nearest or factor[:2] != [1, 1] or any(f != int(f) for f in factor):
        raise _refuse(node, "another mode than the nearest pixel by a whole factor")
    rows, columns = int(factor[2]), int(factor[3])
    return (
        lambda x: F.interpolate(x, scale_factor=(float(rows), float(columns)), mode="nearest"),
        [node.input[0]],
    )


def _pad(node: onnx.NodeProto, constants: Constants, shapes: Any) -> tuple[Operator, list[str]]:
    pads = constants[node.input[1]].tolist()
    value = float(constants[node.input[2]]) if len(node.input) > 2 and node.input[2] else 0.0
    if attributes(node).get("mode", b"constant") != b"constant" or len(node.input) > 3:
        raise _refuse(node, "another mode than a constant")
    half = len(pads) // 2
    reverse = [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])]
    return (lambda x: F.pad(x, reverse, value=value)), [node.input[0]]


def _slice(node: onnx.NodeProto, constants: Constants, shapes: Any) -> tuple[Operator, list[str]]:
    bounds = [constants[i].tolist() for i in node.input[1:] if i in constants]
    if len(bounds) != 4 or any(len(b) != 1 for b in bounds):
        raise _refuse(node, "bounds that are not one constant each")
    (start,), (stop,), (axis,), (step,) = bounds
    # A stop inside the tensor would mean another place at another size.
    if stop < np.iinfo(np.int32).max or start < 0 or step < 1:
        raise _refuse(node, "an end that depends on the size")
    index = (slice(None),) * axis + (slice(start, None, step),)
    return (lambda x: x[index]), [node.input[0]]


def _gather(node: onnx.NodeProto, constants: Constants, shapes: Any) -> tuple[Operator, list[str]]:
    axis = attributes(node).get("axis", 0)
    places = torch.from_numpy(constants[node.input[1]].astype(np.int64)).reshape(-1)
    if axis != 1 or constants[node.input[1]].ndim != 1:
        raise _refuse(node, "another axis than the channel")
    return (lambda x: x.index_select(1, places.to(x.device))), [node.input[0]]


def _cast(node: onnx.NodeProto, constants: Constants, shapes: Any) -> tuple[Operator, list[str]]:
    # Back to integers go only maxima of codes, which are whole and in range.
    if attributes(node)["to"] not in (TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8):
        raise _refuse(node, "another target than float32, uint8 or int8")
    return (lambda x: x.float()), list(node.input)


def _depth_to_space(
    node: onnx.NodeProto, constants: Constants, shapes: Any
) -> tuple[Operator, list[str]]:
    a = attributes(node)
    block = a["blocksize"]
    if a.get("mode", b"DCR") != b"DCR":
        raise _refuse(node, "the block as the inner part of the channel")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        inner = c // block**2
        x = x.reshape(n, block, block, inner, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, inner, h * block, w * block)

    return run, list(node.input)


OPERATORS: Final[dict[str, Maker]] = {
    "Add": _plain(torch.add),
    "Cast": _cast,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Gather": _gather,
    "GlobalAveragePool": _plain(lambda x: x.mean((2, 3), keepdim=True)),
    "GreaterOrEqual": _plain(torch.ge),
    "Max": _plain(torch.maximum),
    "MaxPool": _max_pool,
    "Mul": _plain(torch.mul),
    "PRelu": _plain(_prelu),
    "Pad": _pad,
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Sub": _plain(torch.sub),
    "Transpose": _transpose,
    "Where": _plain(torch.where),
}
"""Maker of the function by kind of node; QuantizeLinear and DequantizeLinear are the module's."""
